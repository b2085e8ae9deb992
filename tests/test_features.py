"""Feature distillation (FitNet, AT, FT, OFD, ReviewKD) where no vector of other code covers it."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdkit.losses import attention_map, map_difference
from kdkit.methods import AT, FT, OFD, FitNet, Probe, ReviewKD, Step
from kdkit.methods.hints import regressor
from kdkit.methods.ofd import margin, partial_l2
from kdkit.methods.review import ABF, hcl
from kdkit.models import Out, build
from kdkit.study.papers import cells
from kdkit.study.plans import plan, preset

METHODS = [FitNet, AT, FT, OFD, ReviewKD]
STEP = Step(torch.arange(4), 1, 20, torch.Generator())
TABLES = cells("dckd").query("method == 'reviewkd' and table in ('2', '3')")
PAIRS = sorted(set(zip(TABLES["teacher"], TABLES["student"], strict=True)))


def pair(teacher="resnet8", student="resnet8_w0.5", shape=(1, 20, 20), B=4):
    """(student's network, its Out, the teacher's Out, labels, probe)."""
    s_net = build(student, shape[0], 10)
    t_net = build(teacher, shape[0], 10).eval().requires_grad_(False)
    x, y = torch.randn(B, *shape), torch.arange(B) % 10
    with torch.no_grad():
        t = t_net(x)
    s = s_net(x)
    return s_net, s, t, y, Probe(s, t, 10, y, t_net)


def lone(*maps, D=3):
    """An Out of these maps f1..fn, without a stem of interest; they are pre-activations as well."""
    B = len(maps[0])
    return Out(torch.zeros(B, 10), (maps[0], *maps), (maps[0], *maps), torch.zeros(B, D))


# ---- shapes ----


def test_the_tables_have_thirteen_pairs():
    assert len(PAIRS) == 13


@pytest.mark.parametrize(
    "teacher, student, shape",
    [
        *((t, s, (3, 32, 32)) for t, s in PAIRS),
        ("resnet8", "resnet8_w0.5", (1, 20, 20)),
        ("resnet34_imagenet", "resnet18_imagenet", (3, 224, 224)),
    ],
    ids=str,
)
def test_every_pair_of_the_papers_works(teacher, student, shape):
    """Shapes alone, so nothing is computed: layers are made from the probe and get a gradient."""
    with torch.device("meta"):
        with torch.no_grad():
            _, s, t, y, probe = pair(teacher, student, shape)
        for cls in METHODS:
            f, pre = ([f.detach().requires_grad_() for f in maps] for maps in (s.feats, s.preacts))
            method = cls()
            method.build(probe)
            s_ = s._replace(feats=tuple(f), preacts=tuple(pre))
            term = method.terms(s_, y, t, STEP)[list(method.weights())[1]]
            assert term.shape == ()
            term.backward()
            used = {FitNet: f[2:3], FT: f[-1:], OFD: pre[1:]}.get(cls, f[1:])
            assert all(v.grad.shape == v.shape for v in used)
            assert sum(v.grad is not None for v in (*f, *pre)) == len(used)  # and no other
            frozen = {
                k for k, v in method.named_children() if any(p.grad is None for p in v.parameters())
            }
            assert frozen == ({"encoder", "decoder"} if cls is FT else set())


@pytest.mark.parametrize("cls", METHODS)
def test_maps_in_half_precision_come_in(cls):
    """As autocast hands them out: bf16 maps, float32 logits; the loss is float32."""
    torch.manual_seed(0)
    _, s, t, y, probe = pair()
    method = cls()
    method.build(probe)
    exact = method.terms(s, y, t, STEP)

    def rounded(o, grad=False):
        feats, preacts = (
            [f.detach().bfloat16().requires_grad_(grad) for f in maps]
            for maps in (o.feats, o.preacts)
        )
        return o._replace(feats=tuple(feats), preacts=tuple(preacts))

    s = rounded(s, grad=True)
    terms = method.terms(s, y, rounded(t), STEP)
    for k, v in terms.items():
        assert v.dtype == torch.float32
        torch.testing.assert_close(v, exact[k], rtol=0.02, atol=0)
    sum(terms.values()).backward()
    seen = [f.grad for f in (*s.feats, *s.preacts) if f.grad is not None]
    assert seen and all(g.dtype == torch.bfloat16 and g.any() for g in seen)


@pytest.mark.parametrize("cls", [AT, OFD, ReviewKD])
def test_unequal_numbers_of_stages_are_refused(cls):
    f = torch.randn(2, 3, 4, 4)
    s, t = lone(f, f), lone(f, f, f)
    with pytest.raises(ValueError, match="equally many .* these have (2 and 3|3 and 4)$") as error:
        method = cls()
        method.build(Probe(s, t, 10, None))
        method.terms(s, torch.zeros(2, dtype=torch.int64), t, STEP)
    assert "\n" not in str(error.value)


# ---- FitNet ----


@pytest.mark.parametrize(
    "s, t, kind, kernel",
    [
        ((8, 8), (8, 8), nn.Conv2d, (1, 1)),
        ((8, 8), (4, 4), nn.Conv2d, (3, 3)),
        ((14, 14), (7, 7), nn.Conv2d, (3, 3)),
        ((4, 4), (8, 8), nn.ConvTranspose2d, (4, 4)),
        ((7, 7), (14, 14), nn.ConvTranspose2d, (4, 4)),
        ((7, 7), (4, 4), nn.Conv2d, (4, 4)),
        ((16, 16), (4, 4), nn.Conv2d, (13, 13)),
        ((6, 9), (4, 4), nn.Conv2d, (3, 6)),
    ],
)
def test_regressor_follows_from_the_sizes(s, t, kind, kernel):
    f_s, f_t = torch.randn(2, 3, *s), torch.randn(2, 5, *t)
    layers = regressor(f_s, f_t)
    assert type(layers[0]) is kind and layers[0].kernel_size == kernel
    assert layers[0].bias is not None and layers(f_s).shape == f_t.shape


@pytest.mark.parametrize("s, t", [((4, 4), (5, 5)), ((4, 4), (16, 16)), ((8, 4), (4, 8))])
def test_no_regressor_for_other_sizes(s, t):
    with pytest.raises(ValueError) as error:
        regressor(torch.zeros(2, 3, *s), torch.zeros(2, 5, *t))
    message = str(error.value)
    assert f"{s[0]}x{s[1]}" in message and f"{t[0]}x{t[1]}" in message and "\n" not in message


def test_fitnet_takes_the_layer_that_is_asked_for():
    _, s, t, y, probe = pair()
    for i in range(4):
        method = FitNet(layer=i)
        method.build(probe)
        want = (method.regressor(s.feats[i]) - t.feats[i]).square().mean()
        torch.testing.assert_close(method.terms(s, y, t, STEP)["hint"], want)
    with pytest.raises(ValueError, match="layer 4: .*known: 0, 1, 2, 3$"):
        FitNet(layer=4).build(probe)


# ---- AT ----


def test_attention_map_by_hand():
    f = torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])  # (1, 2, 1, 2); mean squares: 4.5 and 2
    norm = math.hypot(4.5, 2)
    torch.testing.assert_close(attention_map(f), torch.tensor([[4.5 / norm, 2 / norm]]))
    dead = torch.zeros(1, 2, 1, 2, requires_grad=True)
    attention_map(dead).sum().backward()
    assert not attention_map(dead).any() and not dead.grad.any()  # not nan


def test_the_larger_map_is_pooled_before_squaring():
    large = torch.tensor([[[[1.0, -1.0, 2.0, 2.0]] * 2]])  # (1, 1, 2, 4): pooled to 0 and 2
    small = torch.tensor([[[[3.0, 4.0]]]])  # (1, 1, 1, 2)
    want = torch.tensor([[0.0, 1.0]]) - torch.tensor([[9.0, 16.0]]) / math.hypot(9, 16)
    torch.testing.assert_close(map_difference(large, small), want)
    torch.testing.assert_close(map_difference(small, large), -want)


def test_at_sums_the_stages_without_the_stem():
    _, s, t, y, _ = pair()
    diffs = [attention_map(f) - attention_map(g) for f, g in zip(s.feats, t.feats, strict=True)]
    want = sum(d.square().mean() for d in diffs[1:])
    torch.testing.assert_close(AT().terms(s, y, t, STEP)["attention"], want)


# ---- FT ----


def test_ft_learns_its_paraphraser_and_then_leaves_it():
    torch.manual_seed(0)
    net, s, t, y, probe = pair(B=8)
    method = FT()
    method.build(probe)
    optimizer = torch.optim.SGD(
        [*net.parameters(), *method.parameters()], 0.1, 0.9, weight_decay=5e-4, nesterov=True
    )

    def step(loss):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        before = {k: v.clone() for k, v in method.state_dict().items()}
        optimizer.step()
        after = method.state_dict()
        return {k.partition(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}

    losses = []
    for _ in range(60):
        first = method.pretrain_terms(t, y, STEP._replace(epoch=-1))
        assert set(first) == {"reconstruction"}
        losses.append(first["reconstruction"].item())
        assert step(sum(first.values())) == {"encoder", "decoder"}
    assert losses[-1] < 0.7 * losses[0]
    terms = method.terms(s, y, t, STEP)
    assert step(terms["ce"] + terms["factor"]) == {"translator"}  # neither decay nor momentum


def test_ft_first_stage_is_a_fraction_of_the_epochs():
    assert [FT().pretrain_epochs(n) for n in (240, 20, 3, 1)] == [30, 2, 1, 1]
    assert FT(first=0).pretrain_epochs(240) == 0
    paper = plan(preset("dckd_paper", method="ft")).method
    assert paper.pretrain_epochs(930) == 30
    rate = {
        s: plan(preset("lesson", method="ft", student=s)).method.pretrain_rate(0.05)
        for s in ("resnet20", "wrn_16_2", "vgg8", "mobilenetv2")
    }
    assert rate == {"resnet20": 0.01, "wrn_16_2": 0.01, "vgg8": 0.05, "mobilenetv2": 0.05}


@pytest.mark.parametrize("k, width", [(0.5, 32), (0.25, 16), (0.001, 1), (2.0, 128)])
def test_ft_factor_has_the_width_k(k, width):
    _, s, t, y, probe = pair()
    method = FT(k=k)
    method.build(probe)
    assert method.encoder(t.feats[-1]).shape == (4, width, 5, 5)
    assert method.translator(s.feats[-1]).shape == (4, width, 5, 5)
    assert method.decoder(method.encoder(t.feats[-1])).shape == t.feats[-1].shape


# ---- OFD ----


def norm(gamma, beta):
    """A batch norm with these parameters."""
    bn = nn.BatchNorm2d(len(gamma))
    bn.load_state_dict({"weight": torch.tensor(gamma), "bias": torch.tensor(beta)}, strict=False)
    return bn


def below_zero(gamma, beta):
    """E[x | x < 0] of N(beta, gamma^2), by summing over a grid."""
    x = torch.linspace(beta - 12 * abs(gamma), 0, 200_001, dtype=torch.float64)
    p = torch.exp(-((x - beta) / gamma).square() / 2)
    return ((x * p).sum() / p.sum()).item()


def test_margin_is_the_mean_below_zero():
    pairs = [(1.0, 0.0), (2.0, 1.0), (0.5, -1.0), (-1.5, 0.3), (1.0, 3.0)]
    got = margin(norm(*map(list, zip(*pairs, strict=True))))
    want = torch.tensor([below_zero(*p) for p in pairs])
    torch.testing.assert_close(got, want, rtol=1e-3, atol=0)
    assert abs(got[0] + math.sqrt(2 / math.pi)) < 1e-6


def test_margin_of_channels_that_hardly_go_below_zero():
    """P(x < 0) is .00135 at beta = 3 gamma and .00097 at 3.1 gamma."""
    got = margin(norm([1.0, 2.0, -2.0, 0.0, 0.0, 0.0], [3.1, 20.0, 20.0, 1.0, 0.0, -1.0]))
    assert got.tolist() == [-3.0, -6.0, -6.0, 0.0, 0.0, -1.0]  # gamma = 0: always beta


def test_partial_l2_by_hand():
    s = torch.tensor([[-3.0, 1.0, -1.5, -3.0, 5.0], [0.0, 0.0, 0.0, 0.0, 0.0]]).view(2, 5, 1, 1)
    t = torch.tensor([[-9.0, -9.0, -1.0, 2.0, 3.0], [-9.0, -9.0, -9.0, -9.0, 0.5]]).view(2, 5, 1, 1)
    m = torch.tensor([-2.0, -2.0, -2.0, -2.0, -2.0]).view(5, 1, 1)
    # image 1: below the margin, above it (1 + 2)^2, below a target that is not above 0, (-3 - 2)^2,
    # (5 - 3)^2; image 2: four times (0 + 2)^2, and .5^2
    assert partial_l2(s, t, m).item() == (0 + 9 + 0 + 25 + 4 + 4 * 4 + 0.25) / 2


def test_ofd_takes_its_margins_from_the_teacher():
    _, s, t, y, probe = pair()
    for bn in probe.teacher.stage_bns():
        nn.init.normal_(bn.weight), nn.init.normal_(bn.bias)
    method = OFD()
    method.build(probe)
    want = [margin(bn) for bn in probe.teacher.stage_bns()]
    assert len(want) == 3
    for layers, m in zip(method.connectors, want, strict=True):
        assert torch.equal(layers.margin.flatten(), m) and not layers.margin.requires_grad
        assert layers[0].bias is None
    assert {f"connectors.{i}.margin" for i in range(3)} <= set(method.state_dict())


def test_ofd_halves_each_earlier_stage_and_pools_the_teacher():
    bns = [norm([1.0], [0.0]) for _ in range(3)]
    teacher = SimpleNamespace(stage_bns=lambda: bns)
    sizes = 8, 4, 2
    s = lone(*(torch.randn(2, 1, n, n) for n in sizes))
    large = lone(*(torch.randn(2, 1, 2 * n, 2 * n) for n in sizes))
    method = OFD()
    method.build(Probe(s, large, 10, None, teacher))
    pooled = [
        f.unflatten(2, (n, 2)).unflatten(4, (n, 2)).mean((3, 5))  # (2, 1, n, n)
        for f, n in zip(large.preacts[1:], sizes, strict=True)
    ]
    each = [
        partial_l2(layers(f), g, layers.margin)
        for layers, f, g in zip(method.connectors, s.preacts[1:], pooled, strict=True)
    ]
    got = method.terms(s, torch.zeros(2, dtype=torch.int64), large, STEP)["maps"]
    torch.testing.assert_close(got, each[0] / 4 + each[1] / 2 + each[2])


# ---- ReviewKD ----


def test_reviewkd_warms_up_from_nothing():
    method = ReviewKD()
    assert [method.ramp(e, 240) for e in (0, 5, 10, 20, 21, 239)] == [0, 0.25, 0.5, 1, 1, 1]
    assert [method.ramp(e, 24) for e in (0, 1, 2, 23)] == [0, 0.5, 1, 1]
    assert ReviewKD(warmup=0).ramp(0, 240) == 1
    assert method.ramped == ("review",)


def test_reviewkd_weighs_each_pair_as_its_authors_do():
    weight = {
        p: plan(preset("dckd_paper", method="reviewkd", teacher=p[0], student=p[1])).method.beta
        for p in PAIRS
    }
    assert weight == {
        ("wrn_40_2", "wrn_16_2"): 5,
        ("wrn_40_2", "wrn_40_1"): 5,
        ("wrn_40_2", "shufflenetv1"): 5,
        ("resnet32x4", "resnet8x4"): 5,
        ("resnet32x4", "shufflenetv1"): 5,
        ("resnet32x4", "shufflenetv2"): 8,
        ("resnet56", "resnet20"): 0.6,
        ("resnet110", "resnet32"): 1,
        ("resnet110", "resnet20"): 0.6,
        ("vgg13", "vgg8"): 5,
        ("resnet50", "vgg8"): 5,
        ("vgg13", "mobilenetv2"): 30,
        ("resnet50", "mobilenetv2"): 30,
    }
    mine = preset("dckd_paper", method="reviewkd", teacher="wrn_40_2", student="wrn_16_2", beta=2)
    mine = plan(mine)
    assert mine.method.beta == 2 and dict(mine.run.params)["beta"] == 2
    assert ReviewKD().beta == 1 and mine.method.ramp(20, 930) == 1 > mine.method.ramp(19, 930)


def test_imagenet_has_its_own_values():
    run = preset("dckd_paper", epochs=210, teacher="resnet34_imagenet", student="resnet18_imagenet")
    review, ofd = (plan(run.replace(method=name)).method for name in ("reviewkd", "ofd"))
    assert (review.beta, review.preact, ofd.beta) == (1.0, True, 1e-4)
    assert (review.ramp(0, 210), review.ramp(1, 210)) == (0, 1)
    assert (ReviewKD().preact, OFD().beta) == (False, 1e-3)


def test_reviewkd_goes_from_coarse_to_fine():
    _, s, t, y, probe = pair("resnet50", "mobilenetv2", (3, 32, 32))
    method = ReviewKD()
    method.build(probe)
    assert [abf.conv1[0].in_channels for abf in method.abfs] == [1280, 160, 48, 16, 12]
    assert [abf.conv2[0].out_channels for abf in method.abfs] == [2048, 2048, 1024, 512, 256]
    assert [abf.attention is None for abf in method.abfs] == [True, False, False, False, False]
    assert {abf.conv1[0].out_channels for abf in method.abfs} == {512}
    sizes = []
    for abf in method.abfs:
        abf.register_forward_hook(lambda layer, args, out: sizes.append(out[0].shape[2:].numel()))
    method.terms(s, y, t, STEP)
    assert sizes == [1, 4**2, 8**2, 16**2, 32**2]  # the teacher's


def test_reviewkd_takes_the_maps_that_it_is_told_to():
    _, s, t, y, probe = pair()
    for preact, name in ((False, "feats"), (True, "preacts")):
        method = ReviewKD(preact=preact)
        method.build(probe)
        f_s, f_t = zip(*method.levels(s, t), strict=True)
        assert f_s[0].shape == (4, 32, 1, 1) and f_t[0].shape == (4, 64, 1, 1)
        assert all(map(torch.equal, f_s[1:], getattr(s, name)[:0:-1]))
        assert all(map(torch.equal, f_t[1:], t.preacts[:0:-1]))


def test_fusion_by_hand():
    """With attention of 1/2 and 1x1 convolutions of 1 it halves the sum, then resizes."""
    abf = ABF(1, 1, 1, fuse=True).eval()  # batch norm does nothing before it has seen a batch
    nn.init.ones_(abf.conv1[0].weight)
    nn.init.zeros_(abf.attention.weight), nn.init.zeros_(abf.attention.bias)
    f, x = torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[[[10.0]]]])
    _, fused = abf(f, x, (4, 4))
    want = (torch.arange(4.0) + 10).view(2, 2).repeat_interleave(2, 0).repeat_interleave(2, 1) / 2
    torch.testing.assert_close(fused[0, 0], want, rtol=2e-5, atol=0)
    assert abf(f, x, (2, 2))[0].shape == (1, 1, 2, 2)


@pytest.mark.parametrize("size", [1, 2, 4, 7, 8])
def test_hcl_of_a_constant_difference_is_its_square(size):
    f = torch.zeros(2, 3, size, size)
    torch.testing.assert_close(hcl(f, f + 3), torch.tensor(9.0))


def test_hcl_by_hand():
    f, g = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]]])
    assert hcl(f, g).item() == pytest.approx((1 + 0.25 / 2) / 1.5)  # 1x1: mean .5, squared .25
