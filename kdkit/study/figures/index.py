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
from .. import project, reference
from ..plans import Run, plan, preset
from ..store import Record
from .style import figure_bytes, footnote


@dataclass(frozen=True)
class Figure:
    """A registered figure. It is made by `make`, which computes its table once."""

    name: str
    notebook: str  # the number of the notebook that draws it, "" for none
    runs: Callable[[Run], list[dict]]  # preset -> fields of its runs; all but the seed
    table: Callable[[list[Record]], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Drawing]
    say: Callable[[pd.DataFrame], list[str]]  # the alt text, then the findings, a sentence each
    module: str  # where it was registered
    whole: bool = False  # does it need logits, maps or weights, which the reference has not?


FIGURES = Registry("figure")
default_kind: Any = None  # the accuracies of its runs; accuracy.py sets it


def figure(
    name: str,
    *,
    runs: Iterable[dict] | Callable[[Run], list[dict]] = (),
    notebook: str = "",
    kind: Any = None,
    whole: bool = False,
) -> Callable[[Any], Any]:
    """Register a figure, as a statement or as the decorator of a class or function.

    name: of the figure and of its files; letters, digits, "_" and "-". runs: fields of each of its
    runs without the seed, or a function of the preset's run that returns them. notebook: the number
    of the notebook that draws it, "" for none. kind: an object with the functions `table(records)`,
    `draw(table)` and `say(table)`; by default `accuracy.Accuracy()`. The last two may take a second
    table, `reference`: that of the project's reference rows, to be drawn in grey beneath and spoken
    of. whole: it needs records with logits, maps or weights.

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
    given = runs if callable(runs) else list(runs)
    of_preset = given if callable(given) else lambda base: given
    registered = Figure(name, notebook, of_preset, kind.table, kind.draw, kind.say, module, whole)
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


def wanted(
    name: str | None, preset_name: str, seeds: int | Iterable[int], without_reference: bool = False
) -> list[Run]:
    """The runs of a figure, or of all that notebooks draw in the notebooks' order, each once.

    Teachers are not listed. seeds: how many (0, 1, ...), or which. without_reference: without what
    can be drawn from rows of the reference. ValueError for unknown names.
    """
    if name is not None:
        entries = [get_figure(name)]
    else:
        entries = [FIGURES[each] for each in list_figures() if FIGURES[each].notebook]
    seeds = range(seeds) if isinstance(seeds, int) else list(seeds)
    base = preset(preset_name)
    if without_reference:
        entries = [entry for entry in entries if not has_reference(entry, base)]
    runs = [
        base.replace(**{**fields, "seed": seed})
        for entry in entries
        for fields in entry.runs(base)
        for seed in seeds
    ]
    return list({plan(run).id: run for run in runs}.values())


def reference_records(entry: Figure, base: Run) -> list[Record]:
    """The rows of the reference that a figure can be drawn from: those of its runs of all seeds,
    under the recipe `base`; none where the figure needs more or a run has no row at all."""
    if entry.whole:
        return []
    known, found = reference.load(), []
    for fields in entry.runs(base):
        rows = [known.find(base.replace(**{**fields, "seed": s})) for s in reference.SEEDS]
        rows = [row for row in rows if row]
        if not rows:
            return []
        found += rows
    return found


def has_reference(entry: Figure, base: Run) -> bool:
    """Can the figure be drawn from the reference alone?"""
    return bool(reference_records(entry, base)) or (not entry.runs(base) and not entry.whole)


def make(
    name: str, records: list[Record], beneath: Iterable[Record] = ()
) -> tuple[pd.DataFrame, Drawing, list[str]]:
    """The figure's table, its drawing and its sentences (the alt text first), from its records.

    beneath: rows of the reference to be drawn in grey. The last sentence, and a line below the
    drawing, say whose numbers are shown.
    """
    entry = get_figure(name)
    table, beneath = entry.table(records), list(beneath)
    under = {}
    if beneath and "reference" in inspect.signature(entry.draw).parameters:
        under = {"reference": entry.table(beneath)}
    fig = entry.draw(table, **under)
    says = under if "reference" in inspect.signature(entry.say).parameters else {}
    sentences = entry.say(table, **says)
    if records:
        whose = "; ".join([_whose(records), *(f"grey: {_whose(beneath)}" for _ in under)])
        footnote(fig, whose)
        sentences.append(f"Whose numbers: {whose}.")
    return table, fig, sentences


def _whose(records: Iterable[Record]) -> str:
    """Where the numbers of a figure come from, in words."""
    seeds = sorted({record.run.seed for record in records})
    text = f"seed{'s' if len(seeds) > 1 else ''} {seeds[0]}"
    if len(seeds) > 1:
        text += (
            f" to {seeds[-1]}"
            if seeds == list(range(seeds[0], seeds[-1] + 1))
            else "".join(f", {seed}" for seed in seeds[1:])
        )
    rows = [record for record in records if isinstance(record, reference.ReferenceRecord)]
    if rows:
        changed = reference.load().other_code(rows)
        other = f"; code has changed since: {', '.join(changed)}" if changed else ""
        return f"the project's reference, {text} (benchmarks/reference.csv{other})"
    return f"runs of this store, {text}"


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
