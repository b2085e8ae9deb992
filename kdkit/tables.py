"""Records in, tables out: the numbers behind every figure, one column for each seed.

A table has the columns n, mean, sd (n-1) and "seed 0", "seed 1", ...; `attrs["runs"]` holds the
ids of the records that it was computed from.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import data, metrics
from .config import PRESETS, Run
from .methods import make, method_class, resolve
from .store import Record

DISTRIBUTIONS = {"p1": (0.55, *[0.05] * 9), "p2": (0.55, 0.45, *[0.0] * 8)}  # DCKD, before Eq. 15
QUANTITIES: dict[str, Callable[[dict], float | None]] = {  # of a row of a record's history
    "training accuracy (%)": lambda row: float(np.mean(row["train_top1"])),
    "probe accuracy (%)": lambda row: float(np.mean(row["probe_top1"])),
    "training loss": lambda row: sum(row["terms"].values()),
    "diversity": lambda row: row["diversity"],
    "learning rate": lambda row: row["lr"],
}


def label(what: Run | Record) -> str:
    """Title, and whatever differs from the preset and the method's defaults: "OKDDip (m=6)"."""
    run = resolve(what if isinstance(what, Run) else what.run)
    cls, start = method_class(run.method), PRESETS.get(run.preset, Run())
    start = resolve(replace(start, method=run.method, schedule=run.schedule, params=run.params))
    own = cls.presets.get(run.preset, {})
    odd = {k: v for k, v in run.params if k not in own or own[k] != v}
    odd |= {
        f.name: getattr(run, f.name)
        for f in dataclasses.fields(Run)
        if f.name not in ("method", "seed", "preset", "schedule", "params")
        and getattr(run, f.name) != getattr(start, f.name)
    }
    if run.schedule != PRESETS.get(run.preset, Run()).schedule:
        odd["schedule"] = run.schedule
    said = [
        str(v).replace(",", " + ")
        if k in ("based", "student")
        else f"{k}={v:g}"
        if isinstance(v, float)
        else f"{k}={v}"
        for k, v in odd.items()
    ]
    return f"{cls.title} ({', '.join(said)})" if said else cls.title


