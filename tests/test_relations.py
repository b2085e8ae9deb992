"""RKD, CC, CRD and KDCL against hand-made numbers, grids and the trainer."""

import copy
import math
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdkit import train
from kdkit.losses import ce
from kdkit.methods import CC, CRD, CRDKD, KD, KDCL, RKD, Baseline, Ind, Probe, Step
from kdkit.methods.crd import contrast, others
from kdkit.methods.kdcl import (
    best_mix,
    error_covariance,
    group_target,
    min_quadratic_on_simplex,
)
from kdkit.methods.relation import relations
from kdkit.models import Out, build
from kdkit.study import sources, store
from kdkit.study.callbacks import Checkpoint, Interrupted
from kdkit.study.plans import build_students, plan, preset
from kdkit.study.runs import get


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def out(logits, pooled=None):
    return Out(logits, (), (), pooled)


def step(index, seed=0):
    return Step(index, 0, 1, seeded(seed))


# ---- RKD and CC by hand ----

RIGHT = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).double()  # sides 3, 4, 5: mean 4
EVEN = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3**0.5]]).double()  # equal sides, angles of 60


def test_rkd_of_two_triangles():
    z, y = torch.zeros(3, 2).double(), torch.tensor([0, 1, 0])
    terms = RKD().terms(out(z, RIGHT), y, out(z, EVEN), step(y))
    # smooth L1 of a difference d < 1 is d^2 / 2; 3/4 and 5/4 differ from 1 by 1/4, each twice
    assert terms["distance"].item() == pytest.approx(4 * (1 / 4) ** 2 / 2 / 9)
    # cosines 0, 3/5 and 4/5 differ from 1/2, each for (i, j) and (j, i)
    assert terms["angle"].item() == pytest.approx(2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27)
    assert terms["ce"].item() == pytest.approx(math.log(2))
    assert RKD().weights() == {"ce": 1.0, "distance": 25.0, "angle": 50.0}


def test_relations_forget_place_turn_and_size():
    h = torch.randn(6, 3, generator=seeded()).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=seeded(1)).double())[0]
    for ours, moved in zip(relations(h), relations(7 * h @ turn + 5), strict=True):
        torch.testing.assert_close(ours, moved)
    distance, angle = relations(h)
    assert distance.shape == (6, 6) and angle.shape == (6, 6, 6)
    assert distance[distance > 0].mean().item() == pytest.approx(1)


def test_rkd_of_equal_features_of_two_images_has_a_gradient():
    h = RIGHT[[0, 0, 1, 2]].requires_grad_()
    z, y = torch.zeros(4, 2).double(), torch.zeros(4, dtype=torch.int64)
    terms = RKD().terms(out(z, h), y, out(z, EVEN[[0, 1, 2, 2]]), step(y))
    (terms["distance"] + terms["angle"]).backward()
    assert h.grad.isfinite().all() and h.grad.any()


def test_cc_by_hand():
    method = CC(dim=2)
    z, y = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    h, h_t = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]), torch.zeros(3, 5)
    method.build(Probe(out(z, h), out(z, h_t), 4, y))
    assert method.E_s.weight.shape == (2, 2) and method.E_t.weight.shape == (2, 5)
    with torch.no_grad():
        for layer in (method.E_s, method.E_t):
            layer.bias.zero_()
        method.E_s.weight.copy_(torch.eye(2))
    got = method.terms(out(z, h), y, out(z, h_t), step(y))["correlation"]
    assert got.item() == pytest.approx(((1 * 0 + 2 * 1) + (0 * 3 + 1 * 1)) / 2)
    assert method.weights() == {"ce": 1.0, "correlation": 0.02} and CC.dim == 128


@pytest.mark.parametrize("cls", [RKD, CC])
def test_one_image_has_no_relations(cls):
    method, z, h = cls(), torch.zeros(1, 3), torch.ones(1, 4)
    method.build(Probe(out(z, h), out(z, h), 3, torch.arange(3)))
    with pytest.raises(ValueError, match=f"{cls.title} .*batch=1, allowed: 2 and more") as e:
        method.terms(out(z, h), torch.tensor([0]), out(z, h), step(torch.tensor([0])))
    assert "\n" not in str(e.value)


