"""Losses, gradients, features, counts and schedules against other implementations' numbers.

A handler stands for a *method name* of the index and gets a case's config, inputs and parameters,
never its id and never what is expected. What it returns under a name is compared with the array
of that name; a name that is expected and not returned is a failure.
"""

import json
import os
import re
import sys
import zlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit import metrics
from kdkit.fields import fields
from kdkit.losses import kl_T, others_mean
from kdkit.methods import (
    AT,
    CC,
    CLILR,
    CRD,
    DCKD,
    DML,
    FT,
    KD,
    KDCL,
    OFD,
    ONE,
    RKD,
    FitNet,
    Ind,
    OKDDip,
    Probe,
    ReviewKD,
    Step,
    list_methods,
    method_class,
)
from kdkit.methods.crd import contrast
from kdkit.methods.kdcl import best_mix, error_covariance, group_target
from kdkit.methods.okddip import attend
from kdkit.methods.online import EPS
from kdkit.methods.review import hcl
from kdkit.models import Branches, Out, Peers, build, count
from kdkit.recipe import Recipe, learning_rate

FOLDER = Path(os.environ.get("KDKIT_GOLDEN") or Path(__file__).with_name("golden"))
STEP = Step(torch.arange(0), 0, 1, torch.Generator().manual_seed(0))

# Forms (kind "variant") that the kit does not offer, and why.
NOT_OFFERED = {
    "AT(variant: KD-Zoo)": "the kit's AT is RepDistiller's form, which DCKD's tables follow",
    "FT(variant: paper/KD-Zoo)": "the kit's FT is RepDistiller's form, which DCKD's tables follow",
    "CC(variant: Gaussian RBF, KD-Zoo)": "the kit's CC is RepDistiller's form, with no kernel",
    "KDCL(variant: mean, shaoeric)": "no KDCL of the paper takes the mean of the logits",
}
# Networks whose name in the kit differs from the name in their repository.
THEIRS = {
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
    "ResNet50": "resnet50",
    "MobileNetV2": "mobilenetv2",
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
    "imagenet.ResNet18": "resnet18_imagenet",
    "imagenet.ResNet34": "resnet34_imagenet",
    "imagenet.ResNet50": "resnet50_imagenet",
    "imagenet.resnet34": "resnet34_imagenet",
}
OKDDIPS = {
    "resnet110": "resnet110_bottleneck",
    "wide_resnet20_8": "wrn_20_8_bottleneck",
    "vgg16": "vgg16_okddip",
    "densenetd40k12": "densenet_40_12",
}


def network(repo: str, name: str) -> str:
    """The kit's name of a network of a repository."""
    ours = OKDDIPS if repo.endswith("OKDDip-AAAI2020") else {}
    return (THEIRS | ours).get(name, name)


# ---- handlers: config, inputs and parameters -> {name: value} ----


def group(logits, pooled=None, feats=()):
    return Out(logits, feats, feats, pooled)


def probe(s, y):
    return Probe(s, None, s.logits.shape[-1], y)


def plant(layer, **tensors):
    """Make `tensors` the parameters of `layer`, which must have asked for these shapes."""
    for name, value in tensors.items():
        assert getattr(layer, name).shape == value.shape, f"{name} is {tuple(value.shape)}"
        delattr(layer, name)
        setattr(layer, name, value)


def total(method, terms, ramp=1.0):
    """The trainer's sum of a method's terms."""
    weights = method.weights()
    assert weights.keys() == terms.keys()
    return sum(w * (ramp if k in method.ramped else 1.0) * terms[k] for k, w in weights.items())


def whole(term, each):
    """`each`, a value for each student, if the method's term is their sum."""
    assert torch.allclose(term, each.sum(), rtol=1e-10, atol=1e-13)
    return each


def kd_loss(c, x):
    method = KD(T=c["T"], eps=c.get("eps", 0.0))
    y = torch.zeros(len(x["z_s"]), dtype=torch.int64)
    loss = method.terms(group(x["z_s"]), y, group(x["z_t"]), STEP)["kd"]
    loss.backward()
    return {"loss": loss}


def kd_script(c, x):
    method = KD(**(KD.presets["okddip_paper"] | {"T": c["T"], "alpha": c["alpha"]}))
    terms = method.terms(group(x["z_s"]), x["labels"], group(x["z_t"]), STEP)
    loss = total(method, terms)
    loss.backward()
    return {"loss": loss, "loss_teacher": terms["kd"]}


