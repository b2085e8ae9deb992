"""Networks, the registry, and groups of networks."""

import pytest
import torch

from kdkit.models import Branches, Net, Peers, build, count, models

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

# parameters and multiply-adds of one 32x32x3 image, 100 classes
COUNTS = {
    "resnet8": (83_892, 12_507_392), "resnet20": (278_324, 40_818_944),
    "resnet32": (472_756, 69_130_496), "resnet110": (1_736_564, 253_155_584),
    "resnet110_bottleneck": (1_170_868, 167_453_696), "resnet18": (11_220_132, 555_468_800),
}


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


@pytest.mark.parametrize("name", [n for n in models() if n != "resnet110"])
@pytest.mark.parametrize("c_in, classes", [(3, 100), (1, 7)])
def test_contract(name, c_in, classes):
    """Shapes of every registered network, on images that it takes."""
    x = X[:2, :c_in]
    net = build(name, c_in, classes).eval()
    with torch.no_grad():
        o = net(x)
    assert o.logits.shape == (2, classes) and o.pooled.shape == (2, net.fc.in_features)
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


@pytest.mark.parametrize("name, width", [("resnet14_w2", 128), ("resnet8_w0.5", 32),
                                         ("resnet8_w0.25", 16), ("resnet8_w1", 64)])
def test_width_of_28x28_grey_images(name, width):
    net = build(name, 1, 10)
    o = net(torch.zeros(2, 1, 28, 28))
    assert o.logits.shape == (2, 10) and o.pooled.shape == (2, width)
    assert [tuple(f.shape[1:]) for f in o.feats] == [
        (width // 4, 28, 28), (width // 4, 28, 28), (width // 2, 14, 14), (width, 7, 7)]


def test_width_one_is_the_plain_network():
    assert count(build("resnet8_w1"), X[:1]) == COUNTS["resnet8"]


@pytest.mark.parametrize("name, near", [
    ("resnet33", "resnet32"), ("resnet9", "resnet8"), ("resnet8_w", "resnet8"),
    ("resnet8_wide", "resnet8"), ("resnet8_w-1", "resnet8"), ("", "resnet8"),
    ("resnet8_w0", "resnet8"), ("resnet8_w0.01", "resnet8"),
])
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
    net, = nets("resnet8")
    net(X).logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_train_and_eval_differ_and_eval_is_per_image():
    net, = nets("resnet8")
    assert not torch.allclose(net.train()(X).logits, net.eval()(X).logits, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(net(X).logits[:1], net(X[:1]).logits, atol=1e-5)


def test_head_and_run_parts_are_forward():
    net, = nets("resnet8")
    net.eval()
    with torch.no_grad():
        early, _ = net.run_parts(X, stop=2)
        late, _ = net.run_parts(early[-1], start=2)
        assert torch.equal(net.head(late[-1])[0], net(X).logits)


# ---- groups ----

def untouched(module):
    return all(p.grad is None or not p.grad.any() for p in module.parameters())


def pointers(module):
    return {t.data_ptr() for t in [*module.parameters(), *module.buffers()] if t.ndim}


def test_branches_share_the_trunk_alone():
    group = Branches(nets(*["resnet8"] * 3))
    trunk = [pointers(torch.nn.ModuleList(n.parts[: n.split])) for n in group.nets]
    own = [pointers(torch.nn.ModuleList([*n.parts[n.split :], n.fc])) for n in group.nets]
    assert trunk[0] == trunk[1] == trunk[2] and len(trunk[0]) > 0
    assert all(not own[a] & own[b] for a in range(3) for b in range(a))
    assert not set.union(*own) & trunk[0]
    one = sum(p.numel() for p in build("resnet8", 3, 10).parameters())
    shared = sum(p.numel() for part in group.nets[0].parts[:3] for p in part.parameters())
    assert sum(p.numel() for p in group.parameters()) == shared + 3 * (one - shared)


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


def test_a_branch_is_its_network():
    group = Branches(nets(*["resnet8"] * 2)).eval()
    with torch.no_grad():
        o = group(X)
        for i, net in enumerate(group.nets):
            assert torch.allclose(net(X).logits, o.logits[i], atol=1e-6)


def test_branches_gradients_sum_in_the_trunk():
    group = Branches(nets(*["resnet8"] * 2))
    w = group.nets[0].parts[0].conv.weight
    z = group(X).logits
    both, = torch.autograd.grad(z.logsumexp(-1).sum(), w, retain_graph=True)
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
