"""The figures by name: which runs each one shows, its table, its drawing and its sentences.

A figure is added in one place: a file of this package, a file of your own or a notebook cell. One
line is enough for the accuracies of some runs and their differences. As a decorator, `figure` takes
from a class what is to be another way:

>>> import kdkit as kd
>>> from matplotlib.figure import Figure
>>> _ = kd.figure("my_accuracy", runs=[{"method": "baseline"}, {"method": "kd", "T": 2.0}])
>>> @kd.figure("my_seconds", runs=[{"method": "baseline"}, {"method": "kd"}])
... class Seconds:
...     def table(records):
...         rows = [
...             {"label": name, **kd.figures.spread({r.run.seed: r.meta["seconds"] for r in group})}
...             for name, group in kd.figures.grouped(records).items()
...         ]
...         return kd.figures.frame(rows, records)
...
...     @kd.figures.kdkit_style()
...     def draw(table):
...         fig = Figure(figsize=(5, 2))
...         fig.subplots().barh(table["label"], table["mean"])
...         return fig
...
...     def say(table):
...         slowest = table.loc[table["mean"].idxmax(), "label"]
...         return ["Seconds of training, a bar for each method.", f"{slowest} takes longest."]
>>> kd.figures.list_figures()[-2:]
['my_accuracy', 'my_seconds']

Then `kd.lab().figure("my_seconds")` trains what is missing, draws, saves and shows it. Where it
stands in a file, `python -m kdkit figures --only my_seconds --module FILE.py` draws it.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Drawing

from ...fields import Registry
from .. import project
from ..plans import Run, plan, preset
from ..store import Record
from .style import figure_bytes


@dataclass(frozen=True)
class Figure:
    """A registered figure. It is made by `make`, which computes its table once."""

    name: str
    notebook: str  # the number of the notebook that draws it, "" for none
    runs: tuple[dict, ...]  # fields of its runs; all but the seed
    table: Callable[[list[Record]], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Drawing]
    say: Callable[[pd.DataFrame], list[str]]  # the alt text, then the findings, a sentence each
    module: str  # where it was registered


FIGURES = Registry("figure")
default_kind: Any = None  # the accuracies of its runs; accuracy.py sets it


def figure(
    name: str, *, runs: Iterable[dict] = (), notebook: str = "", kind: Any = None
) -> Callable[[Any], Any]:
    """Register a figure, as a statement or as the decorator of a class or function.

    name: of the figure and of its files; letters, digits, "_" and "-". runs: fields of each of its
    runs without the seed. notebook: the number of the notebook that draws it, "" for none. kind: an
    object with the functions `table(records)`, `draw(table)` and `say(table)`; by default
    `accuracy.Accuracy()`.

    Decorated with it, a class replaces those of the three that it defines (they take no `self`),
    and a function replaces `table`. What is decorated stays as it is. A name may be registered
    again by the module that registered it, so that a cell can be run twice; ValueError otherwise.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"figure name {name!r}: use letters, digits, '_' and '-'")
    module = sys._getframe(1).f_globals.get("__name__", "")
    if name in FIGURES and FIGURES[name].module != module:
        raise ValueError(f"figure {name!r} is there already, in {FIGURES[name].module}")
    kind = kind or default_kind
    registered = Figure(name, notebook, tuple(runs), kind.table, kind.draw, kind.say, module)
    FIGURES[name] = registered

    def decorate(subject):
        """Take over what `subject` defines."""
        if inspect.isfunction(subject):
            own = {"table": subject}
        else:
            own = {p: getattr(subject, p) for p in ("table", "draw", "say") if hasattr(subject, p)}
        FIGURES[name] = replace(registered, **own)
        return subject

    return decorate


def list_figures() -> list[str]:
    """Names of the registered figures, in the order of the notebooks; those of none come last."""
    return sorted(FIGURES, key=lambda name: (FIGURES[name].notebook == "", FIGURES[name].notebook))


def get_figure(name: str) -> Figure:
    """The figure of that name; ValueError with the nearest names if there is none."""
    return FIGURES.find(name)


def wanted(name: str | None, preset_name: str, seeds: int | Iterable[int]) -> list[Run]:
    """The runs of a figure, or of all that notebooks draw in the notebooks' order, each once.

    Teachers are not listed. seeds: how many (0, 1, ...), or which. ValueError for unknown names.
    """
    if name is not None:
        entries = [get_figure(name)]
    else:
        entries = [FIGURES[each] for each in list_figures() if FIGURES[each].notebook]
    seeds = range(seeds) if isinstance(seeds, int) else list(seeds)
    runs = [
        preset(preset_name, **{**fields, "seed": seed})
        for entry in entries
        for fields in entry.runs
        for seed in seeds
    ]
    return list({plan(run).id: run for run in runs}.values())


def make(name: str, records: list[Record]) -> tuple[pd.DataFrame, Drawing, list[str]]:
    """The figure's table, its drawing and its sentences (the alt text first), from its records."""
    entry = get_figure(name)
    table = entry.table(records)
    return table, entry.draw(table), entry.say(table)


def figures_root() -> Path:
    """$KDKIT_FIGURES, else `figures/local` beside the package's project, or in this folder."""
    return project.place("KDKIT_FIGURES", "figures/local")


def save(fig: Drawing, name: str, alt: str, table: pd.DataFrame) -> Path:
    """Write NAME.png, .svg, .csv (the table) and .json (alt text, ids of the runs) to
    `figures_root()`, each whole or not at all; returns the PNG's path."""
    path = figures_root() / name
    about = {"alt": alt, "runs": table.attrs.get("runs", [])}
    numbers = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    files = {
        "svg": figure_bytes(fig, "svg"),
        "csv": numbers.encode(),
        "json": (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode(),
        "png": figure_bytes(fig, "png", dpi=150),
    }
    for kind, content in files.items():
        project.write(path.with_name(f"{name}.{kind}"), content)
    return path.with_name(f"{name}.png")
