"""The README's worked example runs, and what it says is there is there."""

import math
import re
from pathlib import Path

import pandas as pd

import kdkit as kd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_worked_example_trains(tmp_path, capsys, monkeypatch):
    code = next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "class " in b)
    file = tmp_path / "example.py"
    file.write_text(code)
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / "runs"))
    space = {"__name__": "learner"}
    exec(compile(code, str(file), "exec"), space)
    assert "label_smoothing" in kd.methods()
    assert 0 < space["record"].result["top1"][0] <= 100
    assert "uniform" in capsys.readouterr().out


def test_the_tree_names_every_module():
    tree = README.split("```")[
        README.split("```").index(next(p for p in README.split("```") if "kdkit/config.py" in p))
    ]
    named = {line.split()[0] for line in tree.strip().splitlines()}
    for path in (ROOT / "kdkit").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert f"kdkit/{path.name}" in named
        if path.is_dir() and path.name != "__pycache__":
            assert f"kdkit/{path.name}/" in named
    for name in named:
        assert (ROOT / name).exists() or name == "figures/", name


def test_glossary_and_licence():
    for word in ("| z |", "| h |", "| T, tau |", "Zalando", "torchdistill", "GPU"):
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
            assert (control, float(gap), float(half)) == (
                row.control,
                round(row.difference, 2),
                round(row.half_width, 2),
            )
            assert shown == ("yes" if row.shown else "no")
        else:
            assert control == gap == half == shown == ""
