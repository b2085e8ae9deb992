"""Choose the recipe of the preset `lesson`, on validation typefaces and on seeds from 100 on.

    KDKIT_RUNS=elsewhere python benchmarks/search_lesson.py [STAGE ...] [--workers 1]

Trains what is missing in the store, adds a row for each run to benchmarks/lesson_search.csv and
prints the means. STAGE: "recipe" (Baseline and KD under each recipe), and under the chosen one
"weights" (what a method's own term weighs) and "length" (what twice the epochs change in Baseline);
by default all. Test typefaces are never read.
"""

import argparse
import csv
from pathlib import Path

from kdkit.study import store
from kdkit.study.plans import Run, plan
from kdkit.study.sweep import sweep

TABLE = Path(__file__).with_name("lesson_search.csv")
COLUMNS = ("stage", "method", "fields", "seed", "top1", "ensemble", "diversity", "teacher_top1")

BASE = dict(
    data="glyphs_val",
    n_train=2000,
    epochs=40,
    batch=64,
    lr=0.05,
    schedule="sgdr",
    T_0=1.0,
    student="resnet8_w0.5",
    teacher="resnet14",
)
RECIPES: list[dict] = [
    {},
    dict(epochs=20),
    dict(epochs=30),
    dict(epochs=80),
    dict(lr=0.025),
    dict(lr=0.1),
    dict(lr=0.2),
    dict(lr=0.4),
    dict(batch=32, epochs=20),
    dict(batch=32, epochs=25, lr=0.1),
    dict(batch=32, epochs=20, lr=0.2),
    dict(batch=32, epochs=50, lr=0.1),
    dict(batch=32, epochs=40, lr=0.2),
    dict(batch=128, epochs=50, lr=0.4),
    dict(lr=0.1, student="resnet8_w0.25", teacher="resnet8"),
    dict(lr=0.2, student="resnet8_w0.25", teacher="resnet8"),
]
CHOSEN = dict(batch=32, epochs=30, lr=0.05)  # beside BASE
# Better for a network alone, but groups fall apart in it: the branches' gradients add up.
TOO_HOT = dict(batch=32, epochs=30, lr=0.1)
METHODS = [dict(method="baseline"), dict(method="kd")]
# Stage -> fields of its runs, beside BASE, and seeds.
STAGES: dict[str, tuple[list[dict], tuple[int, ...]]] = {
    "recipe": ([m | recipe for recipe in RECIPES for m in METHODS], (100,)),
    "groups": (
        [
            fields | CHOSEN
            for fields in (
                dict(method="baseline"),
                dict(method="kd"),
                dict(method="ind"),
                dict(method="ind", based="network"),
                dict(method="okddip"),
                dict(method="okddip", m=8),
                dict(method="okddip", two_level=False),
                dict(method="okddip", based="network"),
            )
        ],
        (100,),
    ),
    "weights": (
        [
            fields | recipe
            for recipe in (CHOSEN, TOO_HOT)
            for fields in (
                dict(method="baseline"),
                dict(method="kd"),
                *(dict(method="fitnet", beta=b) for b in (100.0, 10.0, 1.0)),
                *(dict(method="at", beta=b) for b in (1000.0, 100.0, 10.0)),
                *(dict(method="ft", beta=b) for b in (200.0, 20.0, 2.0)),
                *(dict(method="rkd", w_d=w, w_a=2 * w) for w in (25.0, 2.5, 0.25)),
                *(dict(method="cc", beta=b) for b in (0.02, 0.2, 2.0)),
                *(dict(method="crd", beta=b) for b in (0.8, 0.2)),
                *(dict(method="ofd", beta=b) for b in (1e-3, 1e-2, 1e-4)),
                *(dict(method="reviewkd", beta=b) for b in (1.0, 0.3)),
            )
        ],
        (100,),
    ),
    "length": (
        [
            dict(method="baseline") | recipe | dict(epochs=epochs)
            for recipe in (CHOSEN, TOO_HOT)
            for epochs in (CHOSEN["epochs"], 2 * CHOSEN["epochs"])
        ],
        (100, 101, 102),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=list(STAGES), metavar="STAGE")
    parser.add_argument("--workers", type=int, help="processes, by default one per core")
    args = parser.parse_args()
    for stage in args.stages:
        configurations, seeds = STAGES[stage]
        runs = [
            (fields, Run(**BASE).replace(preset="", **fields, seed=seed, teacher_seed=seed))
            for fields in configurations
            for seed in seeds
        ]
        for title, why in sweep([run for _, run in runs], workers=args.workers).items():
            print(f"failed: {title}: {why}")
        rows = [row for fields, run in runs if (row := row_of(stage, fields, run))]
        write(stage, rows)
        for fields in configurations:
            mine = [row for row in rows if row["fields"] == text(fields)]
            mine = [row for row in mine if row["method"] == fields["method"]]
            if mine:
                mean = sum(row["top1"] for row in mine) / len(mine)
                print(f"{mean:.2f}  n {len(mine)}  {fields['method']}  {text(fields)}")


def text(fields: dict) -> str:
    """Fields beside BASE, as `--set` takes them."""
    return " ".join(f"{name}={value}" for name, value in fields.items() if name != "method")


def row_of(stage: str, fields: dict, run: Run) -> dict | None:
    """A run's row, from the store; None where it failed."""
    planned = plan(run)
    record = store.find(planned)
    if record is None:
        return None
    return {
        "stage": stage,
        "method": fields["method"],
        "fields": text(fields),
        "seed": run.seed,
        "top1": round(record.result["top1_deployed"], 2),
        "ensemble": round(record.result["ensemble"], 2),
        "diversity": round(record.result.get("diversity") or 0, 4),
        "teacher_top1": record.result.get("teacher_top1", ""),
    }


def write(stage: str, rows: list[dict]) -> None:
    """The table with the rows of a stage in place of the earlier ones."""
    before = []
    if TABLE.exists():
        with TABLE.open(newline="", encoding="utf-8") as file:
            before = [row for row in csv.DictReader(file) if row.get("stage") not in (None, stage)]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*before, *rows])


if __name__ == "__main__":
    main()