def kd_total(c, x):
    assert c["distill"] == "kd"
    method = KD(r=c["r"], alpha=c["a"], T=c["T"])
    f_s, f_t = ([x[k] for k in sorted(x) if k.startswith(f)] for f in ("f_s", "f_t"))
    s, t = group(x["z_s"], f_s[-1], tuple(f_s[:-1])), group(x["z_t"], f_t[-1], tuple(f_t[:-1]))
    loss = total(method, method.terms(s, x["labels"], t, STEP))
    loss.backward()
    assert all(f.grad is None for f in f_s)
    return {"loss": loss}


def maps(x, name):
    """The arrays name0, name1, ..., in order."""
    return tuple(x[f"{name}{i}"] for i in range(sum(k[:-1] == name for k in x)))


def hinted(method, s, t, bns=None):
    """The method's terms for maps alone; s, t: f0, f1, ..., then the pooled feature if it is one.

    Its layers are made first, in double precision, if they are not there yet.
    """
    z = torch.zeros(len(s[0]), 3, dtype=torch.float64)
    s, t = (group(z, f[-1], f[:-1]) if f[-1].ndim == 2 else group(z, None, f) for f in (s, t))
    if not list(method.children()):
        method.build(Probe(s, t, 3, None, SimpleNamespace(stage_bns=lambda: bns)))
        method.double()
    return method.terms(s, torch.zeros(len(z), dtype=torch.int64), t, STEP)


def hint(c, x):
    f_s, f_t = x["f_s"], x["f_t"]
    method = FitNet(layer=0)
    if "conv_weight" in x:
        hinted(method, (f_s.detach(),), (f_t,))
        conv, bn, _ = method.regressor
        plant(conv, weight=x["conv_weight"], bias=x["conv_bias"])
        plant(bn, weight=x["bn_weight"], bias=x["bn_bias"])
    else:
        method.regressor = nn.Identity()
    loss = hinted(method, (f_s,), (f_t,))["hint"]
    loss.backward()
    return {"loss": loss}


def at(c, x):
    assert c["p"] == 2
    f_s, f_t = maps(x, "f_s"), maps(x, "f_t")
    loss = hinted(AT(), (f_s[0], *f_s), (f_t[0], *f_t))["attention"]  # f0 is not compared
    loss.backward()
    pairs = zip(f_s, f_t, strict=True)
    each = [hinted(AT(), (f, f), (g, g))["attention"] for f, g in pairs]  # of one stage
    return {f"loss{i}": v for i, v in enumerate(each)} | {"loss": loss}


def at_total(c, x):
    assert c["distill"] == "attention"
    method, kd = AT(r=c["r"], beta=c["b"]), KD(r=0.0, alpha=c["a"], T=c["T"])
    f_s, f_t = maps(x, "f_s"), maps(x, "f_t")
    s, t = group(x["z_s"], f_s[-1], f_s[:-1]), group(x["z_t"], f_t[-1], f_t[:-1])
    loss = sum(total(m, m.terms(s, x["labels"], t, STEP)) for m in (method, kd))
    loss.backward()
    assert f_s[0].grad is f_s[-1].grad is None
    return {"loss": loss}


def ft(c, x):
    method = FT(k=c["k"])
    f_s, f_t = (x["f_s"],), (x["f_t"],)
    hinted(method, f_s, f_t)
    for name, layers in {
        "par_enc": method.encoder,
        "par_dec": method.decoder,
        "trans": method.translator,
    }.items():
        ours = [m for m in layers.modules() if isinstance(getattr(m, "weight", None), Tensor)]
        assert len(ours) == sum(k.startswith(name) and k.endswith("weight") for k in x)
        for i, layer in enumerate(ours):
            plant(layer, weight=x[f"{name}_{i}_weight"], bias=x[f"{name}_{i}_bias"])
    loss = hinted(method, f_s, f_t)["factor"]
    loss.backward()
    assert x["par_enc_0_weight"].grad is None and f_t[0].grad is None
    factor_s, factor_t = method.translator(*f_s), method.encoder(*f_t)
    first = method.pretrain_terms(group(f_t[0], None, f_t), None, STEP)
    return {
        "factor_s": factor_s,
        "factor_t": factor_t,
        "loss": loss,
        "rec_loss": first["reconstruction"],
    }


