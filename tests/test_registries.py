"""What people add, a method, a network, a data set, a figure and a metric, in one file; what is
theirs is in the id of a run, with all that it uses."""

import importlib.util
import sys
import textwrap

import numpy as np
import pytest
import torch

import kdkit as kd
from kdkit.data import DATASETS
from kdkit.methods import METHODS
from kdkit.metrics import METRICS
from kdkit.models import base as networks
from kdkit.study import fingerprint, plans
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
    table, _, (alt,) = kd.figures.make("my_figure", [record, kd.get(mine(method="baseline"))])
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
        "kit": mine(data="lesson_few", student="resnet8_w0.5", n_train=200),
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


def test_the_packages_own_are_in_the_record_not_in_the_id(runs):
    planned = plans.plan(plans.preset("smoke", epochs=1))
    assert planned.identity == {}
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
