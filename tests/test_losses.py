"""Loss functions, the methods' switches that no vector covers, and metrics, against plain numpy."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdkit import losses, metrics
from kdkit.methods import DCKD, DML, KD, ONE, EnsembledStudent, OKDDip, OKDDipKD, Probe, Step
from kdkit.models import Out
from kdkit.study import statistics
from kdkit.study.plans import plan, preset

EPS = 1e-7
Y = torch.tensor([2, 0])


def logits(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=g, dtype=torch.float64)).requires_grad_()


def out(z, h=None, feats=()):
    return Out(z, feats, feats, h)


def step(seed=0):
    return Step(torch.arange(2), 0, 1, torch.Generator().manual_seed(seed))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    """sum over classes, mean over images; p, q: (B, K)."""
    return (p * (np.log(p) - np.log(q))).sum(-1).mean()


def slope(loss, z, d=1e-5):
    """Central differences of `loss(z)`, a function of numpy alone."""
    grad = np.zeros_like(z)
    for i in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[i] += d
        down[i] -= d
        grad[i] = (loss(up) - loss(down)) / (2 * d)
    return grad


# ---- functions ----


def test_ce_is_torchs():
    z = logits(3, 2, 5)
    got = losses.ce(z, Y)
    assert got.shape == (3,)
    want = torch.stack([F.cross_entropy(one, Y) for one in z])
    assert torch.allclose(got, want, rtol=1e-12)
    assert torch.allclose(losses.ce(z[0], Y), F.cross_entropy(z[0], Y), rtol=1e-12)


def test_weighted_ce_is_torchs():
    z, weights = logits(3, 2, 5), torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    got = losses.ce(z, Y, weights)
    want = torch.stack([F.cross_entropy(one, Y, weights) for one in z])
    assert torch.allclose(got, want, rtol=1e-12)
    assert torch.allclose(losses.ce(z[0], Y, weights), F.cross_entropy(z[0], Y, weights))
    even = losses.ce(z, Y, torch.full((5,), 7.0, dtype=torch.float64))
    assert torch.allclose(even, losses.ce(z, Y), rtol=1e-12)


def test_kl_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]], dtype=torch.float64)
    assert losses.kl(p, q.log()).item() == pytest.approx((0.5 * math.log(2) + math.log(2)) / 2)


def test_kl_of_zeros_has_finite_gradients():
    z = torch.tensor([[0.0, -2000.0, 1.0]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    losses.kl(F.softmax(z, -1), q.log()).backward()
    assert torch.isfinite(z.grad).all() and z.grad.abs().max() > 0
    z.grad = None
    H = losses.entropy(F.softmax(z, -1))
    H.sum().backward()
    assert torch.isfinite(z.grad).all() and H.item() == pytest.approx(0.5822, abs=1e-4)


def test_kl_T_by_hand():
    z_s, z_t = logits(2, 4), logits(2, 4, seed=1)
    s, t = z_s.detach().numpy(), z_t.detach().numpy()
    want = 9 * kl(softmax(t / 3), softmax(s / 3))
    assert losses.kl_T(z_s, z_t, 3.0).item() == pytest.approx(want, rel=1e-12)
    p, q = softmax(t / 3) + EPS, softmax(s / 3)  # not renormalised
    assert losses.kl_T(z_s, z_t, 3.0, EPS).item() == pytest.approx(9 * kl(p, q), rel=1e-12)
    assert losses.kl_T(z_s, z_s, 3.0).item() == pytest.approx(0, abs=1e-15)


def test_entropy_by_hand():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert losses.entropy(p).tolist() == pytest.approx([0, math.log(2)])


def test_others_by_hand():
    z = torch.tensor([[[1.0, 5.0]], [[3.0, 2.0]], [[5.0, -1.0]]])
    assert losses.others_mean(z).tolist() == [[[4.0, 0.5]], [[3.0, 2.0]], [[2.0, 3.5]]]
    assert losses.others_max(z).tolist() == [[[5.0, 2.0]], [[5.0, 5.0]], [[3.0, 5.0]]]
    for f in (losses.others_mean, losses.others_max):  # of two: the other
        assert f(z[:2]).tolist() == z[:2].flip(0).tolist()


def test_others_max_passes_gradient_to_the_largest_other():
    z = torch.tensor([[[1.0, 5.0]], [[3.0, 2.0]], [[5.0, -1.0]]], requires_grad=True)
    losses.others_max(z)[0].sum().backward()
    assert z.grad.tolist() == [[[0, 0]], [[0, 1]], [[1, 0]]]


def test_scale_grad():
    x = torch.ones(3, requires_grad=True)
    y = losses.scale_grad(x, 0.25)
    y.backward(torch.tensor([1.0, 2.0, 4.0]))
    assert y.tolist() == [1, 1, 1] and x.grad.tolist() == [0.25, 0.5, 1.0]


def test_rampup_ends():
    assert losses.rampup(0, 80) == pytest.approx(math.exp(-5))
    assert losses.rampup(40, 80) == pytest.approx(math.exp(-1.25))
    assert losses.rampup(80, 80) == losses.rampup(300, 80) == 1
    assert losses.rampup(-3, 80) == losses.rampup(0, 80)
    assert losses.rampup(0, 0) == 1
    assert OKDDip().ramp(0, 300) == pytest.approx(math.exp(-5)) and OKDDip().ramp(80, 300) == 1
    assert OKDDip(rampup=0.0).ramp(0, 300) == DML().ramp(0, 300) == 1


# ---- OKDDip ----


def okddip(cls=OKDDip, n=4, seed=0, **fields):
    """(method, logits, pooled features, terms) on a batch of 2 images and 5 classes."""
    torch.manual_seed(seed)
    method, z, h = cls(m=n, **fields), logits(n, 2, 5), logits(n, 2, 16, seed=7)
    method.build(Probe(out(z, h), None, 5, Y))
    method.double()
    t = out(logits(2, 5, seed=9).detach()) if cls.needs_teacher else None
    return method, z, h, method.terms(out(z, h), Y, t, step())


def reference(method, z, h, A=None):
    """peers and leader terms from plain numpy; A (B, n, n) where it is not the learned one."""
    z, h, n, T = z.detach().numpy(), h.detach().numpy(), method.peers(), method.T
    if A is None:
        Wq, Wk = method.Wq.weight.detach().numpy(), method.Wk.weight.detach().numpy()
        A = softmax(np.stack([(h[:n, b] @ Wq.T) @ (h[:n, b] @ Wk.T).T for b in range(2)]))
    peers, leader = 0.0, 0.0
    q = softmax(z / T)
    for a in range(n):
        mixed = np.stack(
            [
                softmax((A[b, a] @ z[:n, b]) / T)
                if method.aggregate == "logits"
                else A[b, a] @ q[:n, b]
                for b in range(2)
            ]
        )
        peers += T**2 * kl_eps(mixed, q[a])
    if method.two_level:
        mean = softmax(z[:n].mean(0) / T) if method.aggregate == "logits" else q[:n].mean(0)
        leader = T**2 * kl_eps(mean, q[n])
    return peers, leader


def kl_eps(p, q):
    return kl(p + EPS, q)


@pytest.mark.parametrize("aggregate", ["logits", "probs"])
@pytest.mark.parametrize("two_level", [True, False])
def test_okddip_aggregates(aggregate, two_level):
    method, z, h, terms = okddip(aggregate=aggregate, two_level=two_level)
    peers, leader = reference(method, z, h)
    assert terms["peers"].item() == pytest.approx(peers, rel=1e-10)
    assert set(terms) == set(method.weights())
    assert ("leader" in terms) == two_level
    n = 3 if two_level else 4
    assert terms["ce"].item() == pytest.approx(sum(F.cross_entropy(v, Y).item() for v in z[:n]))
    if two_level:
        assert terms["leader"].item() == pytest.approx(leader, rel=1e-10)
        assert terms["ce_leader"].item() == pytest.approx(F.cross_entropy(z[3], Y).item())


@pytest.mark.parametrize("aggregate", ["logits", "probs"])
def test_okddip_detach_makes_targets_constant(aggregate):
    method, z, h, terms = okddip(aggregate=aggregate, detach=True)
    _, _, _, free = okddip(aggregate=aggregate)
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in free.items()}
    given = (z, h, method.Wq.weight, method.Wk.weight)
    dz, *none = torch.autograd.grad(terms["leader"], given, retain_graph=True, allow_unused=True)
    assert none == [None] * 3 and (dz[:3] == 0).all() and dz[3].abs().max() > 0
    dz, *none = torch.autograd.grad(terms["peers"], given, allow_unused=True)
    assert none == [None] * 3 and (dz[3] == 0).all()
    # each peer alone against its fixed target: T/B (softmax(z/T) sum(q') - q'), q' = q + eps
    T, q = method.T, F.softmax(z.detach() / method.T, -1)
    A = method.seen["attention"]
    assert torch.allclose(A.sum(-1), torch.ones(3, dtype=torch.float64))
    for a in range(3):
        assert dz[a].sum(-1).abs().max() < 1e-12  # a softmax's gradient
        assert (dz[a].abs() < T / 2).all() and q[a].min() > 0


@pytest.mark.parametrize(
    "attention, A",
    [
        ("mean", np.full((2, 3, 3), 1 / 3)),
        ("symmetric", None),
        ("random", None),
    ],
)
def test_okddip_ablated_attention(attention, A):
    method, z, h, terms = okddip(attention=attention)
    assert list(method.parameters()) == []
    if attention == "symmetric":
        f = h.detach().numpy()[:3]
        A = softmax(np.einsum("abd,cbd->bac", f, f))
    if attention == "random":
        U = torch.rand(2, 3, 3, generator=step().generator).double().numpy()
        A = U / U.sum(-1, keepdims=True)
    peers, leader = reference(method, z, h, A)
    assert terms["peers"].item() == pytest.approx(peers, rel=1e-6)  # drawn in float32
    assert terms["leader"].item() == pytest.approx(leader, rel=1e-10)
    assert np.allclose(method.seen["attention"], A.mean(0), rtol=1e-6)


def test_okddip_random_draws_from_the_step_alone():
    method, z, h, _ = okddip(attention="random")

    def draw(seed):
        method.terms(out(z, h), Y, None, step(seed))
        return method.seen["attention"]

    torch.manual_seed(0)
    state, first = torch.get_rng_state(), draw(1)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is untouched
    torch.manual_seed(99)
    assert torch.equal(first, draw(1)) and not torch.equal(first, draw(2))
    assert torch.allclose(first.sum(-1), torch.ones(3, dtype=torch.float64))
    shared = step(1)
    rows = [method.terms(out(z, h), Y, None, shared)["peers"].item() for _ in range(2)]
    assert rows[0] != rows[1]  # drawn anew each time


@pytest.mark.parametrize("sign", ["+", "-"])
def test_okddip_entropy(sign):
    method, z, h, terms = okddip(attention="entropy", entropy_sign=sign)
    q = softmax(z.detach().numpy()[:3] / 3)
    H = -(q * np.log(q)).sum(-1).mean(-1).sum()
    assert terms["peers"].item() == pytest.approx((9 if sign == "+" else -9) * H, rel=1e-10)
    assert torch.equal(method.seen["attention"], torch.eye(3, dtype=torch.float64))


def test_okddip_alpha_scales_both_levels():
    assert OKDDip(alpha=0.5).weights() == {"ce": 1, "peers": 0.5, "ce_leader": 1, "leader": 0.5}
    assert OKDDip(alpha=0.5, two_level=False).weights() == {"ce": 1, "peers": 0.5}


def test_okddip_with_a_teacher():
    method, z, _, terms = okddip(OKDDipKD, beta=0.5)
    _, _, _, plain = okddip()
    (extra,) = set(terms) - set(plain)
    assert all(terms[k].item() == v.item() for k, v in plain.items())
    t = softmax(logits(2, 5, seed=9).detach().numpy() / 3)
    want = sum(9 * kl_eps(t, softmax(v / 3)) for v in z.detach().numpy())
    assert terms[extra].item() == pytest.approx(want, rel=1e-10)
    assert method.weights()[extra] == 0.5 and extra not in method.ramped


# ---- DML, ONE ----


@pytest.mark.parametrize("pairwise", [True, False])
def test_dml_paper_form(pairwise):
    """T = 1 and constant targets: for two networks the paper's loss, but for eps."""
    z = logits(2, 2, 4)
    method = DML(m=2, T=1.0, detach=True, pairwise=pairwise)
    terms = method.terms(out(z), Y, None, step())
    p = softmax(z.detach().numpy())
    want = kl_eps(p[1], p[0]) + kl_eps(p[0], p[1])
    assert terms["mutual"].item() == pytest.approx(want, rel=1e-10)
    (grad,) = torch.autograd.grad(terms["mutual"], z)
    for i in (0, 1):  # (softmax(z_i) sum(target) - target) / B
        target = p[1 - i] + EPS
        assert np.allclose(grad[i], (p[i] * target.sum(-1, keepdims=True) - target) / 2, rtol=1e-9)