def ft_core(c, x):
    method = FT()
    method.encoder = method.translator = nn.Identity()
    loss = hinted(method, (x["factor_s"],), (x["factor_t"],))["factor"]
    loss.backward()
    return {"loss": loss}


def ofd(c, x):
    method = OFD(beta=c["weight"], r=0.0)
    assert method.pairs["resnet34_imagenet", "resnet18_imagenet"]["beta"] == c["imagenet_weight"]
    bns = []
    for w, b in zip(maps(x, "bn_weight"), maps(x, "bn_bias"), strict=True):
        bns.append(nn.BatchNorm2d(len(w)).double())
        plant(bns[-1], weight=w, bias=b)
    s, t = ((f[0], *f) for f in (maps(x, "f_s"), maps(x, "f_t")))  # f0 is not compared
    hinted(method, tuple(f.detach() for f in s), t, bns)
    for layers, w in zip(method.connectors, maps(x, "conn_weight"), strict=True):
        plant(layers[0], weight=w)
    terms = hinted(method, s, t)
    loss = total(method, terms)
    loss.backward()
    margins = {f"margin{i}": layers.margin.flatten() for i, layers in enumerate(method.connectors)}
    return margins | {"loss_raw": terms["maps"], "loss": loss}


def reviewkd(c, x):
    epochs = 240
    method = ReviewKD(r=0.0, beta=c["weight"], warmup=c["warmup_epochs"] / epochs)
    s, t = ((f[0], *f) for f in (maps(x, "f_s"), maps(x, "f_t")))  # f0 is not compared
    hinted(method, s, t)
    for j, abf in enumerate(method.abfs):
        plant(abf.conv1[0], weight=x[f"abf{j}_conv1_w"])
        plant(abf.conv2[0], weight=x[f"abf{j}_conv2_w"])
        if j:
            plant(abf.attention, weight=x[f"abf{j}_att_w"], bias=x[f"abf{j}_att_b"])
    loss = total(method, hinted(method, s, t), method.ramp(c["epoch"], epochs))
    loss.backward()
    s = group(x["logits"], s[-1], s[:-1])
    terms = method.terms(s, x["labels"], group(x["logits"], t[-1], t[:-1]), STEP)
    return {"loss_kd": loss, "loss_ce": terms["ce"]}


def review_hcl(c, x):
    loss = sum(hcl(f, g) for f, g in zip(maps(x, "f_s"), maps(x, "f_t"), strict=True))
    loss.backward()
    return {"loss": loss}


def review_ramp(c, x):
    epochs = 240
    method = ReviewKD(warmup=c["warmup"] / epochs)
    return {"weight": [method.ramp(e, epochs) for e in x["epoch"].tolist()]}


def rkd(c, x):
    method = RKD(r=0.0, w_d=c["w_d"], w_a=c["w_a"])
    z, f = torch.zeros(len(x["f_s"]), 3, dtype=torch.float64), x["f_s"]
    y = torch.zeros(len(z), dtype=torch.int64)
    terms = method.terms(group(z, f), y, group(z, x["f_t"].detach()), STEP)
    got = {"dist": terms["distance"], "angle": terms["angle"], "combined": total(method, terms)}
    grads = {
        f"grad_f_s_{k}": torch.autograd.grad(v, f, retain_graph=True)[0] for k, v in got.items()
    }
    return grads | {f"loss_{k}": v for k, v in got.items()}


def rkd_total(c, x):
    assert c["distill"] == "rkd"
    method = RKD(r=c["r"], w_d=RKD.w_d * c["b"], w_a=RKD.w_a * c["b"])
    f_s, f_t = maps(x, "f_s"), maps(x, "f_t")
    s, t = group(x["z_s"], f_s[-1], f_s[:-1]), group(x["z_t"], f_t[-1], f_t[:-1])
    kd = KD(r=0.0, alpha=c["a"], T=c["T"])
    loss = sum(total(m, m.terms(s, x["labels"], t, STEP)) for m in (method, kd))
    loss.backward()
    assert all(f.grad is None for f in f_s[:-1])
    return {"loss": loss}


def embedded(method, x, f_s, f_t, N):
    """The method with the vectors' embeddings, and its two sides for the features f_s and f_t."""
    z = torch.zeros(len(f_s), 3, dtype=torch.float64)
    s, t = group(z, f_s), group(z, f_t.detach())
    method.build(Probe(s, t, 3, torch.arange(N)))
    plant(method.E_s, weight=x["Ws"], bias=x["bs"])
    plant(method.E_t, weight=x["Wt"], bias=x["bt"])
    return method.double(), s, t


