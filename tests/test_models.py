"""Networks, the registry, and groups of networks."""

import copy
import doctest
import importlib
import inspect
import io
from concurrent.futures import ThreadPoolExecutor
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from kdkit.models import (
    Branches,
    Net,
    Out,
    Peers,
    as_out,
    base,
    build,
    builder_of,
    count,
    list_models,
    network,
    wrap,
)
from kdkit.study.pretrained import pretrained

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

# parameters and multiply-adds of one 32x32x3 image, 100 classes
COUNTS = {
    "resnet8": (83_892, 12_507_392),
    "resnet20": (278_324, 40_818_944),
    "resnet32": (472_756, 69_130_496),
    "resnet110": (1_736_564, 253_155_584),
    "resnet110_bottleneck": (1_170_868, 167_453_696),
    "resnet18": (11_220_132, 555_468_800),
}
IMAGENET = [name for name in list_models() if name.endswith("_imagenet")]
SMALL = [name for name in list_models() if name not in IMAGENET]
FIXED = (
    "wrn_16_1 wrn_16_2 wrn_40_1 wrn_40_2 vgg8 vgg11 vgg13 vgg16 vgg19 vgg16_okddip "
    "densenet_40_12 mobilenetv2 shufflenetv1 shufflenetv2"
).split()
# OKDDip's five CIFAR networks and its ImageNet one, some of them thinner; a net that hands its
# pre-activations on
BRANCHED = [
    "resnet8",
    "resnet32",
    "resnet110_bottleneck_w0.5",
    "vgg16_okddip",
    "densenet_40_12",
    "wrn_20_8_bottleneck_w0.25",
    "resnet34_imagenet_w0.25",
    "wrn_16_1",
]


def nets(*names, c_in=3, classes=10):
    torch.manual_seed(0)
    return [build(name, c_in, classes) for name in names]


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    assert count(build(name), X[:1]) == COUNTS[name]


def test_count_depends_on_neither_batch_nor_mode():
    net = build("resnet8").train()
    mean = net.parts[0].bn.running_mean.clone()
    assert count(net, X) == count(net, X[:1])
    assert net.training and torch.equal(mean, net.parts[0].bn.running_mean)
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("name", [n for n in list_models() if n != "resnet110"])
@pytest.mark.parametrize("c_in, classes", [(3, 100), (1, 7)])
def test_contract(name, c_in, classes):
    """Shapes of every registered network, on images that it takes."""
    x = X[:2, :c_in]
    net = build(name, c_in, classes).eval()
    with torch.no_grad():
        o = net(x)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    assert o.logits.shape == (2, classes) and o.pooled.shape == (2, last.in_features)
    assert len(o.feats) == len(o.preacts) == len(net.parts)
    assert all(f.ndim == 4 and f.shape == p.shape for f, p in zip(o.feats, o.preacts, strict=True))
    sizes = [f.shape[-1] for f in o.feats]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < net.split < len(net.parts)