@pytest.mark.parametrize("pairwise", [True, False])
def test_dml_of_three_against_differences(pairwise):
    z = logits(3, 2, 4)

    def mutual(v, fixed=None):
        t = v if fixed is None else fixed
        if pairwise:
            return sum(
                4 * kl_eps(softmax(t[j] / 2), softmax(v[i] / 2)) / 2
                for i in range(3)
                for j in range(3)
                if i != j
            )
        return sum(4 * kl_eps(softmax((t.sum(0) - t[i]) / 4), softmax(v[i] / 2)) for i in range(3))

    for detach in (False, True):
        method = DML(m=3, T=2.0, pairwise=pairwise, detach=detach)
        got = method.terms(out(z), Y, None, step())["mutual"]
        v = z.detach().numpy()
        assert got.item() == pytest.approx(mutual(v), rel=1e-10)
        want = slope(lambda x, d=detach, v=v: mutual(x, v if d else None), v)
        assert np.allclose(torch.autograd.grad(got, z)[0], want, atol=1e-7)


def test_one_detach_stops_the_target_only():
    def run(detach):
        torch.manual_seed(0)
        z, f = logits(3, 2, 5), logits(2, 6, 2, 2, seed=3)
        method, s = ONE(m=3, detach=detach), out(z, None, (f,))
        method.build(Probe(s, None, 5, Y))
        method.double()
        return method, z, f, method.terms(s, Y, None, step())

    (free, _, _, t0), (method, z, f, terms) = run(False), run(True)
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in t0.items()}
    gate = method.fc.weight
    assert torch.autograd.grad(t0["ensemble"], free.fc.weight)[0].abs().max() > 0
    dz, *none = torch.autograd.grad(
        terms["ensemble"], (z, gate, f), retain_graph=True, allow_unused=True
    )
    assert none == [None, None]
    g = F.softmax(F.relu(method.bn(method.fc(f.mean((2, 3))))), -1).detach()  # (B, m)
    z_e = torch.einsum("bm,mbk->bk", g, z.detach())
    target = F.softmax(z_e / 3, -1) + EPS
    want = 3 * (F.softmax(z.detach() / 3, -1) * target.sum(-1, keepdim=True) - target) / 2
    assert torch.allclose(dz, want, rtol=1e-8)
    assert torch.autograd.grad(terms["ce_ensemble"], gate)[0].abs().max() > 0  # still learns


