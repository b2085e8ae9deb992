"""What a paper's table says that a method gains, beside what the lesson gives.

Accuracies of other networks on other data do not compare; the difference to one control under one
recipe does, with care. `against` sets the two side by side for any methods of a table.
"""

from collections.abc import Iterable

import pandas as pd

from .. import reference, statistics, store
from ..plans import Run, preset
from . import cells


def against(
    which: str, names: Iterable[str], control: str, run: Run | None = None, digits: int = 2
) -> pd.DataFrame:
    """As published, ours, and the difference: by how many points of accuracy each of a table's
    methods is above a control.

    which: "paper:table"; names, control: labels of its rows or columns, as printed; "DCKD" stands
    for the mean of "DCKD Net1" and on. run: the recipe of ours, by default the lesson's. Ours are
    paired by seed, from the project's reference or from the store. Returns a row for each name,
    numbered from 1: published (mean over the table's `networks`), least and most of them, ours, the
    half width of its 95 % interval, n seeds, and ours less published. ValueError: unknown names.
    """
    table, base, rows = cells(which), run or preset(reference.PRESET), []
    side, other = _sides(table, control)
    theirs = _published(table, side, other, control)
    controls = _ours(table, side, control, base)
    for name in names:
        gains = (_published(table, side, other, name) - theirs).dropna()
        values = _ours(table, side, name, base)
        seeds = sorted(values.keys() & controls.keys())
        pairs = [values[s] for s in seeds], [controls[s] for s in seeds]
        n, mean, half = statistics.paired(*pairs) if seeds else (0, float("nan"), float("nan"))
        rows.append(
            {
                "method": name,
                "above": control,
                "networks": len(gains),
                "published": gains.mean(),
                "least": gains.min(),
                "most": gains.max(),
                "ours": mean,
                "±": half,
                "n": n,
                "ours - published": mean - gains.mean(),
            }
        )
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1)).round(digits)


def _sides(table: pd.DataFrame, name: str) -> tuple[str, str]:
    """The level of the table that holds methods, and the one that holds networks."""
    for side, other in (("row", "column"), ("column", "row")):
        if not _of(table, side, name).empty:
            return side, other
    known = [*table["row"].unique(), *table["column"].unique()]
    raise ValueError(f"control: seen {name!r}; allowed: {' | '.join(known)}")


def _of(table: pd.DataFrame, side: str, name: str) -> pd.DataFrame:
    """The cells of a method: of its label, or of its sorted networks' labels."""
    found = table[table[side] == name]
    return found if len(found) else table[table[side].str.startswith(f"{name} Net")]


def _published(table: pd.DataFrame, side: str, other: str, name: str) -> pd.Series:
    """A method's accuracies in percent, for each pair of networks."""
    found = _of(table, side, name)
    if found.empty:
        raise ValueError(f"name: seen {name!r}; allowed: {' | '.join(table[side].unique())}")
    signs = found["metric"].str.endswith("error").map({True: -1.0, False: 1.0})
    return (found["published"] * signs).groupby(found[other]).mean()


def _ours(table: pd.DataFrame, side: str, name: str, base: Run) -> dict[int, float]:
    """Seed -> accuracy in percent of the deployed student, or of the students' ensemble where the
    table prints that, where there is a run. An ensemble of several runs has none."""
    cell, known = _of(table, side, name).iloc[0], reference.load()
    fields = dict(pair.split("=") for pair in cell["params"].split(";") if pair)
    if cell["statistic"] == "teacher":  # written as the run that it is
        fields["student"] = base.teacher
    quantity, found = "ensemble" if cell["statistic"] == "ensemble" else "top1_deployed", {}
    for seed in () if "independent" in cell["statistic"] else reference.SEEDS:
        run = base.replace(**{"method": cell["method"], **fields, "seed": seed})
        if record := store.find(run) or known.find(run):
            found[seed] = record.result[quantity]
    return found