def cc(c, x):
    assert c["feat_dim"] == CC.dim
    y = torch.zeros(len(x["f_s"]), dtype=torch.int64)
    method, s, t = embedded(CC(dim=len(x["bs"]), r=0.0), x, x["f_s"], x["f_t"], 3)
    loss = method.terms(s, y, t, STEP)["correlation"]
    loss.backward()
    return {"loss": loss}


def crd(c, x):
    kinds = {"dim": "D", "K": "K", "tau": "tau", "bank_momentum": "momentum"}
    assert all(getattr(CRD, k) == c["default"][v] for k, v in kinds.items())
    method = CRD(dim=len(x["bs"]), tau=c["tau"], K=c["K"], bank_momentum=c["momentum"])
    method, _, _ = embedded(method, x, x["f_s_0"], x["f_t_0"], c["N"])
    method.M = torch.stack([x["mem_t0"], x["mem_s0"]]).detach()
    got, k = {}, 0
    while f"f_s_{k}" in x:
        s, t = (
            group(torch.zeros(len(x[f"idx_{k}"]), 3).double(), x[f"f_{side}_{k}"]) for side in "st"
        )
        index, rows = x[f"idx_{k}"], x[f"contrast_idx_{k}"]
        assert rows[:, 0].equal(index) and rows.shape[1] == method.negatives + 1
        x["Ws"].grad = x["Wt"].grad = None
        with mock.patch.object(sys.modules[CRD.__module__], "others", lambda *_, r=rows: r[:, 1:]):
            y = torch.zeros_like(index)
            loss = method.terms(s, y, t, STEP._replace(index=index))["contrast"]
        loss.backward()
        got |= {
            f"loss_{k}": loss,
            f"grad_Ws_{k}": x["Ws"].grad,
            f"grad_Wt_{k}": x["Wt"].grad,
            f"Z_s_{k}": method.Z[0],
            f"Z_t_{k}": method.Z[1],
        }
        k += 1
        got |= {f"mem_t{k}": method.M[0].clone(), f"mem_s{k}": method.M[1].clone()}
    return got


def crd_contrast(c, x):
    loss = contrast(x["x"].squeeze(2), c["N"])
    loss.backward()
    return {"loss": loss}


def kdcl(form):
    def handler(c, x):
        z, y, T = x["logits"], x["labels"], c["T"]
        method = KDCL(m=len(z), form=form, T=T, lam=c["lambda"])
        method.build(probe(group(z), y))
        terms = method.terms(group(z), y, None, STEP)
        loss = total(method, terms)
        loss.backward()
        z = z.detach()
        target = group_target(z, y, form)
        got = {
            "loss": loss,
            "ce": whole(terms["ce"], STEP.ce(z, y)),
            "kd": whole(terms["target"], kl_T(z, target.expand_as(z), T)),
            "target_logits": target,
        }
        if form == "linear":
            got |= {"alpha": best_mix(z, y), "ce_of_target": STEP.ce(target, y)}
        return got

    return handler


def kdcl_general(c, x):
    z, T = x["logits"], c["T"]
    _, B, K = z.shape
    y = torch.zeros(B, dtype=torch.int64)
    method = KDCL(m=len(z), form="general", T=T, signed=True)
    method.build(probe(group(z), y))
    with torch.no_grad():
        method.refresh(x["val_logits"], x["val_labels"], None)
    term = method.terms(group(z), y, None, STEP)["target"]
    (gradient,) = torch.autograd.grad(term, z)  # T / B (softmax(z/T) - q) for each student
    q = F.softmax(z.detach() / T, -1) - B / T * gradient
    assert torch.allclose(q, q[:1].expand_as(q), rtol=1e-10)  # one target for all
    C = error_covariance(x["val_logits"], x["val_labels"])
    return {"C": C, "w": method.w, "target_prob": q[0]}