def test_features_are_preactivations_after_relu():
    with torch.no_grad():
        o = build("resnet8").eval()(X)
    assert o.feats[0] is o.preacts[0]  # the stem's
    for f, p in zip(o.feats[1:], o.preacts[1:], strict=True):
        assert torch.equal(f, p.relu()) and p.min() < 0
    assert torch.allclose(o.pooled, o.feats[-1].mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    "name, width",
    [("resnet14_w2", 128), ("resnet8_w0.5", 32), ("resnet8_w0.25", 16), ("resnet8_w1", 64)],
)
@pytest.mark.parametrize("size", [20, 28])
def test_width_of_grey_images(name, width, size):
    net = build(name, 1, 10)
    o = net(torch.zeros(2, 1, size, size))
    assert o.logits.shape == (2, 10) and o.pooled.shape == (2, width)
    assert [tuple(f.shape[1:]) for f in o.feats] == [
        (width // 4, size, size),
        (width // 4, size, size),
        (width // 2, size // 2, size // 2),
        (width, size // 4, size // 4),
    ]


def test_width_one_is_the_plain_network():
    assert count(build("resnet8_w1"), X[:1]) == COUNTS["resnet8"]


@pytest.mark.parametrize("name", SMALL)
def test_training_step_on_the_lessons_images(name):
    (net,) = nets(name, c_in=1)
    x = torch.randn(2, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    o = net.train()(x)
    o.logits.logsumexp(-1).sum().backward()
    assert o.logits.shape == (2, 10) and o.logits.isfinite().all() and o.pooled.ndim == 2
    for p in net.parameters():
        assert p.grad.isfinite().all() and p.grad.any()


def test_imagenet_networks_take_224_pixels():
    with torch.no_grad():
        o = build("resnet18_imagenet_w0.25", 3, 1000).eval()(torch.zeros(1, 3, 224, 224))
    assert [tuple(f.shape[1:]) for f in o.feats] == [
        (16, 56, 56),
        (16, 56, 56),
        (32, 28, 28),
        (64, 14, 14),
        (128, 7, 7),
    ]


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", [n for n in list_models() if n not in FIXED])
def test_resnets_take_a_width(name):
    thin, wide = (build(f"{name}_w{w}", 1, 10) for w in (0.125, 0.25))
    assert size(thin) < size(wide) and len(thin.parts) == len(wide.parts)


@pytest.mark.parametrize("name", FIXED)
def test_a_network_of_one_width_refuses_another(name):
    with pytest.raises(ValueError, match=f"{name}_w2.*takes no width; ResNets do") as error:
        build(f"{name}_w2")
    assert "\n" not in str(error.value) and size(build(name)) > 0


@pytest.mark.parametrize(
    "name, near",
    [
        ("resnet33", "resnet32"),
        ("resnet9", "resnet8"),
        ("resnet8_w", "resnet8"),
        ("resnet8_wide", "resnet8"),
        ("resnet8_w-1", "resnet8"),
        ("", "resnet8"),
        ("resnet8_w0", "resnet8"),
        ("resnet8_w0.01", "resnet8"),
        ("wrn_28_2", "wrn_16_2"),
        ("vgg8_w", "vgg8"),
        ("resnet8x5", "resnet8x4"),
        ("mobilenet", "mobilenetv2"),
    ],
)
def test_unknown_network(name, near):
    with pytest.raises(ValueError) as error:
        build(name)
    message = str(error.value)
    assert repr(name) in message and near in message and "\n" not in message


def test_same_seed_same_weights_and_nothing_else_drawn():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build("resnet8", 3, 10).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_gradient_reaches_every_parameter():
    (net,) = nets("resnet8")
    net(X).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_train_and_eval_differ_and_eval_is_per_image():
    (net,) = nets("resnet8")
    assert not torch.allclose(net.train()(X).logits, net.eval()(X).logits, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(net(X).logits[:1], net(X[:1]).logits, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "densenet_40_12", "mobilenetv2", "shufflenetv2", "vgg16_okddip"]
)
def test_head_and_run_parts_are_forward(name):
    (net,) = nets(name)
    net.eval()
    with torch.no_grad():
        *early, f = net.run_parts(X, stop=2)
        *late, f = net.run_parts(f, start=2)
        z, h = net.head(f)
        o = net(X)
    assert torch.equal(z, o.logits) and torch.equal(h, o.pooled)
    for got, want in zip((*early[0], *late[0]), o.feats, strict=True):
        assert torch.equal(got, want)
    for got, want in zip((*early[1], *late[1]), o.preacts, strict=True):
        assert torch.equal(got, want)


def test_wide_resnets_give_raw_sums_and_hand_their_batch_norm_on():
    (net,) = nets("wrn_16_1")
    norms = net.stage_bns()
    with torch.no_grad():
        o = net.train()(X)
        assert [int(bn.num_batches_tracked) for bn in norms] == [1, 1, 1]  # each runs once
        o = net.eval()(X)
        assert o.feats[0] is o.preacts[0] and o.feats[0].min() < 0
        for bn, f, p in zip(norms, o.feats[1:], o.preacts[1:], strict=True):
            assert torch.equal(bn(f), p)
        assert torch.equal(o.preacts[-1].relu().mean((2, 3)), o.pooled)


def test_channels_are_shuffled_after_the_relu():
    with torch.no_grad():
        o = build("shufflenetv2").eval()(X[:2])
    for f, p in zip(o.feats[1:], o.preacts[1:], strict=True):
        first, second = p.relu().chunk(2, 1)
        assert torch.equal(f[:, ::2], first) and torch.equal(f[:, 1::2], second)


@pytest.mark.parametrize("name", [n for n in list_models() if "110" not in n])
def test_batch_norms_of_stages(name):
    """Of the pre-activations' widths; those of no shortcut are the pre-activations."""
    net = build(name, 3, 10).eval()
    if name in ("vgg16_okddip", "densenet_40_12", "shufflenetv2"):
        with pytest.raises(ValueError, match="stage 1 .*does not end in a batch norm; ResNets"):
            net.stage_bns()
        return
    seen = []
    for bn in net.stage_bns():
        bn.register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    with torch.no_grad():
        o = net(X[:2])
    assert [bn.num_features for bn in net.stage_bns()] == [p.shape[1] for p in o.preacts[1:]]
    assert [v.shape for v in seen] == [p.shape for p in o.preacts[1:]]
    alone = [torch.equal(v, p) for v, p in zip(seen, o.preacts[1:], strict=True)]
    if name == "mobilenetv2":
        assert alone == [False, False, False, True]  # the last block has no shortcut
    else:
        assert set(alone) == {name[:3] in ("wrn", "vgg") and name != "wrn_20_8_bottleneck"}


def test_the_batch_norm_of_a_residual_stage_is_before_the_sum():
    net, seen = build("resnet8").eval(), []
    net.stage_bns()[0].register_forward_hook(lambda m, args, out: seen.append(out.clone()))
    with torch.no_grad():
        o = net(X)
        assert torch.allclose(seen[0] + o.feats[0], o.preacts[1])


@pytest.mark.parametrize(
    "name, mode, fc",
    [
        ("resnet8x4", 0, None),
        ("wrn_40_2", 0, None),
        ("vgg8", 0, 0.01),
        ("vgg16_okddip", 0, 0.01),
        ("densenet_40_12", 1, None),
        ("mobilenetv2", 0, 0.01),
        ("resnet18_imagenet", 0, None),
    ],
)
def test_initial_weights(name, mode, fc):
    """He's of fan-out (0) or fan-in (1); linear layers N(0, fc), or torch's uniform ones."""
    (net,) = nets(name)
    net.requires_grad_(False)
    for m in net.modules():
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 4000:
            fan = m.weight.shape[mode] * m.weight[0, 0].numel()
            assert m.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
            assert m.bias is None or not m.bias.any()
        if isinstance(m, nn.Linear):
            bound = m.in_features**-0.5
            assert m.weight.std().item() == pytest.approx(fc or bound / 3**0.5, rel=0.1)
            assert (m.weight.abs().max() <= bound) or fc
            assert m.bias.any() == name.startswith("resnet")


# ---- ImageNet weights ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no network."""

    def fail(*args, **kw):
        raise URLError("no\nroute to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def theirs(name):
    """torchvision's network with random weights and statistics, its builder's weights."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t in (m.weight.data, m.bias.data, m.running_mean, m.running_var):
                t.uniform_(0.2, 0.6)
    return net, torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_weights_give_torchvisions_logits(name, monkeypatch):
    net, weights = theirs(name)
    asked = {}
    monkeypatch.setattr(
        type(weights), "get_state_dict", lambda self, **kw: asked.update(kw) or net.state_dict()
    )
    ours = build(f"{name}_imagenet", 3, 1000).eval()
    ours.load_state_dict(pretrained(f"{name}_imagenet"))
    assert asked["check_hash"] and asked["weights_only"]
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = net(x)
        assert torch.allclose(ours(x).logits, z, rtol=1e-4, atol=1e-4 * float(z.abs().max()))
    assert not torch.allclose(z[0], z[1], rtol=1e-2)


def test_torchvisions_weights_from_the_cache(hub):
    net, weights = theirs("resnet18")
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save(state, hub / weights.url.rpartition("/")[2])  # as old files are
    ours = build("resnet18_imagenet", 3, 1000).eval()
    ours.load_state_dict(pretrained("resnet18_imagenet"))
    with torch.no_grad():
        assert torch.allclose(ours(X).logits, net(X), rtol=1e-4, atol=1e-4)


def test_weights_that_cannot_be_had(hub):
    with pytest.raises(ValueError) as offline:
        pretrained("resnet34_imagenet")
    message = str(offline.value)
    assert "resnet34_imagenet" in message and "no route to host" in message
    assert str(hub) in message and ".pth" in message and "\n" not in message
    weights = torchvision.models.get_model_weights("resnet34")["IMAGENET1K_V1"]
    for wrong in (b"", b"not weights", b"PK\x03\x04 cut"):
        (hub / weights.url.rpartition("/")[2]).write_bytes(wrong)
        with pytest.raises(ValueError, match="cannot be had"):
            pretrained("resnet34_imagenet")
    for name in ("resnet34", "resnet18_imagenet_w2", "vgg16"):
        with pytest.raises(ValueError, match="unknown network with ImageNet weights.*resnet18_"):
            pretrained(name)


# ---- groups ----


def untouched(module):
    return all(p.grad is None or not p.grad.any() for p in module.parameters())


def pointers(module):
    return {t.data_ptr() for t in [*module.parameters(), *module.buffers()] if t.ndim}


@pytest.mark.parametrize("name", BRANCHED)
def test_branches_share_the_trunk_alone(name):
    group = Branches(nets(*[name] * 3))
    trunk = [pointers(torch.nn.ModuleList(n.parts[: n.split])) for n in group.nets]
    own = [pointers(torch.nn.ModuleList([*n.parts[n.split :], n.fc])) for n in group.nets]
    assert trunk[0] == trunk[1] == trunk[2] and len(trunk[0]) > 0
    assert all(not own[a] & own[b] for a in range(3) for b in range(a))
    assert not set.union(*own) & trunk[0]
    one, split = size(build(name, 3, 10)), group.nets[0].split
    assert split == len(group.nets[0].parts) - (2 if "imagenet" in name else 1)
    shared = sum(map(size, group.nets[0].parts[:split]))
    assert size(group) == shared + 3 * (one - shared)


def test_branches_start_differently_and_run_the_trunk_once():
    group = Branches(nets(*["resnet8"] * 3)).train()
    runs = []
    group.nets[0].parts[0].register_forward_hook(lambda *a: runs.append(1))
    o = group(X)
    assert runs == [1] and o.logits.shape == (3, 4, 10) and o.pooled.shape == (3, 4, 64)
    assert len(o.feats) == len(o.preacts) == 3 and o.feats[-1].shape == (4, 32, 16, 16)
    assert not torch.allclose(o.logits[0], o.logits[1])
    steps = group.nets[1].parts[0].bn.num_batches_tracked
    assert steps == 1


@pytest.mark.parametrize("name", BRANCHED)
def test_a_branch_is_its_network(name):
    group = Branches(nets(*[name] * 2)).eval()
    with torch.no_grad():
        o = group(X)
        for i, net in enumerate(group.nets):
            alone = net(X)
            assert torch.allclose(alone.logits, o.logits[i], atol=1e-6)
            assert torch.allclose(alone.pooled, o.pooled[i], atol=1e-6)
            for f, p, g, q in zip(o.feats, o.preacts, alone.feats, alone.preacts, strict=False):
                assert torch.equal(f, g) and torch.equal(p, q)
    assert not torch.allclose(o.logits[0], o.logits[1], rtol=1e-2)


def test_dropout_in_branches_alone():
    def rates(module):
        return {m.p for m in module.modules() if isinstance(m, nn.Dropout)}

    two = nets(*["vgg16_okddip"] * 2)
    assert rates(two[0]) == {0.0} and rates(Peers(two)) == {0.0}
    group = Branches(two)
    assert rates(group) == {0.5}
    torch.manual_seed(0)
    with torch.no_grad():
        a, b = (group.train()(X) for _ in range(2))
    assert torch.equal(a.pooled, b.pooled) and not torch.allclose(a.logits, b.logits)


def test_pooled_of_okddips_vgg_is_the_flattened_map():
    with torch.no_grad():
        o = build("vgg16_okddip").eval()(X)
    assert o.feats[-1].shape == (4, 512, 1, 1) and torch.equal(o.feats[-1].flatten(1), o.pooled)


def test_branches_gradients_sum_in_the_trunk():
    group = Branches(nets(*["resnet8"] * 2))
    w = group.nets[0].parts[0].conv.weight
    z = group(X).logits
    (both,) = torch.autograd.grad(z.logsumexp(-1).sum(), w, retain_graph=True)
    each = [torch.autograd.grad(v.logsumexp(-1).sum(), w, retain_graph=True)[0] for v in z]
    assert torch.allclose(both, each[0] + each[1], rtol=1e-4, atol=1e-4)
    z[0].sum().backward()
    assert untouched(group.nets[1].fc) and not untouched(group.nets[0].fc)


def test_at_split_sees_what_branches_take():
    seen = []

    def at_split(f):
        seen.append(f.shape)
        return f * 0

    group = Branches(nets(*["resnet8"] * 2), at_split).eval()
    with torch.no_grad():
        o = group(X)
    assert seen == [(4, 32, 16, 16)] and o.feats[-1].abs().max() > 0
    assert torch.allclose(o.logits, o.logits[:, :1].expand_as(o.logits), atol=1e-6)


def test_peers_are_separate():
    group = Peers(nets(*["resnet8"] * 2))
    assert not pointers(group.nets[0]) & pointers(group.nets[1])
    o = group.eval()(X)
    assert o.logits.shape == (2, 4, 10) and o.pooled.shape == (2, 4, 64)
    assert [len(f) for f in o.feats] == [4, 4]
    assert torch.equal(o.logits[1], group.nets[1](X).logits)
    o.logits[0].sum().backward()
    assert untouched(group.nets[1]) and not untouched(group.nets[0])


def test_peers_of_different_architectures():
    group = Peers(nets("resnet8", "resnet14_w2", "resnet8_w0.5"))
    o = group(X)
    assert o.logits.shape == (3, 4, 10)
    assert [tuple(h.shape) for h in o.pooled] == [(4, 64), (4, 128), (4, 32)]
    same = Peers(nets("resnet8", "resnet14"))(X)
    assert same.pooled.shape == (2, 4, 64)  # equal widths are stacked


def test_state_dict_goes_round():
    one, other = (Branches([build("resnet8", 3, 10) for _ in range(2)]).eval() for _ in range(2))
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(one(X).logits, other(X).logits)
    assert all(isinstance(net, Net) for net in one.nets)


# ---- own modules ----


class Own(nn.Module):
    """A convolution, an in-place ReLU, a stage, a classifier; also a layer that never runs."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)
        self.stage = nn.Sequential(nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU())
        self.spare, self.fc = nn.Linear(2, 2), nn.Linear(16, classes)

    def forward(self, x):
        return self.fc(self.stage(self.act(self.conv(x))).mean((2, 3)))


class Answers(nn.Module):
    """Returns what it was given."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result


def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def mobilenet():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v3_small(num_classes=10).eval()


def own():
    torch.manual_seed(0)
    return Own().eval()


STAGES = ["relu", "layer1", "layer2", "layer3", "layer4"]
WRAPPED = {  # module, arguments, widths and sizes of its features, width of the pooled one
    "resnet18": (
        resnet18,
        dict(features=STAGES),
        [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)],
        512,
    ),
    "mobilenet": (
        mobilenet,
        dict(
            features=["features.0", "features.3", "features.12"],
            preacts=["features.0.1", "features.3.block.2.1", "features.12.1"],
            head="classifier",
        ),
        [(16, 16), (24, 4), (576, 1)],
        576,
    ),
    "own": (
        own,
        dict(features=["act", "stage"], preacts=["conv", "stage.1"]),
        [(8, 30), (16, 14)],
        16,
    ),
}


@pytest.fixture(params=WRAPPED)
def pair(request):
    """A module, the same wrapped, and what its features look like."""
    make, args, *shapes = WRAPPED[request.param]
    module = make()
    return module, wrap(module, **args), *shapes


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_a_wrapped_module_is_the_plain_one(pair):
    module, net, shapes, width = pair
    plain = copy.deepcopy(module)
    for mode in (False, True):
        torch.manual_seed(1)
        o = net.train(mode)(X)
        torch.manual_seed(1)
        assert torch.equal(o.logits, plain.train(mode)(X))
        assert [(f.shape[1], f.shape[2]) for f in o.feats] == shapes
        assert [p.shape for p in o.preacts] in ([], [f.shape for f in o.feats])
        assert o.pooled.shape == (4, width)
    state = net.state_dict()
    assert list(state) == [f"module.{k}" for k in module.state_dict()]
    assert all(torch.equal(v, state[f"module.{k}"]) for k, v in plain.state_dict().items())


def test_gradients_reach_features_and_go_through_them(pair):
    _, net, *_ = pair
    o = net(X)
    for f in (*o.feats, o.pooled):
        assert torch.autograd.grad(o.logits.logsumexp(-1).sum(), f, retain_graph=True)[0].any()
    sum(f.square().mean() for f in (*o.feats, *o.preacts)).backward()
    assert next(net.parameters()).grad.any()


def test_a_wrapped_module_is_copied_saved_and_moved(pair):
    _, net, *_ = pair
    with torch.no_grad():
        before = net(X)
        twin = copy.deepcopy(net)
        for p in net.parameters():
            p += 0.01
        after = net(X)
        assert torch.equal(twin(X).logits, before.logits)
        assert all(map(torch.equal, twin(X).feats, before.feats))
        assert not torch.equal(after.feats[0], before.feats[0])
        file = io.BytesIO()
        torch.save(net.state_dict(), file)
        file.seek(0)
        twin.load_state_dict(torch.load(file))
        assert all(map(torch.equal, twin(X).feats, after.feats))
        assert twin.to(torch.float64)(X.double()).feats[0].dtype == torch.float64
    with torch.inference_mode():
        assert torch.equal(net(X).logits, after.logits)


def test_threads_share_a_wrapped_module(pair):
    _, net, *_ = pair
    images = [torch.full((1, 3, 32, 32), i / 4) for i in range(8)]
    with torch.no_grad():
        alone = [net(x) for x in images]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(3):
                for a, b in zip(alone, pool.map(torch.no_grad()(net), images), strict=True):
                    assert all(map(torch.equal, a.feats, b.feats))
                    assert torch.equal(a.pooled, b.pooled)


def test_a_module_wrapped_twice_and_run_alone():
    module = own()
    one, two = wrap(module, ["act"]), wrap(module, ["act", "stage"], preacts=["conv", "stage.1"])
    with torch.no_grad():
        z = module(X)
        assert len(one(X).feats) == 1 and len(two(X).preacts) == 2
        assert torch.equal(wrap(two, ["module.act"])(X).feats[0], two(X).feats[0])  # one in another
        assert torch.equal(z, module(X))


def test_preactivations_are_read_before_an_inplace_relu():
    with torch.no_grad():
        stem, mine = (
            wrap(resnet18(), ["relu"], preacts=["bn1"]),
            wrap(own(), ["act"], None, ["conv"]),
        )
        for o, width in ((stem(X), 512), (mine(X), 16)):
            ((f,), (p,)) = o.feats, o.preacts
            assert torch.equal(f, p.relu()) and p.min() < 0 and o.pooled.shape == (4, width)


@pytest.mark.parametrize(
    "module, features",
    [(resnet18, ["bn1"]), (resnet18, ["layer1.1.bn2"]), (own, ["conv"])],
)
def test_a_feature_that_is_changed_in_place(module, features):
    with pytest.raises(ValueError) as error:
        wrap(module(), features)(X)
    one_line(error, repr(features[0]), "changed in place", "inplace=False")


@pytest.mark.parametrize(
    "args, parts",
    [
        (dict(features=["layr1"]), ["'layr1'", "did you mean layer"]),
        (dict(features=["layer1"], head="fcc"), ["'fcc'", "did you mean fc"]),
        (dict(features=["layer1", "layer1.0.rule"]), ["'layer1.0.rule'", "layer1.0.relu"]),
        (dict(features=["layer1", "layer2"], preacts=["bn1"]), ["1 preacts for 2 features"]),
    ],
)
def test_names_that_a_module_lacks(args, parts):
    with pytest.raises(ValueError) as error:
        wrap(resnet18(), **args)
    one_line(error, *parts)


@pytest.mark.parametrize(
    "args, parts",
    [
        (dict(features=["layer1.0.relu"]), ["layer1.0.relu'", "2 times", "name another layer"]),
        (dict(head="avgpool"), ["head 'avgpool'", "(4, 512, 1, 1)", "head=..."]),
    ],
)
def test_layers_that_cannot_be_read(args, parts):
    net = wrap(resnet18(), **args)
    with pytest.raises(ValueError) as error:
        net(X)
    one_line(error, *parts)


def test_a_layer_that_never_runs_or_gives_no_tensor():
    with pytest.raises(ValueError, match="feature 'spare' ran 0 times"):
        wrap(own(), ["spare"])(X)
    with pytest.raises(ValueError, match="unknown layer 'mean'.*spare"):
        wrap(own(), ["spare", "mean"])
    with pytest.raises(ValueError, match="feature '1' is a tuple, not a tensor"):
        wrap(nn.Sequential(own(), nn.LSTM(10, 4)), ["1"])(X)


def test_a_forward_with_branches_of_its_own():
    class Odd(Own):
        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    assert wrap(Odd(), ["stage"])(X).feats[0].shape == (4, 16, 14, 14)


def test_the_pooled_feature_is_the_heads_input():
    assert wrap(own(), head="")(X).pooled is None
    convs = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert wrap(convs)(X).pooled is None and wrap(convs)(X).feats == ()
    net = wrap(own(), ["stage"])
    with torch.no_grad():
        o = net(X)
        assert torch.equal(net.module.fc(o.pooled), o.logits)
    ours = build("resnet8", 3, 10).eval()
    assert torch.equal(wrap(ours, ["parts.1.blocks.0"], head="fc")(X).pooled, ours(X).pooled)


@pytest.mark.parametrize("result", [{"out": X}, [X], (X, X), None, X, "logits"])
def test_a_module_that_returns_no_logits(result):
    what = str(tuple(X.shape)) if result is X else type(result).__name__
    for call in (
        lambda: wrap(Answers(result))(X),
        lambda: Peers([Answers(result)])(X),
        lambda: as_out(result),
    ):
        with pytest.raises(ValueError) as error:
            call()
        one_line(error, "logits (B, K)", what)


def test_count_of_a_wrapped_module():
    module = own()
    assert count(module, X) == count(wrap(module, ["act", "stage"]), X)


def test_as_out():
    z = torch.zeros(2, 3)
    assert as_out(z) == Out(z, (), (), None)
    o = Out(z, (X,), (X,), None)
    assert as_out(o) is o


def test_wrapped_modules_compile_whole():
    net = wrap(own(), ["act", "stage"], preacts=["conv", "stage.1"])
    with torch.no_grad():
        got, want = torch.compile(net, backend="eager", fullgraph=True)(X), net(X)
    assert torch.allclose(got.logits, want.logits, atol=1e-6)
    assert all(map(torch.equal, (*got.feats, *got.preacts), (*want.feats, *want.preacts)))


def test_peers_of_any_modules():
    plain, wrapped = own(), wrap(own(), ["stage"])
    ours = build("resnet8_w0.25", 3, 10).eval()
    o = Peers([plain, wrapped, ours])(X)
    assert o.logits.shape == (3, 4, 10) and torch.equal(o.logits[0], plain(X))
    assert [len(f) for f in o.feats] == [0, 1, 4] and o.pooled is None
    o = Peers([wrapped, ours])(X)
    assert o.pooled.shape == (2, 4, 16)


def student():
    """A network of plain modules, the last of which gives its pre-activation as well."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 16, 3)

        def forward(self, f):
            f = self.conv(f)
            return f.relu(), f

    def part(c_in, c):
        return nn.Sequential(nn.Conv2d(c_in, c, 3), nn.ReLU())

    return Net([part(3, 8), part(8, 8), Last()], 16, 10)


def test_a_net_of_plain_modules_in_branches():
    torch.manual_seed(0)
    one = student()
    o = one(X)
    assert [f.shape[1] for f in o.feats] == [8, 8, 16] and torch.equal(
        o.feats[2].mean((2, 3)), o.pooled
    )
    assert o.feats[1] is o.preacts[1] and torch.equal(o.feats[2], o.preacts[2].relu())
    assert "parts.0.0.weight" in one.state_dict()
    with pytest.raises(ValueError, match="stage 1 .*does not end in a batch norm"):
        one.stage_bns()
    group = Branches([one, student()])
    assert group.nets[0].parts[1] is group.nets[1].parts[1]
    assert not pointers(group.nets[0].parts[2]) & pointers(group.nets[1].parts[2])
    both = group(X)
    assert both.logits.shape == (2, 4, 10) and len(both.feats) == 2
    assert torch.allclose(both.logits[0], o.logits, atol=1e-6)
    with pytest.raises(ValueError, match="hand_on.*'features'"):
        Net([nn.ReLU()], 3, 10, hand_on="features")


def test_branches_refuse_a_module_of_no_parts():
    with pytest.raises(ValueError) as error:
        Branches([own(), own()])
    one_line(error, "Own cannot be split", "parts, split, run_parts, head", "Net")


# ---- the registry ----


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


def test_a_registered_function_is_a_network(registry):
    def mine(channels, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 32 * 32, classes))

    assert network("mine", "also.mine")(mine) is mine
    assert list_models()[-2:] == ["mine", "also.mine"]
    assert build("mine", 3, 7)(X).shape == (4, 7) and builder_of("also.mine") is mine
    with pytest.raises(ValueError, match="mine takes no width"):
        build("mine_w2")

    @network("mine")
    def again(channels, classes):
        return Own(classes)

    assert builder_of("mine") is again and isinstance(build("mine"), Own)
    assert list_models().count("mine") == 1 and builder_of("also.mine") is mine


def test_an_own_network_may_take_a_width(registry):
    @network("wide")
    def wide(channels, classes, width=1.0):
        return nn.Linear(round(8 * width), classes)

    assert build("wide").in_features == 8 and build("wide_w2").in_features == 16
    assert builder_of("wide_w2") is wide


def test_the_source_of_a_network_can_be_read():
    assert builder_of("resnet8_w2") is builder_of("resnet110")
    assert "def vgg(name: str" in inspect.getsource(builder_of("vgg8"))
    with pytest.raises(ValueError, match="unknown network 'vgg9'"):
        builder_of("vgg9")


@pytest.mark.parametrize("names", [(), ("a,b",), ("",), ("a b",), (Own,)])
def test_names_that_no_network_may_have(names, registry):
    before = list_models()
    with pytest.raises(ValueError, match="network name") as error:
        network(*names)
    assert "\n" not in str(error.value) and list_models() == before


def test_a_function_that_returns_no_module(registry):
    network("none")(lambda channels, classes: None)
    with pytest.raises(ValueError, match="network 'none': its function returned NoneType"):
        build("none")


@pytest.mark.parametrize("name", ["base", "wrap"])
def test_examples_run(name, registry):
    result = doctest.testmod(importlib.import_module(f"kdkit.models.{name}"))
    assert result.attempted and not result.failed
