"""The benchmark runs, and both of its sides do the same work. No timing is judged here."""

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdkit.methods import Step
from kdkit.models import Out, count

FILE = Path(__file__).parents[1] / "benchmarks" / "train_step.py"
KEYS = {"name", "kdkit_img_s", "plain_img_s", "ratio", "kernel_share"}


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("train_step", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny():
    return argparse.Namespace(
        images=100, batch=4, student="resnet8", teacher="resnet8", threads=1, compile=False
    )


def test_json():
    asked = (
        "--json --case okddip --steps 1 --turns 1 --threads 1 --batch 4 --images 8 "
        "--student resnet8"
    )
    done = subprocess.run([sys.executable, FILE, *asked.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["cases"]
    assert set(row) == KEYS and row.pop("name") == "okddip"
    assert all(math.isfinite(v) and v > 0 for v in row.values())
    assert row["ratio"] == pytest.approx(row["kdkit_img_s"] / row["plain_img_s"])
    assert row["kernel_share"] < 1


@pytest.mark.parametrize("case", ["baseline", "kd", "okddip"])
def test_both_sides_have_the_same_networks(bench, tiny, case):
    state, x = bench.state_of(case, tiny), torch.randn(2, 3, 32, 32)
    plain = bench.ResNet(tiny.student, bench.M if case == "okddip" else 1)
    assert count(state.students, x) == count(plain, x)
    assert (state.teacher is not None) == (case == "kd")


def test_both_sides_have_the_same_losses(bench, tiny):
    g = torch.Generator().manual_seed(0)
    z, h = torch.randn(4, 5, bench.K, generator=g), torch.randn(4, 5, 64, generator=g)
    y = torch.randint(bench.K, (5,), generator=g)
    method = bench.state_of("okddip", tiny).method
    step = Step(y, 0, 300, g)
    terms = method.terms(Out(z, (), (), h), y, None, step)
    ours = sum(v * (0.5 if k in method.ramped else 1) for k, v in terms.items())
    theirs = bench.okddip_loss(list(z), list(h), y, method.Wq, method.Wk, 0.5)
    torch.testing.assert_close(ours, theirs)
    method = bench.state_of("kd", tiny).method
    kd = method.terms(Out(z[0], (), (), h[0]), y, Out(z[1], (), (), h[1]), step)["kd"]
    torch.testing.assert_close(kd, bench.distil(z[0], z[1]))


@pytest.mark.parametrize("case", ["baseline", "kd", "okddip"])
def test_a_step_of_each_loop(bench, tiny, case, monkeypatch):
    steps, forward_terms = [], bench.train.forward_terms

    def counted(state, *args):
        steps.append(state.step)
        return forward_terms(state, *args)

    monkeypatch.setattr(bench.train, "forward_terms", counted)
    take = bench.kdkit(case, tiny)
    assert bench.timed(take, 2) > 0 and steps == [23, 24]  # the last of 25
    assert 0 < bench.kernel_share(take) < 1 and steps.pop() == 24
    take(26)
    assert steps == [23, 24, *range(25), 24]
    plain = bench.plain(case, tiny)
    assert bench.timed(plain, 1) > 0


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("--steps 0", "--steps 0: must be at least 1"),
        ("--images 8", "must be at least the batch, 128"),
        ("--case none", "invalid choice: 'none'"),
    ],
)
def test_refuses(bench, monkeypatch, capsys, wrong, said):
    monkeypatch.setattr(sys, "argv", ["train_step.py", *wrong.split()])
    with pytest.raises(SystemExit):
        bench.main()
    assert said in capsys.readouterr().err
