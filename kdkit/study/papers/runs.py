"""From a row of the papers' tables to the runs behind it, and from finished runs to its numbers.

A run is its paper's preset (plans.py) with the row's method, networks, data and fields; what
differs on ImageNet, with DCKD's small networks and in its shorter schedules stands in `recipe`.
What neither text says is in `choices.csv` (of the recipes), in the rows' notes and in the methods'
docstrings, each with its reason and marked "(choice)".
"""

import csv
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ... import metrics
from .. import statistics, store
from ..fingerprint import class_digest
from ..plans import PRESETS, Run, plan
from ..store import Record
from . import PUBLISHED, cells

EPOCHS = {"imagenet": 210, "cifar100": 930, "cifar10": 210, "fashion_mnist32": 450}  # DCKD, Sec. 4
SMALL = ("mobilenetv2", "shufflenetv1", "shufflenetv2")  # DCKD gives them a rate of their own
CHANGED = "recipe changed: "
TABLE_COLUMNS = ("row", "column", "what", "published", "ours", "diff", "n", "notes")


def recipe(row, **changes) -> Run:
    """The run of seed 0 behind a row of `cells()`, with `changes` to its fields, if any."""
    base, imagenet = PRESETS[f"{row.paper}_paper"], row.dataset == "imagenet"
    fields = dict(pair.split("=") for pair in row.params.split(";") if pair)
    fields |= dict(method=row.method, data=row.dataset, student=row.student, teacher=row.teacher)
    if imagenet:
        fields |= dict(batch=256, lr=0.1, weight_decay=1e-4)
    if row.paper == "dckd":
        fields |= dict(epochs=EPOCHS[row.dataset], T_0=30 / EPOCHS[row.dataset])
        fields |= dict(lr=0.01, teacher_lr=base.lr) if row.student in SMALL else {}
        fields |= dict(teacher_pretrained=imagenet and row.teacher != "")
        if imagenet and not row.teacher:  # the cells of torchvision's networks as they are
            changes = changes | dict(pretrained=True, epochs=0)
    elif imagenet:
        fields |= dict(epochs=90, milestones=(30 / 90, 60 / 90))
    return base.replace(**fields).replace(**changes)


def size(row) -> int:
    """How many independent runs make one value of the cell: more than one in some ensembles."""
    return int(row.statistic.split()[2]) if "independent" in row.statistic else 1


def runs_of(row, seeds: int = 3, **changes) -> list[list[Run]]:
    """The runs behind a cell: for each of `seeds` repetitions those that give one value.

    Repetition k has seed k; of an ensemble of n runs, seeds n k to n k + n - 1. Networks that are
    taken as they are have one repetition. ValueError for fields that a run or its method has not.
    """
    run, n = recipe(row, **changes), size(row)
    plan(run)
    return [
        [run.replace(seed=n * k + i) for i in range(n)] for k in range(seeds if run.epochs else 1)
    ]


def value(row, group: list[Record]) -> float | None:
    """The cell's number from the records of one repetition, in its metric's unit; None for a
    picture. Sorted students are sorted by top-1 accuracy; top-5 rides along."""
    r = group[0].result
    if row.metric not in ("top1", "top1_error", "top5"):
        return r.get(row.metric)
    metric = "top5" if row.metric == "top5" else "top1"
    if len(group) > 1:
        z = np.stack([g.test_logits["students"][0] for g in group])  # (n, N, K)
        number = 100 * float(metrics.top(metrics.ensemble(z), group[0].labels))
    elif row.statistic == "ensemble":
        number = r["ensemble"]
    elif row.statistic == "mean of students":
        number = float(np.mean(r[metric]))
    elif row.statistic.startswith("sorted student"):
        order = np.argsort(-np.array(r["top1"]), kind="stable")
        number = r[metric][order[int(row.statistic.split()[-1]) - 1]]
    else:  # student, leader, teacher
        number = r[metric][r["deployed"]]
    return 100 - number if row.metric == "top1_error" else number


def stored() -> dict[str, dict[int, Record]]:
    """Finished runs in the store: id of the same run with seed 0 -> seed -> record."""
    found: dict[str, dict[int, Record]] = {}
    for record in store.records()[0]:
        with suppress(ValueError):  # a user's own method that is not loaded now
            key = plan(record.run.replace(seed=0)).id
            found.setdefault(key, {})[record.run.seed] = record
    return found


def ours(row, found: dict[str, dict[int, Record]], **changes) -> tuple[list[float], list[Record]]:
    """A cell's value from each whole repetition in the store (`stored()`), and the records."""
    n, have = size(row), found.get(plan(recipe(row, **changes)).id, {})
    groups = [
        [have[s] for s in range(k, k + n) if s in have]
        for k in range(0, max(have, default=-1) + 1, n)
    ]
    whole = [group for group in groups if len(group) == n]
    values = [value(row, group) for group in whole]
    return [v for v in values if v is not None], [r for group in whole for r in group]