def grouped(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records that differ in nothing but the seed, under their label, sorted by seed."""
    groups: dict[str, dict[int, Record]] = {}
    for r in records:
        groups.setdefault(label(r), {})[r.run.seed] = r
    return {k: [g[s] for s in sorted(g)] for k, g in groups.items()}


def frame(rows: list[dict], records: Iterable[Record]) -> pd.DataFrame:
    """A table with the seeds' columns last, in order, and the ids of its runs."""
    table = pd.DataFrame(rows)
    seeds = sorted(seed_columns(table), key=lambda c: int(c[5:]))
    table = table[[c for c in table.columns if c not in seeds] + seeds]
    table.attrs["runs"] = sorted({r.id for r in records})
    return table


def seed_columns(table: pd.DataFrame) -> list[str]:
    """The columns that hold one value for each seed."""
    return [c for c in table.columns if c.startswith("seed ")]


def spread(values: dict[int, float]) -> dict[str, float]:
    """n, mean, sd and the values themselves, from one value for each seed."""
    n, mean, sd = metrics.summary(values.values())
    return {"n": n, "mean": mean, "sd": sd} | {f"seed {s}": v for s, v in values.items()}


def count(table: pd.DataFrame) -> str:
    """How many seeds stand behind a table: "n = 3"."""
    n = sorted({int(v) for v in table["n"]})
    return f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"


def said(mean: float, sd: float, sign: str = "", digits: int = 2) -> str:
    """A number and, where there is one, its deviation or half interval."""
    mean = round(round(mean, 6), digits) + 0  # ties as in the CSV's six digits; no −0.00
    text = f"{mean:{sign}.{digits}f}".replace("-", "−")
    return f"{text} ± {sd:.{digits}f}" if sd == sd else text


def paired(ours: dict[int, float], control: dict[int, float]) -> dict[str, Any]:
    """difference, half_width of its 95 % interval, pairs (how many), shown: is 0 outside it?"""
    both = sorted(ours.keys() & control.keys())
    if not both:
        return {"difference": np.nan, "half_width": np.nan, "pairs": 0, "shown": False}
    n, d, half = metrics.paired([ours[s] for s in both], [control[s] for s in both])
    return {"difference": d, "half_width": half, "pairs": n, "shown": bool(abs(d) > half)}


def control_label(record: Record) -> str:
    """The label of the runs that are the fair comparison with this one; "" if there are none."""
    given = make(record.run).control()
    if given is None:
        return ""
    cls, params = given
    return label(replace(record.run, method=cls.name, params=tuple(sorted(params.items()))))


def teachers(records: Iterable[Record]) -> list[float]:
    """Test accuracies in percent of the plain teachers behind these records."""
    found = {}
    for r in records:
        its = make(r.run).teacher_run(r.run)
        if its and method_class(its.method).teaches and "teacher_top1" in r.result:
            found[r.meta["teacher"]] = r.result["teacher_top1"]
    return list(found.values())


def accuracy(records: list[Record], against: str = "control", x: str = "") -> pd.DataFrame:
    """Test accuracy in percent of the deployed student, a row for each kind of run.

    against: "control", or "first" for differences to the first row (ablations). x: a field of
    the method to stand in a column of its own. Teachers come last, with no method.
    """
    groups = grouped(records)
    values = {k: {r.run.seed: r.result["top1_deployed"] for r in g} for k, g in groups.items()}
    rows = []
    for name, group in groups.items():
        other = control_label(group[0]) if against == "control" else next(iter(groups))
        other = other if other in groups and other != name else ""
        at = {x: getattr(make(group[0].run), x, np.nan)} if x else {}
        rows.append(
            {
                "method": group[0].run.method,
                "label": name,
                **at,
                "control": other,
                **paired(values[name], values.get(other, {})),
                **spread(values[name]),
            }
        )
    for number, top1 in enumerate(teachers(records)):
        rows.append(
            {
                "method": "",
                "label": f"Teacher {number + 1}" if number else "Teacher",
                "control": "",
                **paired({}, {}),
                **spread({0: top1}),
            }
        )
    return frame(rows, records)


def curves(records: list[Record], *quantities: str) -> pd.DataFrame:
    """A row for each kind of run, quantity (of `QUANTITIES`) and epoch, from 1."""
    rows = []
    for name, group in grouped(records).items():
        for what in quantities:
            seen = {r.run.seed: [QUANTITIES[what](row) for row in r.history] for r in group}
            for epoch in range(max(map(len, seen.values()))):
                at = {
                    s: v[epoch] for s, v in seen.items() if epoch < len(v) and v[epoch] is not None
                }
                if at:
                    rows.append(
                        {
                            "method": group[0].run.method,
                            "label": name,
                            "quantity": what,
                            "epoch": epoch + 1,
                            **spread(at),
                        }
                    )
    return frame(rows, records)


def attention(records: list[Record]) -> pd.DataFrame:
    """A row for each seed, epoch, and pair of peers: how much `peer` takes from `source`, and how
    much more than the other way round (`asymmetry`)."""
    rows = []
    for r in records:
        for epoch, A in enumerate(r.arrays["attention"]):
            for (a, b), v in np.ndenumerate(A):
                rows.append(
                    {
                        "label": label(r),
                        "seed": r.run.seed,
                        "epoch": epoch + 1,
                        "peer": a + 1,
                        "source": b + 1,
                        "attention": float(v),
                        "asymmetry": float(v - A[b, a]),
                    }
                )
    return frame(rows, records)


def ensembles(records: list[Record]) -> pd.DataFrame:
    """Groups of students: the mean of the single peers, their ensemble (mean logits), the gain
    (the seeds' columns), both in percent, and the peers' diversity."""
    rows = []
    for name, group in grouped(records).items():
        single = {
            r.run.seed: float(np.mean(r.result["top1"][: make(r.run).peers()])) for r in group
        }
        whole = {r.run.seed: r.result["ensemble"] for r in group}
        gain = {s: whole[s] - single[s] for s in single}
        rows.append(
            {
                "method": group[0].run.method,
                "label": name,
                "single": np.mean(list(single.values())),
                "ensemble": np.mean(list(whole.values())),
                "diversity": np.mean([r.result["diversity"] for r in group]),
                **paired(whole, single),
                **spread(gain),
            }
        )
    return frame(rows, records)


def logits(record: Record) -> tuple[np.ndarray, np.ndarray | None]:
    """The stored test logits: students (m, N, K) and teacher (N, K) or None, float64.

    ValueError where the store kept only the largest of each image.
    """
    kept = record.test_logits
    if "students_classes" in kept:
        raise ValueError(f"run {record.id}: only the largest logits are stored above 200 classes")
    t = kept.get("teacher")
    return kept["students"].astype(np.float64), None if t is None else t.astype(np.float64)


def correlation(records: list[Record], temperatures=(1.0, 4.0)) -> pd.DataFrame:
    """Mean correlation number over the test images of teacher, students and what each student
    gets from the others (its method's `collect`), at each temperature: DCKD's Figure 4."""
    seen: dict[tuple, dict[int, float]] = {}
    for r in records:
        z, t = logits(r)
        groups = {
            "Teacher": t,
            "Students": z,
            "Collection": make(r.run).collect(torch.from_numpy(z)).numpy(),
        }
        for T in temperatures:
            for who, v in groups.items():
                number = metrics.correlation_number(metrics.softmax(v, T)).mean()
                seen.setdefault((T, who), {})[r.run.seed] = float(number)
    rows = [
        {
            "T": T,
            "who": who,
            "control": "" if who == "Teacher" else "Teacher",
            **paired(v, {} if who == "Teacher" else seen[T, "Teacher"]),
            **spread(v),
        }
        for (T, who), v in seen.items()
    ]
    return frame(rows, records)


def distributions(_: list[Record] | None = None) -> pd.DataFrame:
    """The two distributions that DCKD argues with: each class's probability, the entropy in nats
    and the correlation number. Computed from no run."""
    rows = [
        {
            "distribution": name,
            "class": c,
            "p": v,
            "entropy": float(metrics.entropy(p)),
            "correlation_number": int(metrics.correlation_number(p)),
        }
        for name, p in DISTRIBUTIONS.items()
        for c, v in enumerate(p)
    ]
    return frame(rows, [])


@cache
def test_set(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) uint8 and labels (N,) of a data set in memory."""
    d = data.load(name)
    return d.x_test.cpu().numpy(), d.y_test.cpu().numpy()


def reliability(records: list[Record], bins: int = 10) -> pd.DataFrame:
    """For each kind of run and bin of confidence: mean confidence and accuracy (fractions of 1),
    the share of predictions in it, and the run's expected calibration error `ece`."""
    rows = []
    for name, group in grouped(records).items():
        sure, right, errors = [], [], []
        for r in group:
            i = r.result["deployed"]
            used = slice(None) if i is None else slice(i, i + 1)  # any student, or that one
            p = metrics.softmax(logits(r)[0][used])  # (m or 1, N, K)
            sure.append(p.max(-1).ravel())
            right.append((p.argmax(-1) == test_set(r.run.data)[1]).ravel())
            errors.append(np.mean(r.result["calibration_error"][used]))
        sure, right = np.concatenate(sure), np.concatenate(right)
        at = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
        for b in np.unique(at):
            rows.append(
                {
                    "method": group[0].run.method,
                    "label": name,
                    "bin": int(b),
                    "confidence": sure[at == b].mean(),
                    "accuracy": right[at == b].mean(),
                    "share": float((at == b).mean()),
                    "ece": np.mean(errors),
                    "n": len(group),
                }
            )
    return frame(rows, records)


def class_maximum(
    records: list[Record], true: int | None = None, student: int = 0, tau: float | None = None
) -> pd.DataFrame:
    """DCKD's Figure 2: for each class the largest probability that any test image of the class
    `true` gets for it, from the teacher and from one student, at temperature `tau`.

    true: by default the class with the peak that the student has most above its teacher. tau: by
    default the method's own. `images`: the test images behind the student's peak; `like`: those of
    the peak's own class that the student gives most. From the record with the lowest seed.
    """
    r = min(records, key=lambda r: r.run.seed)
    tau = tau or getattr(make(r.run), "tau", 1.0)
    (z, t), y = logits(r), test_set(r.run.data)[1]
    if t is None or not 0 <= student < len(z):
        raise ValueError(
            f"run {r.id}: needs a teacher, and a student of 0 to {len(z) - 1}; "
            f"seen student={student}, teacher {'no' if t is None else 'yes'}"
        )
    p, q = metrics.softmax(z[student], tau), metrics.softmax(t, tau)  # (N, K)
    K = p.shape[-1]
    tops = [np.stack([v[y == c].max(0) for c in range(K)]) for v in (p, q)]  # (K, K) each
    if true is None:
        above = np.where(np.eye(K, dtype=bool), -np.inf, tops[0] - tops[1])
        true = int(above.max(1).argmax())
    mine, names = np.flatnonzero(y == true), r.meta["class_names"]

    def most(of, c):
        return " ".join(map(str, of[np.argsort(-p[of, c], kind="stable")[:4]]))

    rows = [
        {
            "seed": r.run.seed,
            "tau": tau,
            "true": names[true],
            "class": names[c],
            "teacher": tops[1][true, c],
            "student": tops[0][true, c],
            "above": tops[0][true, c] - tops[1][true, c],
            "images": most(mine, c),
            "like": most(np.flatnonzero(y == c), c),
        }
        for c in range(K)
    ]
    return frame(rows, [r])