# ---- CRD ----


def test_negatives_are_different_images_of_other_classes():
    labels = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0, 1])
    y = torch.tensor([0, 1, 2, 1])
    rows = others(labels, y, 6, seeded())
    assert rows.shape == (4, 6) and rows.dtype == torch.int64
    for row, own in zip(rows, y, strict=True):
        assert len(set(row.tolist())) == 6 and (labels[row] != own).all()
    assert set(rows[0].tolist()) == {1, 2, 4, 5, 6, 9}  # all there are
    assert rows.equal(others(labels, y, 6, seeded()))
    many = torch.full((2000,), 2)
    drawn = others(labels, many, 3, seeded(1))
    times = drawn.flatten().bincount(minlength=10)[labels != 2]  # 3 of 8 each time
    assert (times - 750).abs().max() < 5 * (2000 * 3 / 8 * 5 / 8) ** 0.5
    assert len({tuple(sorted(row)) for row in drawn.tolist()}) == math.comb(8, 3)


def test_the_draw_takes_one_number_of_the_steps_generator():
    labels, mine, plain = torch.arange(9) % 3, seeded(4), seeded(4)
    others(labels, labels, 2, mine)
    torch.randint(2**62, (), generator=plain)
    assert mine.get_state().equal(plain.get_state())


def test_contrast_by_hand():
    x = torch.tensor([[0.5, 0.1, 0.2], [1.0, 0.3, 0.4]]).double()
    c = 2 / 10
    want = (
        -sum(
            math.log(p / (p + c)) + sum(math.log(c / (q + c)) for q in rest)
            for p, *rest in x.tolist()
        )
        / 2
    )
    assert contrast(x, 10).item() == pytest.approx(want, rel=1e-6)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


def crd(seed=0, **fields):
    """A CRD for LABELS, and (y, s, t, step) of a batch by its number."""
    torch.manual_seed(seed)
    method = CRD(**({"dim": 4} | fields))
    h, h_t = (torch.randn(3, 8, D, generator=seeded(D)) for D in (5, 6))
    z = torch.zeros(3, 8, 3)

    def batch(k):
        i = torch.tensor([[0, 1, 2], [2, 3, 4], [5, 6, 7]][k])
        return LABELS[i], out(z[k, i], h[k, i]), out(z[k, i], h_t[k, i]), step(i, k)

    _, s, t, _ = batch(0)
    method.build(Probe(s, t, 3, LABELS))
    return method, batch


def terms(method, batch):
    y, s, t, at = batch
    return method.terms(s, y, t, at)


def test_banks_follow_the_embeddings():
    method, batch = crd(bank_momentum=0.25)
    before = method.M.clone()
    assert before.shape == (2, 8, 4) and before.abs().max() <= (3 / 4) ** 0.5
    assert not method.M.requires_grad and method.negatives == 4  # class 0 has four of eight
    y, s, t, at = batch(1)
    method.terms(s, y, t, at)
    for bank, e in enumerate((method.E_t(t.pooled), method.E_s(s.pooled))):
        for row, image in enumerate(at.index.tolist()):
            unit = e[row] / e[row].square().sum().sqrt()
            new = 0.25 * before[bank, image] + 0.75 * unit
            torch.testing.assert_close(method.M[bank, image], new / new.square().sum().sqrt())
    apart = [i for i in range(8) if i not in at.index]
    assert method.M[:, apart].equal(before[:, apart])
    torch.testing.assert_close(method.M[:, at.index].norm(dim=-1), torch.ones(2, 3))


