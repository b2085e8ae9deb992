"""The claims ledger: what the two papers claim by their tables and figures, one comparison a row.

`claims.csv` says in our words what is claimed and which two kinds of run it compares, each as a
method with fields as `--set` takes them; a teacher is written as the Baseline run that it is.
`published` is the paper's own difference in points, where it prints both numbers; of DCKD's
groups the means over their networks are compared. `ledger` compares
the runs of the reference: differences are taken in the claim's direction and paired by seed.
"""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .. import reference, statistics
from ..plans import Run
from ..reference import ReferenceRecord, run_of

FIELDS = ("paper", "place", "claim", "better", "worse", "metric", "published")
COLUMNS = ("paper", "place", "claim", "better", "worse", "metric", "n", "difference", "half_width")
COLUMNS += ("verdict", "published", "half_width_faces", "runs")
SHOWN, CONTRADICTED, NOT_SHOWN = "shown", "contradicted", "not shown"
DRAWS = 10_000  # of test typefaces, for the uncertainty that they bring


def claims() -> list[dict[str, str]]:
    """The rows of claims.csv, in the papers' order."""
    with Path(__file__).with_name("claims.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def claim_run(text: str, seed: int, preset_name: str = reference.PRESET) -> Run:
    """The run that `better` or `worse` names: a method and its fields, separated by spaces."""
    method, _, fields = text.partition(" ")
    return run_of(method, fields, seed, preset_name)


def runs(seeds: Iterable[int] = reference.SEEDS, preset_name: str = reference.PRESET) -> list[Run]:
    """The runs of the ledger, seed by seed, each once; teachers follow the seed of their run."""
    sides = dict.fromkeys(row[side] for row in claims() for side in ("better", "worse"))
    return [claim_run(text, seed, preset_name) for seed in seeds for text in sides]


def number(record: ReferenceRecord, metric: str) -> float:
    """One of the ledger's quantities: accuracies are in percent."""
    if metric == "diversity_over_training":
        return float(np.mean([row["diversity"] for row in record.history]))
    if metric == "correlation_collection":  # of a network alone, its own
        metric = metric if metric in record.result else "correlation_number"
    return float(record.result[metric])


def verdict(difference: float, half_width: float) -> str:
    """Is the claim's direction shown, contradicted or neither, by a 95 % interval?"""
    if difference - half_width > 0:
        return SHOWN
    return CONTRADICTED if difference + half_width < 0 else NOT_SHOWN


def ledger(seeds: Iterable[int] = reference.SEEDS) -> list[dict[str, Any]]:
    """Each claim with n, difference, half_width of its interval over seeds, verdict,
    half_width_faces, the same over test typefaces, and the ids of its runs; n 0 and no verdict
    where rows are missing."""
    known, compared = reference.load(), []
    for row in claims():
        pairs = []
        for seed in seeds:
            both = [known.find(claim_run(row[side], seed)) for side in ("better", "worse")]
            if None not in both:
                pairs.append(both)
        found = dict.fromkeys(("difference", "half_width", "half_width_faces"), float("nan"))
        if pairs:
            ours, theirs = (
                [number(record, row["metric"]) for record in side]
                for side in zip(*pairs, strict=True)
            )
            _, found["difference"], found["half_width"] = statistics.paired(ours, theirs)
            if row["metric"] == "top1_deployed":
                found["half_width_faces"] = half_width_faces(
                    [known.faces[a.id] - known.faces[b.id] for a, b in pairs]
                )
        found |= {"n": len(pairs), "published": float(row["published"] or "nan")}
        found["runs"] = " ".join(record.id for pair in pairs for record in pair)
        found["verdict"] = (
            verdict(found["difference"], found["half_width"]) if len(pairs) > 1 else ""
        )
        compared.append({name: {**row, **found}[name] for name in COLUMNS})
    return compared


def half_width_faces(differences: list[np.ndarray]) -> float:
    """Half of the 95 % interval that other test typefaces would bring, in points.

    differences: for each seed, of every typeface (F,), by how many of its 100 images the better
    side names more. Typefaces are drawn anew, with replacement (bootstrap).
    """
    of_face = np.mean(differences, 0)  # (F,), over the seeds
    chosen = np.random.default_rng(0).integers(0, len(of_face), (DRAWS, len(of_face)))
    low, high = np.percentile(of_face[chosen].mean(1), (2.5, 97.5))
    return float(high - low) / 2


def by_chance(rows: list[dict[str, Any]]) -> float:
    """How many of these verdicts chance alone would give if no claim were true or false: one in
    forty for each side."""
    return 0.05 * sum(bool(row["verdict"]) for row in rows)