def dckd(c, x):
    a, b, g = c["alpha_beta_gamma"]
    z = x["logits"]
    method = DCKD(
        m=len(z),
        T=c["T"],
        tau=c["tau"],
        alpha=a,
        beta=b,
        gamma=g,
        reverse=c["reverse"],
        collection=c["collection"],
        detach_collection=c["detach_collection"],
    )
    terms = method.terms(group(z), x["labels"], group(x["z_t"]), STEP)
    loss = total(method, terms)
    loss.backward()
    z = z.detach()
    collection = method.collect(z)
    p, q = (z, collection) if c["reverse"] else (collection, z)  # KL(p || q)
    return {
        "loss": loss,
        "collection": collection,
        "ce": whole(terms["ce"], STEP.ce(z, x["labels"])),
        "kd": whole(terms["teacher"], kl_T(z, x["z_t"].expand_as(z), c["T"])),
        "col": whole(terms["collection"], kl_T(q, p, c["tau"])),
    }


def dml(c, x):
    method = DML(m=c["m"], T=c["T"], pairwise=c["pairwise"])
    loss = total(method, method.terms(group(x["logits"]), x["labels"], None, STEP))
    loss.backward()
    return {"loss": loss}


def dml_original(c, x):
    method = DML(m=2, T=c["T"], alpha=c["lambda"], detach=True, eps=0.0)
    z = torch.stack([x["z1"], x["z2"]])
    loss = total(method, method.terms(group(z), x["labels"], None, STEP))
    loss.backward()
    each = STEP.ce(z, x["labels"]) + method.alpha * kl_T(z, others_mean(z), c["T"])
    first, second = whole(loss, each)  # one loss a network
    return {"loss1": first, "loss2": second}


def okddip(c, x):
    z, h = x["logits"], x["feats"]
    method = OKDDip(m=c["m"], T=c["T"], alpha=c["alpha"])
    method.build(probe(group(z, h), x["labels"]))
    plant(method.Wq, weight=x["Wq"])
    plant(method.Wk, weight=x["Wk"])
    terms = method.terms(group(z, h), x["labels"], None, STEP)
    peers, h_peers = z[: method.peers()], h[: method.peers()]
    attention = attend(h_peers, "learned", method.Wq, method.Wk, STEP.generator)
    assert torch.allclose(attention.mean(0), method.seen["attention"], rtol=1e-10)
    targets = torch.einsum("bac,cbk->abk", attention, peers)
    whole(terms["peers"], method.distil(peers, F.softmax(targets / method.T, -1)))  # what is used
    loss = total(method, terms, c["consistency_weight"])
    loss.backward()
    grads = {f"grad_{k}{i}": g for k in ("logits", "feats") for i, g in enumerate(x[k].grad)}
    return grads | {
        "loss": loss,
        "loss_true": terms["ce"],
        "loss_dis1": terms["peers"],
        "loss_dis2": terms["leader"],
        "attention": attention,
        "targets_logits": targets,
    }


def branches(cls):
    """A method of branches on the vectors' toy branches: 1x1 convolution, pooling, linear."""

    def handler(c, x):
        method = cls(**{k: c[k] for k in ("m", "T", "alpha") if k in fields(cls)})
        f = method.at_split(x["x_low"])
        h = torch.stack([F.conv2d(f, w).mean((2, 3)) for w in x["branch_conv"]])  # (m, B, D)
        z = torch.einsum("mbd,mkd->mbk", h, x["branch_lin_w"]) + x["branch_lin_b"].unsqueeze(1)
        s = group(z, h, (x["x_low"],))
        method.build(probe(s, x["labels"]))
        got = {"logits": z}
        if "gate_w" in x:
            plant(method.fc, weight=x["gate_w"], bias=x["gate_b"])
            plant(method.double().bn, weight=x["gate_bn_w"], bias=x["gate_bn_b"])
            method.bn.register_forward_hook(
                lambda layer, args, out: got.update(gate=F.softmax(F.relu(out), -1))
            )
        terms = method.terms(s, x["labels"], None, STEP)
        loss = total(method, terms, c["consistency_weight"])
        loss.backward()
        if "gate" in got:  # ONE: one target for all
            assert torch.allclose(got["gate"].mean(0), method.seen["gate"])
            got["target_logits"] = torch.einsum("bm,mbk->bk", got["gate"], z)
        elif method.ramped:
            got["target_logits"] = others_mean(z)
        distilled = sum((terms[k] for k in method.ramped), torch.zeros((), dtype=z.dtype))
        if method.ramped:  # the targets are what is used
            whole(distilled, kl_T(z, got["target_logits"].expand_as(z), method.T, EPS))
        return got | {"loss": loss, "loss_true": total(method, terms, 0.0), "loss_group": distilled}

    return handler


