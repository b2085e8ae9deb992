"""What the subjects share: from records to tables, and from rows of a table to words.

A table has the columns n, mean, sd (n-1) and "seed 0", "seed 1", ...; `attrs["runs"]` holds the
ids of the records that it was computed from. A difference inside its 95 % interval is called not
shown.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from ...methods import plain_method
from .. import sources, statistics
from ..plans import control, label, plan
from ..store import Record


def grouped(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records that differ in nothing but the seed, under their label, sorted by seed."""
    groups: dict[str, dict[int, Record]] = {}
    for record in records:
        groups.setdefault(label(record.run), {})[record.run.seed] = record
    return {name: [group[seed] for seed in sorted(group)] for name, group in groups.items()}


def frame(rows: list[dict], records: Iterable[Record]) -> pd.DataFrame:
    """A table with the seeds' columns last, in order, and the ids of its runs."""
    table = pd.DataFrame(rows)
    seeds = sorted(seed_columns(table), key=lambda column: int(column[5:]))
    table = table[[column for column in table.columns if column not in seeds] + seeds]
    table.attrs["runs"] = sorted({record.id for record in records})
    return table


def seed_columns(table: pd.DataFrame) -> list[str]:
    """The columns that hold one value for each seed."""
    return [column for column in table.columns if column.startswith("seed ")]


def seed_values(row: pd.Series) -> dict[int, float]:
    """Seed -> value of one row, for the seeds that have one."""
    columns = [name for name in row.index if name.startswith("seed ")]
    return {int(name[5:]): float(row[name]) for name in columns if row[name] == row[name]}


def spread(values: dict[int, float]) -> dict[str, float]:
    """n, mean, sd and the values themselves, from one value for each seed."""
    n, mean, sd = statistics.summary(values.values())
    return {"n": n, "mean": mean, "sd": sd} | {f"seed {s}": v for s, v in values.items()}


def paired(ours: dict[int, float], control: dict[int, float]) -> dict[str, Any]:
    """The mean difference of two kinds of run, paired by seed (seed -> value each).

    Returns difference, half_width of its 95 % interval, pairs (how many), and shown: is 0 outside
    the interval?
    """
    both = sorted(ours.keys() & control.keys())
    if not both:
        return {"difference": np.nan, "half_width": np.nan, "pairs": 0, "shown": False}
    n, mean, half = statistics.paired([ours[s] for s in both], [control[s] for s in both])
    return {"difference": mean, "half_width": half, "pairs": n, "shown": bool(abs(mean) > half)}


def paired_rows(ours: pd.Series, other: pd.Series) -> dict[str, Any]:
    """`paired` for two rows of a table."""
    return paired(seed_values(ours), seed_values(other))


def half_widths(table: pd.DataFrame) -> np.ndarray:
    """Half of the 95 % interval of each row's mean, over its seeds; 0 for a single seed."""
    pairs = zip(table["sd"], table["n"], strict=True)
    return np.array([np.nan_to_num(statistics.half_width(sd, int(n))) for sd, n in pairs])


def row_of(table: pd.DataFrame | None, label: str) -> pd.Series | None:
    """The row of that label; None where there is no table or no such row."""
    rows = table[table["label"] == label] if table is not None else ()
    return rows.iloc[0] if len(rows) else None


def control_label(record: Record) -> str:
    """The label of the runs that are the fair comparison with this one; "" if there are none."""
    other = control(record.run)
    return label(other) if other else ""


def teacher_accuracies(records: Iterable[Record]) -> list[dict[int, float]]:
    """Test accuracies in percent of the plain teachers behind these records: for each kind of
    teacher, the seed of its run -> its accuracy."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        teacher = plan(record.run).teacher
        if teacher and type(teacher.method) is plain_method() and "teacher_top1" in record.result:
            kind = found.setdefault(label(teacher.run), {})
            kind[teacher.run.seed] = record.result["teacher_top1"]
    return list(found.values())


@cache
def test_images(name: str) -> np.ndarray:
    """Test images (N, C, H, W) of a data set in memory."""
    return sources.load(name).x_test.cpu().numpy()


def count_text(table: pd.DataFrame) -> str:
    """How many seeds stand behind a table, as a symbol: "n = 3"."""
    n = sorted({int(v) for v in table["n"]})
    return f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"


def seeds_text(table: pd.DataFrame) -> str:
    """How many seeds stand behind a table, in words: "3 seeds", "3 to 10 seeds"."""
    least, most = int(table["n"].min()), int(table["n"].max())
    return f"{f'{least} to ' if least < most else ''}{most} seed{'s' if most > 1 else ''}"


def each_row(table: pd.DataFrame, template: str) -> str:
    """The template with every row's values put in, joined by commas: "{label} {mean:.2f}"."""
    return ", ".join(template.format(**row) for row in table.to_dict("records"))


def verdict(subject: str, other: str, row, unit: str = "points", digits: int = 2) -> str:
    """One sentence on a paired difference and whether it is shown.

    subject, other: what is compared with what; row: with the fields of `paired`.
    """
    difference, half, n = row["difference"], row["half_width"], int(row["pairs"])
    if difference:
        size = f"{abs(difference):.{digits}f} {unit}".strip()
        side = "above" if difference > 0 else "below"
        fact = f"{subject} is {size} {side} {other}"
    else:
        fact = f"{subject} is level with {other}"
    if n < 2:
        return f"{fact} in {n} seed: one seed gives no interval, so this is not shown."
    if row["shown"]:
        return f"{fact} (95 % interval ± {half:.{digits}f}, n = {n}): shown."
    return f"{fact}, inside its 95 % interval of ± {half:.{digits}f} (n = {n}): not shown."
