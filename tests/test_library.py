"""The engine as somebody uses it who has own tensors, own networks and an own teacher."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

import kdkit as kd
from kdkit.models import Branches, Peers, build, wrap

SHAPE, K = (4, 24, 40), 3
FEW = kd.Recipe(epochs=2, batch=20, lr=0.02)


class Small(nn.Module):
    """A network that knows nothing of kdkit: logits out."""

    def __init__(self, width=6, classes=K, channels=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU())
        self.stage1 = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width))
        self.stage2 = nn.Sequential(nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.fc(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))


def featured(width=6):
    return wrap(Small(width), features=["stem", "stage1", "stage2"], head="fc")


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(150) % K
    x = torch.randint(120, (150, *SHAPE), generator=draw)
    for c in range(K):
        x[y == c, c] += 60
    x = x.to(torch.uint8)
    return kd.data.tensors(x[:100], y[:100], x[100:], y[100:], names=["sand", "loam", "clay"])


@pytest.fixture(scope="module")
def teacher(data):
    net = seeded(lambda: Small(12))
    fitted = kd.fit(kd.Baseline(), net, data, recipe=kd.Recipe(epochs=6, batch=10, lr=0.05))
    assert fitted.students is net and fitted.result["top1"][0] > 90
    return net


def test_it_trains_the_object_and_says_how_it_went(data, teacher):
    net = seeded(Small)
    before = copy.deepcopy(net.state_dict())
    fitted = kd.fit(kd.KD(T=2.0), net, data, teacher=teacher, recipe=FEW)
    assert fitted.students is net and not net.training
    assert any(not torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [row["epoch"] for row in fitted.history] == [0, 1]
    assert set(fitted.history[0]["terms"]) == {"ce", "kd"}
    z = kd.evaluate(net, data)
    assert fitted.result["top1"] == z["top1"] and "teacher_top1" in fitted.result
    assert fitted.test_logits.shape == (1, 50, K) and fitted.teacher_logits.shape == (50, K)


def test_nothing_is_initialised_again(data):
    net = seeded(Small)
    before = copy.deepcopy(net.state_dict())
    kd.fit(kd.Baseline(), net, data, recipe=FEW.replace(epochs=0))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_seed_alone_decides_the_result(data, teacher):
    def run(seed, kernel):
        torch.manual_seed(kernel)
        net = seeded(featured)
        wide = wrap(copy.deepcopy(teacher), features=["stem", "stage1", "stage2"])
        fitted = kd.fit(kd.FitNet(), net, data, teacher=wide, recipe=FEW, seed=seed)
        layers = torch.cat([p.flatten() for p in fitted.method.parameters()])
        return torch.cat([p.flatten() for p in net.parameters()]), layers

    first, again, other = run(0, 1), run(0, 2), run(1, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_groups_of_own_networks(data, teacher):
    fitted = kd.fit(
        kd.DCKD(m=3), Peers([Small() for _ in range(3)]), data, teacher=teacher, recipe=FEW
    )
    assert len(fitted.result["top1"]) == 3 and fitted.result["diversity"] > 0
    peers = Peers([featured() for _ in range(3)])
    fitted = kd.fit(kd.OKDDip(m=3, based="network"), peers, data, recipe=FEW)
    assert fitted.arrays["attention"].shape == (2, 2, 2)


def test_a_torchvision_backbone(data, teacher):
    def backbone():
        net = resnet18(num_classes=K)
        net.conv1 = nn.Conv2d(4, 64, 3, 2, 1, bias=False)
        return net

    one = FEW.replace(epochs=1, batch=50)
    plain = kd.fit(kd.KD(), backbone(), data, teacher=teacher, recipe=one)
    assert len(plain.history) == 1
    layers = ["maxpool", "layer1", "layer2", "layer3", "layer4"]
    wide = wrap(backbone(), features=layers)
    fitted = kd.fit(kd.FitNet(), wrap(backbone(), layers), data, teacher=wide, recipe=one)
    assert fitted.history[0]["terms"]["hint"] > 0


@pytest.mark.parametrize("name", kd.list_methods())
def test_every_method_takes_networks_of_the_kit_on_any_data(name, data):
    cls = kd.method_class(name)
    own = kd.methods.base.fields(cls)
    method = cls(**({"m": 2} if "m" in own else {}))
    kind, m = method.group()
    nets = [build("resnet8_w0.25", SHAPE[0], K) for _ in range(m)]
    students = {"single": nets[0], "network": Peers(nets)}.get(kind) or Branches(nets)
    big = build("resnet8_w0.25", SHAPE[0], K) if method.needs_teacher else None
    fitted = kd.fit(method, students, data, teacher=big, recipe=FEW.replace(epochs=1))
    assert len(fitted.result["top1"]) == m and np.isfinite(fitted.test_logits).all()


def test_a_callable_teacher_sees_images_and_positions(data, teacher):
    seen = []

    def ensemble(x, index):
        seen.append(index)
        return torch.stack([teacher(x) - 1, teacher(x) + 1])  # (m, B, K): its mean is the teacher's

    a = kd.fit(kd.KD(), seeded(Small), data, teacher=ensemble, recipe=FEW)
    b = kd.fit(kd.KD(), seeded(Small), data, teacher=teacher, recipe=FEW)
    np.testing.assert_allclose(a.test_logits, b.test_logits, atol=1e-2)
    positions = torch.cat([index for index in seen if index is not None])
    assert None in seen and set(positions.tolist()) == set(range(100))


def test_recipes_of_callables(data):
    rates = [0.5, 0.25]
    recipe = FEW.replace(
        optimizer=torch.optim.RAdam,
        lr=1e-3,
        schedule=lambda epoch, epochs: rates[epoch],
        augment=lambda x, generator: x.flip(-1),
    )
    fitted = kd.fit(kd.Baseline(), seeded(Small), data, recipe=recipe)
    assert [row["lr"] for row in fitted.history] == [5e-4, 2.5e-4]
    seen = []

    class Watch(kd.Callback):
        def step(self, state):
            seen.append(state.optimizer.param_groups[0]["lr"])

    own = recipe.replace(optimizer=lambda parameters: torch.optim.Adam(parameters, 0.02))
    kd.fit(kd.Baseline(), seeded(Small), data, recipe=own, callbacks=[Watch()])
    assert seen == [0.01] * 5 + [0.005] * 5  # its own rate, scaled
    with pytest.raises(ValueError, match="unknown optimizer 'adamq': did you mean adamw"):
        kd.Recipe(optimizer="adamq")
    with pytest.raises(ValueError, match="batch=0: must be at least 1"):
        kd.Recipe(batch=0)


def test_class_weights_reach_the_labels(data):
    plain = kd.fit(kd.Baseline(), seeded(Small), data, recipe=FEW)
    weighted = kd.fit(
        kd.Baseline(), seeded(Small), data, recipe=FEW.replace(class_weights=(1, 5, 1))
    )
    assert not np.array_equal(plain.test_logits, weighted.test_logits)
    with pytest.raises(ValueError, match="class_weights: 2 weights, tensors has 3 classes"):
        kd.fit(kd.Baseline(), Small(), data, recipe=FEW.replace(class_weights=(1, 2)))


def test_double_precision(data, teacher):
    net = seeded(Small)
    big = copy.deepcopy(teacher)
    fitted = kd.fit(kd.KD(), net, data, teacher=big, recipe=FEW.replace(precision="fp64"))
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert fitted.environment["precision"] == "fp64"


def test_any_dataset(data):
    draw = torch.Generator().manual_seed(0)
    pairs = TensorDataset(torch.rand(60, *SHAPE, generator=draw), torch.arange(60) % K)
    fitted = kd.fit(kd.Baseline(), Small(), kd.data.dataset(pairs, pairs), recipe=FEW)
    assert len(fitted.history) == 2


def test_a_default_recipe_fills_its_batches(data):
    few = data.subset(30)
    assert kd.fit(kd.Baseline(), Small(), few).history[-1]["epoch"] == kd.Recipe().epochs - 1


@pytest.mark.parametrize(
    "method, students, given, says",
    [
        (kd.KD(), Small, {}, "KD needs a teacher"),
        (kd.DCKD(m=2), Small, {"teacher": Small()}, "DCKD trains models.Peers of 2, not Small"),
        (
            kd.OKDDip(m=3),
            lambda: Peers([featured() for _ in range(3)]),
            {},
            "OKDDip trains models.Branches of 3, not Peers of 3",
        ),
        (
            kd.OKDDip(m=2, based="network"),
            lambda: Peers([Small(), Small()]),
            {},
            "OKDDip needs the student's pooled feature, this network gives none",
        ),
        (
            kd.FitNet(),
            featured,
            {"teacher": Small()},
            "FitNet needs the teacher's feature maps, this network gives none",
        ),
        (kd.Baseline(), lambda: Small(classes=7), {}, "the student gives 7 logits, tensors has 3"),
        (
            kd.Baseline(),
            lambda: Small(channels=3),
            {},
            r"the student does not take tensors's images \(4, 24, 40\)",
        ),
        (kd.KD(), Small, {"teacher": Small(channels=1)}, "the teacher does not take tensors's"),
        (kd.OFD(), lambda: build("resnet8_w0.25", 4, K), {"teacher": Small()}, "OFD needs the"),
        (kd.Baseline(), Small, {"device": "cuda:7"}, "device 'cuda:7': not on this machine"),
        (kd.Baseline(), Small, {"recipe": kd.Recipe(batch=101)}, "batch=101: tensors has 100"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(data, method, students, given, says):
    with pytest.raises(ValueError, match=says) as e:
        kd.fit(method, students(), data, **({"recipe": FEW} | given))
    assert "\n" not in str(e.value)


def test_a_loss_that_breaks_is_told(data):
    with pytest.raises(kd.NotFinite, match="Baseline: the .* not finite at epoch 0"):
        kd.fit(kd.Baseline(), Small(), data, recipe=FEW.replace(lr=1e30))


def test_fit_leaves_no_trace(tmp_path):
    """No file, no environment variable, no kit, in a process of its own."""
    code = """
import builtins, os, sys, torch
import kdkit as kd
class Closed(dict):  # torch itself asks for names of its own
    def __getitem__(self, name):
        assert not name.startswith("KDKIT"), f"read {name}"
        return super().__getitem__(name)
    def get(self, name, default=None):
        assert not name.startswith("KDKIT"), f"read {name}"
        return super().get(name, default)
y = torch.arange(40) % 2
x = torch.randint(255, (40, 1, 8, 8), dtype=torch.uint8)
data = kd.data.tensors(x, y, x, y)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
torch.optim.SGD(net.parameters(), 0.1)  # torch reads files and its environment when first used
kd.fit(kd.Baseline(), net, data, recipe=kd.Recipe(epochs=1, batch=10))
os.environ = Closed(os.environ)
real = builtins.open
def opened(file, mode="r", *args, **kw):
    assert not set(mode) & set("wax+"), f"wrote {file}"
    return real(file, mode, *args, **kw)
builtins.open = opened
kd.fit(kd.Baseline(), net, data, recipe=kd.Recipe(epochs=1, batch=10))
loaded = [name for name in sys.modules if name.startswith("kdkit.study")]
assert not loaded, loaded
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.iterdir()) == []
