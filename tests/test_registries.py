"""What people add, a method, a network, a data set, a figure and a metric, in one file; what is
theirs is in the id of a run, with all that it uses."""

import functools
import importlib
import importlib.util
import sys
import textwrap
import types

import numpy as np
import pytest
import torch

import kdkit as kd
from kdkit.data import DATASETS
from kdkit.methods import METHODS
from kdkit.metrics import METRICS
from kdkit.models import base as networks
from kdkit.study import fingerprint, plans, sources
from kdkit.study.figures import FIGURES

HELPER = """
FACTOR = 2

def widened(width):
    return FACTOR * width
"""
MINE = '''
"""Everything of mine."""

from typing import Annotated

import torch
import kdkit as kd
from torch import nn

import my_helper

WIDTH = 4
BRIGHT = 40
CHOICES = {"slope": [1.0, 2.0]}


class Block(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 2, 1)

    def forward(self, x):
        return self.conv(x).relu()


@kd.network("my_net")
def my_net(channels, classes, width=WIDTH):
    """A network."""
    wide = my_helper.widened(width)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, classes)]
    return nn.Sequential(Block(channels, width), Block(width, wide), *head)


def images(count, draw):
    y = torch.arange(count) % 3
    x = torch.rand(count, 12, 12, generator=draw) * 100 + BRIGHT * y[:, None, None]
    return x.to(torch.uint8), y


@kd.dataset("my_data")
def my_data():
    draw = torch.Generator().manual_seed(0)
    return kd.data.tensors(*images(90, draw), *images(30, draw))


def spread(z):
    return CHOICES["slope"][1] * -torch.log_softmax(z, -1).mean()


class Parent(kd.Method):
    def extra(self, z):
        return spread(z)


class Mine(Parent):
    """A method."""

    name, title = "mine", "Mine"
    eps: Annotated[float, kd.Field(0, 1, 0.1), "weight of the spread"] = 0.1

    def weights(self):
        return {"ce": 1.0, "spread": self.eps}

    def terms(self, s, y, t, step):
        return {"ce": step.ce(s.logits, y), "spread": self.extra(s.logits)}


@kd.figure("my_figure", runs=[{"method": "mine"}, {"method": "baseline"}])
class MyFigure:
    def say(table):
        return [f"My {len(table)} methods."]


@kd.metric("my_metric")
def my_metric(z, y):
    return z.max(-1).mean(-1)
'''