# ---- DCKD ----


def dckd_reference(z, t, y, fixed, collection, reverse, T, tau, a, b, c):
    """DCKD's loss in numpy; `fixed`: the logits that collections are made of, if constant."""
    loss, w = 0.0, z if fixed is None else fixed
    for k in range(len(z)):
        rest = np.stack([w[j] for j in range(len(z)) if j != k])
        if collection == "pmax":
            rest = np.log(softmax(rest))
        m = rest.mean(0) if collection == "avg" else rest.max(0)
        ce = -np.log(softmax(z[k])[np.arange(len(y)), y]).mean()
        p, q = softmax(z[k] / tau), softmax(m / tau)
        loss += a * ce + b * T**2 * kl(softmax(t / T), softmax(z[k] / T))
        loss += c * tau**2 * (kl(p, q) if reverse else kl(q, p))
    return loss


@pytest.mark.parametrize("collection", ["lmax", "pmax", "avg"])
@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_dckd_against_differences(collection, reverse, detach):
    z, t = logits(3, 2, 4, seed=1), logits(2, 4, seed=2).detach()
    method = DCKD(
        m=3,
        T=3.0,
        tau=1.5,
        alpha=0.3,
        beta=0.7,
        gamma=1.1,
        collection=collection,
        reverse=reverse,
        detach_collection=detach,
    )
    terms, weights = method.terms(out(z), Y, out(t), step()), method.weights()
    assert set(terms) == set(weights)
    loss = sum(weights[k] * v for k, v in terms.items())
    v = z.detach().numpy()

    def want(x):
        fixed = v if detach else None
        return dckd_reference(
            x, t.numpy(), Y.numpy(), fixed, collection, reverse, 3, 1.5, 0.3, 0.7, 1.1
        )

    assert loss.item() == pytest.approx(want(v), rel=1e-10)
    assert np.allclose(torch.autograd.grad(loss, z)[0], slope(want, v), atol=1e-7)