def test_the_score_is_against_the_other_bank_and_Z_is_kept():
    method, batch = crd(tau=0.5)
    y, s, t, at = batch(0)
    M = method.M.clone()
    rows = others(LABELS, y, 4, seeded(0)).tolist()  # the draw of step 0
    rows = [[i, *negatives] for i, negatives in zip(at.index.tolist(), rows, strict=True)]
    with torch.no_grad():
        e_s = F.normalize(method.E_s(s.pooled), dim=-1)
        e_t = F.normalize(method.E_t(t.pooled), dim=-1)
    loss, Z = 0, []
    for e, bank in ((e_s, M[0]), (e_t, M[1])):  # M is the teacher's, then the student's
        x = [[math.exp(float(e[b] @ bank[i]) / 0.5) for i in rows[b]] for b in range(3)]
        Z.append(8 * sum(map(sum, x)) / 15)
        loss += contrast(torch.tensor(x) / Z[-1], 8).item()
    assert terms(method, batch(0))["contrast"].item() == pytest.approx(loss, rel=1e-4)
    assert method.Z.tolist() == pytest.approx(Z, rel=1e-5)
    kept = method.Z.clone()
    terms(method, batch(1))
    assert method.Z.equal(kept)


def test_a_saved_state_goes_on_bit_equally():
    method, batch = crd()
    terms(method, batch(0))
    state = copy.deepcopy(method.state_dict())
    assert {"M", "Z"} < set(state) and "labels" not in state
    other, _ = crd(seed=9)
    assert not other.M.equal(method.M)
    other.load_state_dict(state)
    for k in (1, 2):
        a, b = terms(method, batch(k)), terms(other, batch(k))
        assert all(a[name].equal(b[name]) for name in a)
    assert all(v.equal(other.state_dict()[k]) for k, v in method.state_dict().items())


def test_two_steps_have_gradients_though_the_bank_changed():
    method, batch = crd()
    for k in range(2):
        method.zero_grad()
        terms(method, batch(k))["contrast"].backward()
        assert all(p.grad.any() for p in method.parameters())


def test_crd_needs_two_classes():
    z, h = torch.zeros(2, 3), torch.ones(2, 4)
    with pytest.raises(ValueError, match="CRD needs images of other classes: all 5 are of one"):
        CRD().build(Probe(out(z, h), out(z, h), 3, torch.full((5,), 2)))


def test_crd_at_the_papers_size():
    """16384 of 49,500 negatives for 64 images: no row twice, none of its class."""
    labels, y = torch.arange(50_000) % 100, torch.arange(64)
    rows = others(labels, y, CRD.K, seeded())
    assert rows.shape == (64, 16384)
    ordered = rows.sort(1).values
    assert (ordered.diff(dim=1) > 0).all() and (labels[rows] != y.unsqueeze(1)).all()


def test_weights_and_controls_are_dckds_recipe():
    assert CRD().weights() == {"ce": 1.0, "contrast": 0.8}
    assert CRDKD().weights() == {"ce": 1.0, "contrast": 0.8, "teacher": 1.0} and CRDKD().T == 4
    assert (CRD.dim, CRD.K, CRD.tau, CRD.bank_momentum) == (128, 16384, 0.07, 0.5)
    assert all(cls().control() == (Baseline, {}) for cls in (RKD, CC, CRD))
    assert CRDKD().control() == (KD, {})
    assert KDCL(m=5).control() == (Ind, {"m": 5, "based": "network"})
    assert (KDCL.T, KDCL.lam, KDCL.views, KDCL.held) == (2, 1, True, 0.1)


# ---- the pairs of DCKD's Tables 2 and 3 ----

PAIRS = """wrn_40_2 wrn_16_2, wrn_40_2 wrn_40_1, resnet56 resnet20, resnet110 resnet20,
resnet110 resnet32, resnet32x4 resnet8x4, vgg13 vgg8, vgg13 mobilenetv2, resnet50 mobilenetv2,
resnet50 vgg8, resnet32x4 shufflenetv1, resnet32x4 shufflenetv2, wrn_40_2 shufflenetv1"""
PAIRS = [tuple(pair.split()) for pair in PAIRS.split(",")] + [("resnet8", "resnet8_w0.5")]


@cache
def answer(name, lesson):
    """A network's answer to two images of the lesson's size or CIFAR's."""
    c, size = (1, 20) if lesson else (3, 32)
    x = torch.randn(2, c, size, size, generator=seeded())
    with torch.no_grad():
        return build(name, c, 10)(x)