def group_metrics(c, x):
    z, y = x["logits"].detach().numpy(), x["labels"].numpy()
    method = OKDDip(m=c["m"])
    peers = z[: method.peers()]
    scores = {
        "ensemble": metrics.ensemble(peers),
        "peer": peers,
        "leader": z[method.deployed(0)],
        "ensemble_prob": metrics.ensemble(peers, of="probs"),
    }
    top1 = {f"true_{k}_top1": 100 * metrics.top(v, y) for k, v in scores.items()}  # in percent
    return top1 | {"true_mean_pair_distance": metrics.diversity(peers)}


def correlation_number(c, x):
    p = x["p"].detach().numpy()
    default = c["threshold"] == 1 / p.shape[-1]
    n = metrics.correlation_number(p, None if default else c["threshold"])
    return {"corr_num": n, "entropy": metrics.entropy(p)}


def ramp_up(c, x):
    epochs = 300
    method = OKDDip(rampup=c["length"] / epochs)
    return {"weight": [method.ramp(e, epochs) for e in x["epoch"].tolist()]}


def lr_step(c, x):
    epochs = max(int(x["epoch1"].max()), *c["milestones"])
    recipe = Recipe(
        lr=c["lr"],
        epochs=epochs,
        schedule="step",
        milestones=tuple(e / epochs for e in c["milestones"]),
    )
    assert c["rate"] == 0.1
    return {"lr": [learning_rate(recipe, e - 1) for e in x["epoch1"].tolist()]}


def lr_sgdr(c, x):
    epochs = max(int(x["epoch0"].max()) + 1, c["T_0"])
    recipe = Recipe(
        lr=c["lr"], epochs=epochs, schedule="sgdr", T_0=c["T_0"] / epochs, T_mult=c["T_mult"]
    )
    assert c["eta_min"] == 0
    return {"lr": [learning_rate(recipe, e) for e in x["epoch0"].tolist()]}


def fill(net):
    """Weights that depend on a layer's kind and shape alone, as the vectors' formula says."""

    def draw(kind, shape):
        key = f"{kind}:{'x'.join(map(str, shape))}".encode()
        return torch.from_numpy(np.random.default_rng(zlib.crc32(key)).standard_normal(shape))

    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                kind, w = ("conv", m.weight) if isinstance(m, nn.Conv2d) else ("linear", m.weight)
                scale = (2 / w[0].numel() if kind == "conv" else 1 / w.shape[1]) ** 0.5
                w.copy_(draw(f"{kind}_weight", w.shape) * scale)
                if m.bias is not None:
                    m.bias.copy_(draw(f"{kind}_bias", m.bias.shape) * 0.05)
            elif isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(1 + 0.1 * draw("bn_weight", m.weight.shape))
                m.bias.copy_(0.1 * draw("bn_bias", m.bias.shape))
            elif isinstance(m, nn.Dropout):
                m.p = 0.0


def net_forward(c, x):
    name = network(c["source"]["repo"], c["source"]["symbol"])
    net = build(name, classes=c["classes"]).double().train()
    fill(net)
    rng = np.random.default_rng(zlib.crc32(b"x:%d" % c["B"]))
    with torch.no_grad():
        out = net(torch.from_numpy(rng.standard_normal((c["B"], 3, 32, 32))))
    got = {"logits": out.logits}
    for i, f in enumerate((*out.feats, out.pooled)):
        got[f"feat{i}_shape"] = torch.tensor(f.shape)
        got[f"feat{i}_stats"] = torch.stack([f.mean(), f.std(), f.abs().max()])
    for i, f in enumerate((*out.preacts, out.pooled)):
        got[f"preact{i}_stats"] = torch.stack([f.mean(), f.std(), f.min()])
    return got