@pytest.fixture
def files(tmp_path, monkeypatch):
    """load(changes of mine, changes of the helper): the two files, edited and imported anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    registries = [METHODS, METRICS, networks._REGISTRY, DATASETS, FIGURES]
    kept = [dict(registry) for registry in registries]

    def load(mine=(), helper=()):
        for name, text, edits in (("my_helper", HELPER, helper), ("mine", MINE, mine)):
            for old, new in edits:
                assert old in text
                text = text.replace(old, new)
            path = tmp_path / f"{name}.py"
            path.write_text(textwrap.dedent(text))
            spec = importlib.util.spec_from_file_location(name, path)
            sys.modules[name] = importlib.util.module_from_spec(spec)
            exec(compile(path.read_text(), str(path), "exec"), vars(sys.modules[name]))

    yield load
    for registry, entries in zip(registries, kept, strict=True):
        registry.clear()
        registry.update(entries)
    for name in ("my_helper", "mine"):
        sys.modules.pop(name, None)


def mine(**changes):
    given = {"method": "mine", "data": "my_data", "student": "my_net", "n_train": 0, "epochs": 1}
    return plans.preset("smoke", **(given | changes))


def test_all_five_from_one_file(files, runs):
    files()
    record = kd.get(mine())
    assert set(record.history[0]["terms"]) == {"ce", "spread"}
    assert np.isfinite(record.metric("my_metric")).all()
    table, _, (alt, _) = kd.figures.make("my_figure", [record, kd.get(mine(method="baseline"))])
    assert alt == "My 2 methods." and len(table) == 2
    for name, listed in (
        ("mine", kd.list_methods()),
        ("my_net", kd.list_models()),
        ("my_data", kd.list_datasets()),
        ("my_figure", kd.list_figures()),
        ("my_metric", kd.list_metrics()),
    ):
        assert name in listed
    assert record.student()(torch.zeros(2, 1, 12, 12, dtype=torch.uint8)).shape == (2, 3)


# Of each edit: which of the runs `mine`, `baseline on my data and network` and `mine with the kit's
# network and data` it makes another one.
EDITS = {
    "network": ([("3, 2, 1)", "5, 2, 2)")], [], "own base"),
    "its constant": ([("WIDTH = 4", "WIDTH = 5")], [], "own base"),
    "its class": ([("conv(x).relu()", "conv(x).tanh()")], [], "own base"),
    "a helper in another file": ([], [("FACTOR * width", "FACTOR * width + 1")], "own base"),
    "that helper's constant": ([], [("FACTOR = 2", "FACTOR = 3")], "own base"),
    "data": ([("manual_seed(0)", "manual_seed(1)")], [], "own base"),
    "the data's constant": ([("BRIGHT = 40", "BRIGHT = 41")], [], "own base"),
    "method": ([('"ce": 1.0', '"ce": 2.0')], [], "own kit"),
    "its default": ([("] = 0.1", "] = 0.2")], [], "own kit"),
    "its parent": ([("return spread(z)", "return 2 * spread(z)")], [], "own kit"),
    "its helper": ([("-torch.log_softmax(z, -1)", "torch.log_softmax(z, -1)")], [], "own kit"),
    "its helper's constant": ([("[1.0, 2.0]", "[1.0, 3.0]")], [], "own kit"),
    "figure": ([("My {len(table)}", "Our {len(table)}")], [], ""),
    "metric": ([("z.max(-1)", "z.min(-1)")], [], ""),
    "comments and docstrings": (
        [('"""A method."""', '"""A better method."""  # why'), ('"""A network."""', "")],
        [("FACTOR = 2", "FACTOR = 2  # twice")],
        "",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_another_run_where_it_acts(files, edit):
    three = {
        "own": mine(),
        "base": mine(method="baseline"),
        "kit": mine(data="glyphs_few", student="resnet8_w0.5", n_train=200),
    }
    files()
    before = {name: plans.plan(run).id for name, run in three.items()}
    assert {name: plans.plan(run).id for name, run in three.items()} == before
    files(*EDITS[edit][:2])
    after = {name: plans.plan(run).id for name, run in three.items()}
    changed = [name for name in three if before[name] != after[name]]
    assert " ".join(changed) == EDITS[edit][2]
    files()
    assert {name: plans.plan(run).id for name, run in three.items()} == before


def test_an_edited_network_never_gets_an_old_answer(files, runs):
    files()
    first = kd.get(mine())
    files([("WIDTH = 4", "WIDTH = 16")])
    second = kd.get(mine())
    assert first.id != second.id
    sizes = [sum(p.numel() for p in record.model().parameters()) for record in (second,)]
    assert sizes[0] > 1000


def test_a_learners_teacher_is_in_its_students_id(files):
    files()
    kd_run = plans.preset("smoke", method="kd", teacher="my_net")
    before = plans.plan(kd_run).id
    files([("WIDTH = 4", "WIDTH = 5")])
    assert plans.plan(kd_run).id != before


def test_the_packages_code_is_in_the_record_not_in_the_id(runs):
    planned = plans.plan(plans.preset("smoke", epochs=1))
    digest, _ = sources.identity("glyphs")
    assert planned.identity == {"data": f"package: {digest}"}  # its images, and none of its code
    record = kd.get(planned)
    assert record.meta["code"] == fingerprint.class_digest(kd.Baseline)


def test_data_read_from_a_file_is_in_the_id_by_its_content(tmp_path):
    path = tmp_path / "mine.npz"
    reads = []

    def write(seed, test=20):
        draw = np.random.default_rng(seed)
        x = draw.integers(0, 255, (40, 8, 8), dtype=np.uint8)
        np.savez(path, x=x, y=np.arange(40) % 2)

    @kd.dataset("from_file")
    def from_file():
        reads.append(1)
        kept = np.load(path)
        return kd.data.tensors(kept["x"][:30], kept["y"][:30], kept["x"][30:], kept["y"][30:])

    try:
        run = plans.preset("smoke", data="from_file", n_train=0, batch=10)
        write(0)
        first = plans.plan(run).id
        assert plans.plan(run).id == first and len(reads) == 1  # it is not read anew
        write(1)
        second = plans.plan(run).id
        assert second != first and len(reads) == 2
        write(0)
        assert plans.plan(run).id == first
    finally:
        DATASETS.pop("from_file", None)


def test_a_name_that_is_not_there_names_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'okdip': did you mean okddip"):
        plans.plan(plans.preset("smoke", method="okdip"))
    with pytest.raises(ValueError, match="unknown network 'resnet9': did you mean"):
        plans.plan(plans.preset("smoke", student="resnet9"))
    with pytest.raises(ValueError, match="unknown data set 'leson': did you mean lesson"):
        plans.plan(plans.preset("smoke", data="leson"))
    with pytest.raises(ValueError, match="unknown metric 'nlll': did you mean nll"):
        METRICS.find("nlll")


def test_a_run_is_described_by_names():
    with pytest.raises(ValueError, match="a run is described by names"):
        plans.preset("smoke", augment=lambda x, g: x)


# Things that a learner's function may use, before and after an edit that acts.
OBJECTS = {
    "a library's layer": ("nn.LeakyReLU(0.01)", "nn.LeakyReLU(0.9)"),
    "a layer in a row": ("nn.Sequential(nn.ReLU())", "nn.Sequential(nn.GELU())"),
    "a loss": (
        "nn.CrossEntropyLoss(label_smoothing=0.0)",
        "nn.CrossEntropyLoss(label_smoothing=1)",
    ),
    "dropout": ("nn.Dropout(0.1)", "nn.Dropout(0.2)"),
    "a method of the kit": ("kd.KD(T=2.0)", "kd.KD(T=3.0)"),
    "a recipe": ("kd.Recipe(lr=0.1)", "kd.Recipe(lr=0.2)"),
    "a namespace": ("types.SimpleNamespace(a=1)", "types.SimpleNamespace(a=2)"),
    "a read-only dict": ("types.MappingProxyType({1: 2})", "types.MappingProxyType({1: 3})"),
    "a queue": ("collections.deque([1])", "collections.deque([2])"),
    "a pattern": ("re.compile('a')", "re.compile('b')"),
    "a fraction": ("fractions.Fraction(1, 2)", "fractions.Fraction(1, 3)"),
    "a slice": ("slice(1)", "slice(2)"),
    "an item getter": ("operator.itemgetter(1)", "operator.itemgetter(2)"),
    "a distribution": (
        "torch.distributions.Normal(0.0, 1.0)",
        "torch.distributions.Normal(0.0, 2.0)",
    ),
    "a generator": ("torch.Generator().manual_seed(1)", "torch.Generator().manual_seed(2)"),
    "a tensor": ("torch.ones(3)", "torch.zeros(3)"),
    "an array": ("np.ones(3)", "np.zeros(3)"),
    "a bound method": ("[1].count", "[2].count"),
    "a partial": ("functools.partial(max, 1)", "functools.partial(max, 2)"),
    "a lambda in a dict": ("{'f': lambda x: x + 1}", "{'f': lambda x: x + 2}"),
    "a cached function": (
        "functools.lru_cache(lambda x: x + 1)",
        "functools.lru_cache(lambda x: x)",
    ),
}
USES = """
import collections, fractions, functools, operator, re, types
import kdkit as kd, numpy as np, torch
from torch import nn
THING = {thing}
def function(x):
    return THING, x