def test_dckd_of_two_collects_the_other():
    z = logits(2, 2, 4)
    for collection in ("lmax", "avg"):
        assert torch.allclose(DCKD(m=2, collection=collection).collect(z), z.flip(0), rtol=1e-12)


def test_teacher_runs():
    run = preset(
        "lesson",
        method="edckd",
        m=4,
        collection="avg",
        seed=3,
        student="resnet14",
        teacher="resnet20",
        teacher_seed=5,
    )
    first = plan(run).teacher.run
    assert (first.method, first.seed, first.student) == ("dckd", 5, "resnet14")
    assert dict(first.params) == {"m": 4, "collection": "avg"}
    plain = plan(run).teacher.teacher.run
    assert (plain.method, plain.student, plain.seed) == ("baseline", "resnet20", 5)
    assert plain.params == () and plan(first).teacher.run == plain == plan(plain).run
    alone = run.replace(method="ensembled_student", params=(("T", 2.0),))
    group = plan(alone).teacher.run
    assert (group.method, group.seed, group.student) == ("dckd", 5, "resnet14")
    assert "T" not in dict(group.params)
    assert plan(preset("lesson", method="okddip")).teacher is None
    taught = preset("lesson", method="kd", student="resnet8", teacher="resnet14")
    assert plan(taught).teacher.run.student == "resnet14"