HANDLERS = {
    "KD": kd_loss,
    "KD(OKDDip KL_Loss)": kd_loss,
    "KD(OKDDip script)": kd_script,
    "total(kd)": kd_total,
    "FitNet": hint,
    "Hint(MSE)": hint,
    "AT": at,
    "total(attention)": at_total,
    "FT": ft,
    "FT(core)": ft_core,
    "OFD": ofd,
    "ReviewKD": reviewkd,
    "ReviewKD(HCL)": review_hcl,
    "ramp-up(ReviewKD)": review_ramp,
    "RKD": rkd,
    "total(rkd)": rkd_total,
    "CC": cc,
    "CRD": crd,
    "CRD(contrast loss)": crd_contrast,
    "KDCL-naive": kdcl("naive"),
    "KDCL-minlogit": kdcl("minlogit"),
    "KDCL-linear": kdcl("linear"),
    "KDCL-general(derived)": kdcl_general,
    "DCKD(derived)": dckd,
    "DML": dml,
    "DML(variant: original form)": dml_original,
    "OKDDip": okddip,
    "ONE": branches(ONE),
    "CL-ILR": branches(CLILR),
    "Ind": branches(Ind),
    "metrics(OKDDip)": group_metrics,
    "correlation number(derived)": correlation_number,
    "ramp-up": ramp_up,
    "lr schedule(step)": lr_step,
    "lr schedule(SGDR)": lr_sgdr,
    "net forward": net_forward,
}


# ---- reading and comparing ----

INDEX = json.loads((FOLDER / "index.json").read_text())["cases"]
COUNTS = json.loads((FOLDER / "net_counts.json").read_text())["rows"]


def collected(case: dict) -> bool:
    """Is the case compared here? One of an unknown method is, and fails."""
    return case["method"] not in NOT_OFFERED


CASES = {case["id"]: case for case in INDEX if collected(case)}