@pytest.mark.parametrize("teacher, student", PAIRS)
def test_shapes_come_from_the_probe(teacher, student):
    lesson = student == "resnet8_w0.5"
    s, t = answer(student, lesson), answer(teacher, lesson)
    y, labels = torch.tensor([0, 1]), torch.arange(20) % 10
    for cls in (RKD, CC, CRD, CRDKD):
        method = cls()
        method.build(Probe(s, t, 10, labels))
        found = method.terms(s, y, t, step(torch.tensor([0, 11])))
        assert set(found) == set(method.weights())
        assert all(v.shape == () and v.isfinite() for v in found.values())


# ---- KDCL: the four targets ----

Z = torch.tensor(
    [[[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], [[1.0, 3.0, -1.0], [1.0, 2.0, 2.5]]]
).double()  # two students, two images
Y = torch.tensor([0, 1])


def test_minlogit_and_naive_by_hand():
    low = torch.tensor([[0.0, -1.0, -2.0], [-3.0, 0.0, -2.0]]).double()
    low = torch.minimum(low, torch.tensor([[0.0, 2.0, -2.0], [-1.0, 0.0, 0.5]]).double())
    assert group_target(Z, Y, "minlogit").equal(low)
    assert group_target(Z, Y, "naive").equal(Z[0])  # the first is better for both images
    swapped = torch.stack([Z[:, 0], Z.flip(0)[:, 1]], 1)
    assert group_target(swapped, Y, "naive").equal(torch.stack([Z[0, 0], Z[0, 1]]))


def grid(m, n):
    """All points of the simplex whose coordinates are multiples of 1/n."""
    points = torch.cartesian_prod(*[torch.arange(n + 1)] * (m - 1)).view(-1, m - 1)
    points = points[points.sum(1) <= n]
    return torch.cat([points, n - points.sum(1, keepdim=True)], 1).double() / n


@pytest.mark.parametrize("m, n", [(2, 1000), (3, 120), (4, 30)])
@pytest.mark.parametrize("scale", [0.3, 3.0, 20.0])
def test_linear_is_the_best_mix_of_a_grid(m, n, scale):
    draw = seeded(m)
    faces = 0
    for _ in range(6):
        z = torch.randn(m, 8, 5, generator=draw).double() * scale
        y = torch.randint(5, (8,), generator=draw)
        z[0] += 0.5 * scale * F.one_hot(y, 5)  # the others may be worth nothing
        a, tries = best_mix(z, y), grid(m, n)
        losses = ce(torch.einsum("pi,ibk->pbk", tries, z), y)
        assert (a >= 0).all() and a.sum().item() == pytest.approx(1)
        target = group_target(z, y, "linear")
        torch.testing.assert_close(target, torch.einsum("i,ibk->bk", a, z))
        assert ce(target, y) <= losses.min() + 1e-12
        assert (tries[losses.argmin()] - a).abs().max() < 4 / n
        # no step to another vertex helps (the problem is convex)
        p = F.softmax(target, -1) - F.one_hot(y, 5)
        slope = torch.einsum("ibk,bk->i", z, p) / 8
        assert (slope - a @ slope).min() > -1e-5 * scale
        faces += bool((a == 0).any())
    assert faces or m == 2


def test_linear_with_equal_students_and_one_perfect_one():
    z = torch.randn(1, 6, 4, generator=seeded()).double().repeat(3, 1, 1)
    y = torch.arange(6) % 4
    a = best_mix(z, y)
    assert (a >= 0).all() and a.sum().item() == pytest.approx(1)
    z[2] = 50 * F.one_hot(y, 4)
    assert best_mix(z, y)[2] > 0.5 and ce(group_target(z, y, "linear"), y) < 1e-6
    assert group_target(z.float(), y, "linear").dtype == torch.float32


def test_min_quadratic_on_simplex_against_a_grid():
    for k in range(20):
        root, g = torch.randn(4, 3, generator=seeded(k)).double(), torch.randn(3).double()
        H, tries = root.T @ root, grid(3, 200)
        value = ((tries @ H) * tries).sum(1) / 2 + tries @ g
        a = min_quadratic_on_simplex(H, g)
        assert (a @ H @ a) / 2 + a @ g <= value.min() + 1e-12
        assert (a - tries[value.argmin()]).abs().max() < 0.02


def logits_of(f):
    """Logits of two classes whose first has the probabilities f (m, n): (m, n, 2)."""
    f = torch.tensor(f).double()
    return torch.stack([f.log(), (1 - f).log()], -1)


def general(z, y, **fields):
    method = KDCL(m=len(z), form="general", **fields)
    method.build(Probe(out(z), None, z.shape[-1], y))
    return method


def test_general_starts_even_and_is_refreshed():
    z, y = logits_of([[0.9, 0.9, 1 - 1e-9], [1 - 1e-9, 1 - 1e-9, 0.6]]), torch.tensor([0, 0, 0])
    C = torch.tensor([[0.02, 0.0], [0.0, 0.16]]).double() / 3  # errors on different images
    torch.testing.assert_close(error_covariance(z, y), C, rtol=0, atol=1e-8)
    assert error_covariance(z, 1 - y)[0, 1].item() == pytest.approx((0.9 + 0.9 + 0.6) / 3)
    for signed in (False, True):
        method = general(z, y, signed=signed)
        assert method.w.tolist() == [0.5, 0.5]
        method.refresh(z, y, None)
        assert method.w.tolist() == pytest.approx([0.16 / 0.18, 0.02 / 0.18], rel=1e-6)
        other = general(z, y)
        other.load_state_dict(method.state_dict())
        assert other.w.equal(method.w)


def test_general_uses_its_weights():
    z = torch.randn(2, 4, 3, generator=seeded()).double().requires_grad_()
    y = torch.tensor([0, 1, 2, 0])
    method = general(z, y)
    method.w.copy_(torch.tensor([0.25, 0.75]))
    got = method.terms(out(z), y, None, step(y))["target"]
    p = F.softmax(z / 2, -1).detach()
    q = 0.25 * p[0] + 0.75 * p[1]
    want = 4 * (q * (q.log() - F.log_softmax(z / 2, -1))).sum(-1).mean(-1).sum()
    torch.testing.assert_close(got, want)
    assert torch.autograd.grad(got, z)[0].allclose(2 * (p - q) / 4)  # q is a constant


def test_negative_weights_only_where_allowed():
    z = logits_of([[0.9, 0.8], [0.8, 0.6]])  # the second's errors are twice the first's
    z[1, 1] += torch.tensor([1e-2, 0.0])  # not exactly
    y = torch.tensor([0, 0])
    w = {signed: general(z, y, signed=signed) for signed in (False, True)}
    for method in w.values():
        method.refresh(z, y, None)
        assert method.w.sum().item() == pytest.approx(1)
    assert w[False].w.tolist() == [1.0, 0.0] and w[True].w[1] < -0.9


def test_held_out_images_are_balanced_and_fixed():
    labels = torch.randperm(1000, generator=seeded()) % 10
    method = KDCL(form="general")
    held = method.held_out(labels)
    assert len(set(held.tolist())) == 100 and labels[held].bincount().tolist() == [10] * 10
    assert held.equal(KDCL(form="general", m=2).held_out(labels))
    cifar = torch.arange(50_000) % 100
    assert cifar[method.held_out(cifar)].bincount().tolist() == [50] * 100
    odd = torch.arange(57) % 10  # 5.7 images: one a class
    assert odd[method.held_out(odd)].bincount().tolist() == [1] * 10
    few = KDCL(form="general", held=0.25).held_out(labels)
    assert labels[few].bincount().tolist() == [25] * 10
    assert all(KDCL(form=f).held_out(labels) is None for f in ("minlogit", "naive", "linear"))


@pytest.mark.parametrize("form", ["minlogit", "naive", "linear", "general"])
def test_a_teacher_is_a_member_without_gradient(form):
    z = torch.randn(2, 4, 3, generator=seeded()).double().requires_grad_()
    y = torch.tensor([0, 1, 2, 0])
    z_t = (20.0 * F.one_hot(y, 3).double()).requires_grad_()
    method = KDCL(m=2, form=form, with_teacher=True)
    method.build(Probe(out(z), out(z_t), 3, y))
    assert method.needs_teacher and not KDCL(form=form).needs_teacher
    assert method.group() == ("network", 2) and method.peers() == 2
    assert method.w.tolist() == pytest.approx([1 / 3] * 3)
    method.refresh(z.detach(), y, z_t.detach())
    assert method.w[2] > 0.99  # its errors are the least by far
    found = method.terms(out(z), y, out(z_t), step(y))
    sum(found.values()).backward()
    assert z_t.grad is None and z.grad.any()
    alone = KDCL(m=2, form=form)
    alone.build(Probe(out(z), None, 3, y))
    assert not alone.terms(out(z), y, None, step(y))["target"].equal(found["target"])
    if form == "naive":
        q = F.softmax(z_t / 2, -1)
        want = 4 * (q * (q.log() - F.log_softmax(z / 2, -1))).sum(-1).mean(-1).sum()
        torch.testing.assert_close(found["target"], want)


# ---- through the trainer ----


def test_general_with_a_teacher_goes_on_bit_equally(tmp_path, monkeypatch):
    """It trains on all but the held-out images, and w is of its checkpoint."""
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path))
    run = preset(
        "smoke",
        method="kdcl",
        student="resnet8_w0.25",
        teacher="resnet8_w0.25",
        n_train=200,
        batch=30,
        epochs=2,
        augment="crop_flip",
        m=2,
        form="general",
        with_teacher=True,
    )
    assert plan(run).teacher.run.student == "resnet8_w0.25"
    get(plan(run).teacher)  # so that no rehearsal for its sake is heard below
    weights, indices, refresh = [], set(), KDCL.refresh
    real = KDCL.terms

    def listen(self, z, y, t):
        assert z.shape == (2, 100, 100) and t.shape == (100, 100)
        assert y.bincount().tolist() == [1] * 100
        refresh(self, z, y, t)
        weights.append(self.w.clone())

    def seen(self, s, y, t, at):
        indices.update(at.index.tolist())
        return real(self, s, y, t, at)

    monkeypatch.setattr(KDCL, "refresh", listen)
    monkeypatch.setattr(KDCL, "terms", seen)
    first = get(run)
    assert len(weights) == 1 and weights[0].sum().item() == pytest.approx(1)
    assert indices.isdisjoint(range(100))  # one of each class: the lesson's images are dealt out
    assert len(indices) > 90  # of 100; an epoch is three batches of 30

    class Stopping(Checkpoint):
        def step(self, state):
            if (state.epoch, state.step) == (1, 1):
                self.stop.set()
            super().step(state)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr("kdkit.study.runs.Checkpoint", Stopping)
        get(run, fresh=True)
    again = get(run, fresh=True)
    assert again.meta["resumed_at"] == 1
    assert again.meta["weights_sha256"] == first.meta["weights_sha256"]
    assert store.find(run).id == first.id


def test_a_method_of_layers_keeps_them_in_its_record(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path))
    run = preset(
        "smoke",
        method="crd_kd",
        student="resnet8_w0.25",
        teacher="resnet8_w0.25",
        n_train=100,
        batch=25,
        epochs=1,
        dim=8,
    )
    data = sources.load(run.data, n_train=run.n_train)
    student, teacher = (
        build_students(p, data.shape, data.classes) for p in (run, plan(run).teacher)
    )
    method = CRDKD(dim=8)
    state = train.prepare(method, student, data, teacher, run, 0, "cpu")
    layers = list(method.parameters())
    trained = [p for g in state.optimizer.param_groups for p in g["params"]]
    assert isinstance(method.E_t, nn.Linear) and len(layers) == 4
    assert all(any(p is q for q in trained) for p in layers)
    assert method.negatives == 99 and method.M.shape == (2, 100, 8)
    record = get(run)
    kept = torch.load(record.path / "weights.pt", weights_only=True)["method"]
    assert set(kept) == set(method.state_dict()) - {"M"}  # of training alone
    assert kept["E_t.weight"].shape == method.E_t.weight.shape