def test_ensembled_student_is_kd_with_dckds_weights():
    z, t = logits(2, 4), logits(2, 4, seed=1).detach()
    ours, kd = EnsembledStudent(), KD(r=1.0, alpha=1.0)
    assert ours.weights() == kd.weights()
    a, b = (m.terms(out(z), Y, out(t), step()) for m in (ours, kd))
    assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in b.items()}


# ---- metrics ----


def test_top_and_ties():
    z = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])
    assert metrics.top(z, np.array([0, 2, 0])) == pytest.approx(2 / 3)  # ties: the lower index
    assert metrics.top(z, np.array([1, 2, 2]), k=2) == 1
    assert metrics.top(np.stack([z, -z]), np.array([0, 1, 0])).tolist() == pytest.approx([1, 0])


def test_ensembles_differ_in_what_is_averaged():
    z = np.array([[[4.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 3.5, 0.0]]])
    assert metrics.ensemble(z).tolist() == [[4 / 3, 1.5, 0]]
    assert np.allclose(metrics.ensemble(z, of="probs"), metrics.softmax(z).mean(0))
    with pytest.raises(ValueError, match="logits or probs"):
        metrics.ensemble(z, of="votes")


def test_diversity_by_hand():
    big = 50.0
    z = big * np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]])  # one-hot predictions
    d = metrics.pair_distance(z)
    r = math.sqrt(2)
    assert np.allclose(d, [[0, r, 0], [r, 0, r], [0, r, 0]])
    assert metrics.diversity(z) == pytest.approx(2 * r / 3)
    assert math.isnan(metrics.diversity(z[:1]))


def test_correlation_number_and_entropy():
    p = np.array([[1.0, 0, 0, 0], [0.25] * 4, [0.4, 0.3, 0.2, 0.1]])
    assert metrics.correlation_number(p).tolist() == [1, 0, 2]
    assert metrics.correlation_number(p, threshold=0.15).tolist() == [1, 4, 3]
    assert metrics.entropy(p)[:2].tolist() == pytest.approx([0, math.log(4)])


def test_softmax_of_large_logits():
    assert metrics.softmax([[1000.0, 0.0]]).tolist() == [[1, 0]]
    assert np.allclose(
        metrics.softmax([[2.0, 0.0]], T=2), [[math.e / (1 + math.e), 1 / (1 + math.e)]]
    )


def test_calibration_error_by_hand():
    p = np.array([[0.95, 0.05], [0.85, 0.15], [0.55, 0.45], [0.6, 0.4]])
    y = np.array([0, 1, 0, 0])
    # ten bins: (.9, 1] .95 right; (.8, .9] .85 wrong; (.5, .6] .55 and .6, both right
    want = (abs(0.95 - 1) + abs(0.85 - 0) + abs(1.15 - 2)) / 4
    assert metrics.calibration_error(p, y, bins=10) == pytest.approx(want)
    assert metrics.calibration_error(np.eye(3), np.arange(3)) == 0


def test_summary_and_paired():
    assert statistics.summary([1, 2, 3]) == (3, 2.0, 1.0)
    n, mean, std = statistics.summary([5.0])
    assert (n, mean) == (1, 5.0) and math.isnan(std)
    n, mean, half = statistics.paired([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])  # differences 1, 2, 3
    assert (n, mean) == (3, 2.0) and half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(statistics.paired([1.0], [2.0])[2])