def compare(which: str | None = None, **changes) -> list[dict[str, Any]]:
    """For each cell that `which` names (see `cells`) what is printed and what our runs give.

    changes: fields of another recipe than the paper's, which its runs must have been trained with.
    Returns dicts with paper, table, row, column, dataset, networks, metric, statistic, published,
    published_std, ours, ours_std (n-1), n (values behind `ours`), records (how many are behind it),
    run (their ids; where there is none, that of the first run that would be) and note; None where
    there is nothing. Only finished runs of exactly this recipe count.
    """
    found, compared = stored(), []
    for row in cells(which).itertuples():
        values, records = ours(row, found, **changes)
        old = any(r.meta["code"] != class_digest(type(r.method)) for r in records)
        notes = [
            row.note,
            CHANGED + changes_text(changes) if changes else "",
            "trained with other code of its method" if old else "",
        ]
        n, mean, std = statistics.summary(values) if values else (0, np.nan, np.nan)
        cell = {k: getattr(row, k) for k in PUBLISHED}
        cell |= {
            "ours": mean,
            "ours_std": std,
            "n": n,
            "records": len(records),
            "run": " ".join(r.id for r in records) or plan(recipe(row, **changes)).id,
            "note": "; ".join(filter(None, notes)),
        }
        compared.append({k: None if v != v else v for k, v in cell.items()})
    return compared


def changes_text(changes: dict) -> str:
    """Changed fields in words: "epochs=5, T=2"."""
    return ", ".join(f"{k}={v}" for k, v in changes.items())


def number_text(cell: dict, name: str) -> str:
    """ "28.76 (0.08)", "" where nothing is printed and "not run" where nothing is trained."""
    v, std, digits = cell[name], cell[f"{name}_std"], 2 if cell["metric"].startswith("top") else 3
    if v is None:
        return "" if name == "published" else "a picture" if cell["records"] else "not run"
    return f"{v:.{digits}f}" + (f" ({std:.{digits}f})" if std is not None else "")


def table_rows(compared: list[dict], **changes) -> tuple[list[tuple[str, ...]], list[str]]:
    """One table's cells (from `compare`) as rows of text under `TABLE_COLUMNS`, and their
    notes: the last column holds their numbers, from 1. Where the changes name other data, there is
    no difference to the published number: levels on two data sets do not compare."""
    rows, notes = [], {}
    for c in compared:
        levels = (c["ours"], c["published"])
        same = None not in levels and changes.get("data", c["dataset"]) == c["dataset"]
        gap = f"{levels[0] - levels[1]:+.2f}" if same else ""
        note_numbers = [
            str(notes.setdefault(note, len(notes) + 1))
            for note in c["note"].split("; ")
            if note and not note.startswith(CHANGED)
        ]
        what = c["statistic"].replace("sorted student", "sorted").replace(" independent", "")
        rows.append(
            (
                c["row"],
                c["column"],
                what,
                number_text(c, "published"),
                number_text(c, "ours"),
                gap,
                str(c["n"] or ""),
                " ".join(note_numbers),
            )
        )
    return rows, list(notes)


def heading(compared: list[dict], **changes) -> str:
    """What one table's cells (from `compare`) are, on one line."""
    units, sets = (", ".join(dict.fromkeys(c[k] for c in compared)) for k in ("metric", "dataset"))
    paper, table = compared[0]["paper"], compared[0]["table"]
    changed = f", {CHANGED}{changes_text(changes)}" if changes else ""
    return f"{paper}:{table}, {units} on {sets}, recipe {paper}_paper{changed}"


def text(compared: list[dict], **changes) -> str:
    """The cells of one table (from `compare`) in at most 100 columns, notes numbered below."""
    rows, notes = table_rows(compared, **changes)
    widths = [max(map(len, column)) for column in zip(TABLE_COLUMNS, *rows, strict=True)]
    with Path(__file__).with_name("choices.csv").open(encoding="utf-8", newline="") as file:
        below = [
            f"{r['what']}: {r['value']}; {r['why']}"
            for r in csv.DictReader(file)
            if r["paper"] == compared[0]["paper"]
        ]
    below = [f"{k}: {note}" for k, note in enumerate(notes, 1)] + below
    return "\n".join(
        [
            heading(compared, **changes),
            "",
            *("  ".join(map(str.ljust, r, widths)).rstrip() for r in [TABLE_COLUMNS, *rows]),
            "",
            *(textwrap.fill(note, 100, subsequent_indent="   ") for note in below),
        ]
    )