def read(case: dict) -> dict[str, np.ndarray]:
    """A case's arrays, which must be those of the index."""
    with np.load(FOLDER / case["file"], allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    seen = {name: (list(a.shape), str(a.dtype)) for name, a in arrays.items()}
    assert seen == {name: (a["shape"], a["dtype"]) for name, a in case["arrays"].items()}
    return arrays


def expected(case: dict) -> list[str]:
    """The names to compare; `official_*` metrics record a defect of their code."""
    known = {"input", "param", "expected", "expected_grad", "info"}
    assert {a["role"] for a in case["arrays"].values()} <= known
    names = [n for n, a in case["arrays"].items() if a["role"].startswith("expected")]
    return [
        n
        for n in names
        if not (case["method"].startswith("metrics(") and n.startswith("official_"))
    ]


@cache
def computed(id: str) -> dict[str, np.ndarray]:
    """What the library computes for a case, with the gradient of every input that got one."""
    case = CASES[id]
    assert case["method"] in HANDLERS, f"unknown method {case['method']!r}"
    arrays = read(case)
    x = {
        n: torch.from_numpy(arrays[n].copy())
        for n, a in case["arrays"].items()
        if a["role"] in ("input", "param")
    }
    for v in x.values():
        v.requires_grad_(v.is_floating_point())
    got = HANDLERS[case["method"]](case["config"] | {"source": case["source"]}, x)
    grads = {f"grad_{n}": v.grad for n, v in x.items() if v.grad is not None}
    got = {n: v.detach() if torch.is_tensor(v) else v for n, v in (grads | got).items()}
    return {n: np.asarray(v) for n, v in got.items()}


def differences(case: dict, got: dict, want: dict[str, np.ndarray]) -> list[str]:
    """One line for each expected array that `got` lacks or misses."""
    lines = []
    for name in expected(case):
        if name not in got:
            lines.append(f"{name}: not computed")
        elif got[name].shape != want[name].shape:
            lines.append(f"{name}: shape {got[name].shape}, expected {want[name].shape}")
        else:
            error = np.abs(got[name] - want[name])
            allowed = case["atol"] + case["rtol"] * np.abs(want[name])
            if not (error <= allowed).all():  # also where it is nan
                lines.append(f"{name}: off by up to {np.nanmax(error / allowed):.3g} tolerances")
    return lines


@pytest.mark.parametrize("id", CASES)
def test_golden(id):
    assert expected(CASES[id])
    assert differences(CASES[id], computed(id), read(CASES[id])) == []


@pytest.mark.parametrize("id", CASES)
def test_a_falsified_value_is_noticed(id):
    """One element of one expected array off by ten tolerances fails the case, and names it."""
    case, want = CASES[id], read(CASES[id])
    for name in expected(case):
        wrong = want[name].astype(np.float64)
        at = np.unravel_index(wrong.size // 2, wrong.shape) if wrong.size else None
        wrong[at] += 10 * (case["atol"] + case["rtol"] * abs(wrong[at]))
        found = differences(case, computed(id), want | {name: wrong})
        assert [line.partition(":")[0] for line in found] == [name]
        fewer = {k: v for k, v in computed(id).items() if k != name}
        assert differences(case, fewer, want) == [f"{name}: not computed"]


def test_folder_is_whole():
    assert len(CASES) > 0 and len(INDEX) == len({case["id"] for case in INDEX})
    assert {case["file"] for case in INDEX} == {file.name for file in FOLDER.glob("*.npz")}


def test_no_method_has_both_a_handler_and_a_reason_for_none():
    assert not HANDLERS.keys() & NOT_OFFERED.keys()


def test_only_variants_are_not_offered():
    assert all(case["kind"] == "variant" for case in INDEX if case["method"] in NOT_OFFERED)
    assert all("variant" in name and why for name, why in NOT_OFFERED.items())


# ---- parameters, multiply-adds and batch-norm buffers of networks ----

GROUP = re.compile(r"(.+)\[(.+) (branch|network) m=(\d+)\]")
# methods.md, "Counts not to be matched": their own arithmetic stands in `test_counts`.
EXEMPT = {
    ("densenet_40_12", None): {"params", "bn_buffers"},  # all branches share one block object
    ("densenet_40_12", "OKDDip"): {"macs"},  # the leader's block runs once more
    ("vgg16_okddip", "ONE"): {"macs"},  # every branch runs twice
}


def parse(row: dict) -> tuple[str, str | None, str, int]:
    """The kit's name of a row's network, the method's title, what it is based on, and m."""
    found = GROUP.fullmatch(row["net"])
    name, title, based, m = found.groups() if found else (row["net"], None, "network", 1)
    return network(row["peer"], name), title, based, int(m)


ROWS = {f"{row['peer'].partition('/')[0]}-{row['net']}": row for row in COUNTS}


class WithMethod(nn.Module):
    """A group of students and one call of its method's terms, for `count`."""

    def __init__(self, students, method):
        super().__init__()
        self.students, self.method = students, method

    def forward(self, x):
        s = self.students(x)
        self.method.terms(s, torch.zeros(len(x), dtype=torch.int64), None, STEP)
        return s


def counts(net, x):
    params, macs = count(net, x)
    buffers = (b.numel() for n, b in net.named_buffers() if n.endswith(("_mean", "_var")))
    return {"params": params, "macs": macs, "bn_buffers": sum(buffers)}


@pytest.mark.parametrize("id", ROWS)
def test_counts(id):
    row = ROWS[id]
    name, title, based, m = parse(row)
    c_in, K = row["input"][0], row["classes"]
    x, net = torch.zeros(1, *row["input"]), build(name, c_in, K)
    got = counts(net, x)
    if title:
        got = count_group(name, title, based, m, net, x, K, got)
    exempt = EXEMPT.get((name, title), set())
    exempt = exempt | EXEMPT.get((name, None), set()) if title and based == "branch" else exempt
    compared = {"params", "macs", "bn_buffers"} - exempt
    assert {k: got[k] for k in compared} == {k: row[k] for k in compared}


def count_group(name, title, based, m, net, x, K, single):
    """Counts of a group with its method's layers, checked against arithmetic on one network."""
    (cls,) = (method_class(n) for n in list_methods() if method_class(n).title == title)
    method = cls(m=m, based=based)
    nets = [build(name, x.shape[1], K) for _ in range(m)]
    students = Branches(nets, method.at_split) if based == "branch" else Peers(nets)
    with torch.no_grad():
        s = students.eval()(x)
    method.build(probe(s, None))
    got = counts(WithMethod(students, method), x)
    shared = counts(nn.Sequential(*[First(part) for part in net.parts[: net.split]]), x)
    D, C = s.pooled.shape[-1], s.feats[-1].shape[1] if based == "branch" else 0
    own = {
        "OKDDip": dict(params=2 * D * (D // 8), macs=2 * (m - 1) * D * (D // 8), bn_buffers=0),
        "ONE": dict(params=(C + 1 + 2) * m, macs=C * m, bn_buffers=2 * m),
        "CL-ILR": dict.fromkeys(single, 0),
        "Ind": dict.fromkeys(single, 0),
    }[title]
    for key, one in single.items():
        common = shared[key] if based == "branch" else 0
        assert got[key] == common + m * (one - common) + own[key], key
    return got


class First(nn.Module):
    """A part of a network, giving its feature only."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, f):
        return self.part(f)[0]