"""


def function_with(code, name="learner_objects"):
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, f"<{name}>", "exec"), vars(module))
    return module.function


@pytest.mark.parametrize("thing", OBJECTS)
def test_what_a_used_object_holds_counts(thing):
    before, after = (
        fingerprint.fingerprint(function_with(USES.format(thing=t))) for t in OBJECTS[thing]
    )
    again = fingerprint.fingerprint(function_with(USES.format(thing=OBJECTS[thing][0])))
    assert before == again != after


@pytest.mark.parametrize(
    "before, after, same",
    [
        ("def f():\n  return C.pop('k', 0)", None, False),  # it is read
        ("def f():\n  C['n'] = 1\n  return C['k']", None, False),
        ("def f():\n  LOG.append(1)", None, True),  # it is filled alone
        ("def f(x):\n  y = x + 1\n  return y", "def f(x):\n  z = x + 1\n  return z", True),
        (
            "def f():\n  class A:\n    'Doc.'\n    a = 1\n  return A",
            "def f():\n  class A:\n    a = 1\n  return A",
            True,
        ),
        ("def f(x):\n  return x + 1", "def f(x):\n  return x + 2", False),
        ("def f(a, b):\n  return a - b", "def f(b, a):\n  return a - b", False),
    ],
)
def test_what_acts_and_what_does_not(before, after, same):
    texts = [
        f"C = {{'k': {k}}}\nLOG = [{k}]\n{code}\nfunction = f\n"
        for k, code in ((1, before), (2 if after is None else 1, after or before))
    ]
    first, second = (fingerprint.fingerprint(function_with(text)) for text in texts)
    assert (first == second) == same


def test_imports_inside_a_function_are_followed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    codes = (
        "def function():\n  import my_inner\n  return my_inner.f()",
        "def function():\n  from my_inner import f\n  return f()",
        "import my_package.sub\ndef function():\n  return my_package.sub.f()",
    )
    found = []
    for value in (1, 2, 1):
        for name in ("my_inner", "my_package", "my_package.sub"):
            sys.modules.pop(name, None)
        for path in (tmp_path / "my_inner.py", package / "sub.py"):
            path.write_text(f"def f():\n    return {value}{'0' * value}\n")
        importlib.invalidate_caches()
        found.append([fingerprint.fingerprint(function_with(code)) for code in codes])
    assert found[0] == found[2] and all(a != b for a, b in zip(*found[:2], strict=True))


def test_arguments_of_a_partial_network_count():
    def sized(channels, classes, width):
        return torch.nn.Linear(channels * width, classes)

    ids = []
    for width in (8, 16):
        kd.network("sized")(functools.partial(sized, width=width))
        ids.append(plans.plan(plans.preset("smoke", student="sized")).id)
    networks._REGISTRY.pop("sized")
    assert ids[0] != ids[1]


class Flipped:
    """A dataset with a transform that draws."""

    def __init__(self, p, folder):
        self.p, self.folder, self.targets = p, folder, [0, 1, 0, 1]

    def __len__(self):
        return 4

    def __getitem__(self, i):
        x = torch.from_numpy(np.load(self.folder / f"{i}.npy"))
        return (x.flip(1) if torch.rand(()) < self.p else x), self.targets[i]


def test_data_that_are_read_as_needed(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full((5, 5), i, np.uint8))
    chance = [0.0]

    @kd.dataset("flipped")
    def flipped():
        made = Flipped(chance[0], tmp_path)
        return kd.data.dataset(made, made, mean=[0.5], std=[0.5])

    run = plans.preset("smoke", data="flipped", n_train=0)
    try:
        first = plans.plan(run).id
        assert plans.plan(run).id == first
        chance[0] = 0.001  # the same images are read with it
        drawn = plans.plan(run).id
        chance[0] = 0.0
        assert drawn != first == plans.plan(run).id
        np.save(tmp_path / "3.npy", np.full((5, 5), 9, np.uint8))
        assert plans.plan(run).id != first  # in the same process
    finally:
        DATASETS.pop("flipped", None)


def test_an_old_record_is_not_loaded_into_a_new_network(files, runs):
    files()
    record = kd.get(mine())
    assert record.student() is not None
    files([("conv(x).relu()", "conv(x).tanh()")])
    with pytest.raises(ValueError, match="was trained with other code of network my_net"):
        kd.store.read(record.path).student()


def test_a_metric_cannot_change_what_is_stored(runs):
    record = kd.get(plans.preset("smoke", epochs=1))
    before = record.metric("nll")

    @kd.metric("spoils")
    def spoils(z, y):
        y[:] = 0
        z[:] = 0
        return 0.0

    record.metric("spoils")
    METRICS.pop("spoils")
    assert record.metric("nll") == before


def test_a_sweep_says_why_it_cannot_carry_a_notebooks_code(files, runs):
    files()
    with pytest.raises(ValueError, match="method mine.* is defined in this session"):
        kd.sweep.sweep([mine()])
    assert not runs.exists()
