"""The README's worked example runs, and what it says is there is there."""

import math
import re
from pathlib import Path

import pandas as pd
import torch

import kdkit as kd
from kdkit.data import DATASETS
from kdkit.methods import METHODS
from kdkit.models.base import _REGISTRY
from kdkit.study.figures import FIGURES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def example(number, folder, monkeypatch):
    """What the README's python block of that number leaves behind, run in a folder of its own."""
    code = re.findall(r"```python\n(.*?)```", README, re.S)[number]
    file = folder / "example.py"
    file.write_text(code)
    monkeypatch.setenv("KDKIT_RUNS", str(folder / "runs"))
    space = {"__name__": "learner"}
    exec(compile(code, str(file), "exec"), space)
    return space


def test_the_library_example_trains(tmp_path, monkeypatch):
    space = example(0, tmp_path, monkeypatch)
    assert space["fitted"].students is space["students"]
    assert len(space["fitted"].result["top1"]) == 3


def test_the_named_example_trains(tmp_path, monkeypatch):
    short = {"n_train": 100, "epochs": 1, "data": "glyphs_few", "student": "resnet8_w0.25"}
    lab = kd.lab
    monkeypatch.setattr(kd, "lab", lambda name: lab("smoke", **short))
    space = example(1, tmp_path, monkeypatch)
    assert space["student"](torch.zeros(1, 1, 20, 20, dtype=torch.uint8)).shape == (1, 100)


def test_the_added_example_trains(tmp_path, capsys, monkeypatch):
    kept = [dict(r) for r in (METHODS, DATASETS, FIGURES, _REGISTRY)]
    space = example(2, tmp_path, monkeypatch)
    assert "label_smoothing" in kd.list_methods() and "smoothing" in kd.list_figures()
    assert 0 < space["record"].result["top1"][0] <= 100
    assert "uniform" in capsys.readouterr().out
    for registry, entries in zip((METHODS, DATASETS, FIGURES, _REGISTRY), kept, strict=True):
        registry.clear()
        registry.update(entries)


def test_the_tree_names_every_module():
    blocks = README.split("```")
    tree = next(b for b in blocks if "kdkit/fields.py" in b)
    named = {line.split()[0] for line in tree.strip().splitlines()}
    for path in [*(ROOT / "kdkit").iterdir(), *(ROOT / "kdkit/study").iterdir()]:
        place = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert place in named or path.parent.name == "study"
        if path.is_dir() and path.name != "__pycache__":
            assert f"{place}/" in named
    for name in named:
        assert (ROOT / name).exists() or name == "figures/", name


def test_glossary_and_licence():
    for word in ("| z |", "| h |", "| T, tau |", "LICENSE-glyphs", "torchdistill", "GPU"):
        assert word in README


def test_the_results_are_those_of_the_committed_figure():
    """The README's table is figures/results.csv, row by row."""
    table = pd.read_csv(ROOT / "figures" / "results.csv")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.partition("<!-- results -->")[2]
        .partition("<!-- end -->")[0]
        .splitlines()
        if line.startswith("|")
    ][2:]
    assert len(rows) == len(table)
    for (name, n, mean, sd, control, gap, half, shown), row in zip(
        rows, table.itertuples(), strict=True
    ):
        assert (name, int(n), float(mean)) == (row.label, row.n, round(row.mean, 2))
        assert sd == ("" if math.isnan(row.sd) else f"{row.sd:.2f}")
        if isinstance(row.control, str):
            assert (control, float(gap.replace("−", "-"))) == (
                row.control,
                round(row.difference, 2),
            )
            assert half == ("" if math.isnan(row.half_width) else f"{row.half_width:.2f}")
            assert shown == ("yes" if row.shown else "no")
        else:
            assert control == gap == half == shown == ""
