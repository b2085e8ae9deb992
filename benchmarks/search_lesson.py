"""Choose the recipe of the preset `lesson`, on validation typefaces and on seeds from 100 on.

    KDKIT_RUNS=elsewhere python benchmarks/search_lesson.py [STAGE ...] [--workers 1]

Trains what has no row in benchmarks/lesson_search.csv, adds its row and prints the means. STAGE:
"recipe" (Baseline and KD under each recipe), "groups" (what two learning rates do to groups), and
under the chosen recipe "weights" (what a method's own term weighs) and "length" (what twice the
epochs change in Baseline); by default all. Test typefaces are never read.
"""

import argparse
import csv
import io
from pathlib import Path

from kdkit.study import project, store
from kdkit.study.plans import Plan, Run, plan
from kdkit.study.sweep import sweep

TABLE = Path(__file__).with_name("lesson_search.csv")
COLUMNS = ("stage", "method", "fields", "seed", "id", "top1", "ensemble", "diversity")
COLUMNS += ("teacher_top1", "seconds")

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
GROUPS = [
    dict(method="baseline"),
    dict(method="kd"),
    dict(method="ind"),
    dict(method="ind", based="network"),
    dict(method="okddip"),
    dict(method="okddip", m=8),
    dict(method="okddip", two_level=False),
    dict(method="okddip", based="network"),
]
WEIGHTS = [
    *(dict(method="fitnet", beta=b) for b in (100.0, 10.0, 1.0)),
    *(dict(method="at", beta=b) for b in (1000.0, 100.0, 10.0)),
    *(dict(method="ft", beta=b) for b in (200.0, 20.0, 2.0)),
    *(dict(method="rkd", w_d=w, w_a=2 * w) for w in (25.0, 2.5, 0.25)),
    *(dict(method="cc", beta=b) for b in (0.02, 0.2, 2.0)),
    *(dict(method="crd", beta=b) for b in (0.8, 0.2)),
    *(dict(method="ofd", beta=b) for b in (1e-3, 1e-2, 1e-4)),
    *(dict(method="reviewkd", beta=b) for b in (1.0, 0.3)),
]
# Stage -> fields of its runs, beside BASE, and seeds.
STAGES: dict[str, tuple[list[dict], tuple[int, ...]]] = {
    "recipe": ([m | recipe for recipe in RECIPES for m in METHODS], (100,)),
    "groups": ([fields | recipe for recipe in (CHOSEN, TOO_HOT) for fields in GROUPS], (100,)),
    "weights": ([fields | CHOSEN for fields in WEIGHTS], (100,)),
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
        runs = runs_of(stage)
        known = {row["id"] for row in table() if row["stage"] == stage}
        missing = {run_id: run for run_id, (run, _) in runs.items() if run_id not in known}

        def add(run_id: str, stage=stage, missing=missing, runs=runs) -> None:
            """The row of a run, if it is one of these and not only a teacher's."""
            if run_id in missing:
                write([*table(), row_of(stage, runs[run_id][1], missing[run_id])])

        for run_id, run in missing.items():
            if store.find(run):
                add(run_id)
        for title, why in sweep(list(missing.values()), args.workers, on_done=add).items():
            print(f"failed: {title}: {why}")
        say(stage, STAGES[stage][0])


def runs_of(stage: str) -> dict[str, tuple[Plan, dict]]:
    """A stage's runs and their fields beside BASE, by id."""
    configurations, seeds = STAGES[stage]
    runs = {}
    for fields in configurations:
        for seed in seeds:
            run = plan(Run(**BASE).replace(preset="", **fields, seed=seed, teacher_seed=seed))
            runs[run.id] = run, fields
    return runs


def say(stage: str, configurations: list[dict]) -> None:
    """Print the means of a stage."""
    for fields in configurations:
        mine = [row for row in table() if row["stage"] == stage and row["fields"] == text(fields)]
        mine = [float(row["top1"]) for row in mine if row["method"] == fields["method"]]
        if mine:
            mean = sum(mine) / len(mine)
            print(f"{mean:.2f}  n {len(mine)}  {fields['method']}  {text(fields)}")


def text(fields: dict) -> str:
    """Fields beside BASE, as `--set` takes them."""
    return " ".join(f"{name}={value}" for name, value in fields.items() if name != "method")


def row_of(stage: str, fields: dict, planned: Plan) -> dict:
    """The row of a stored run."""
    record = store.find(planned)
    return {
        "stage": stage,
        "method": fields["method"],
        "fields": text(fields),
        "seed": planned.run.seed,
        "id": planned.id,
        "top1": round(record.result["top1_deployed"], 2),
        "ensemble": round(record.result["ensemble"], 2),
        "diversity": round(record.result.get("diversity") or 0, 4),
        "teacher_top1": record.result.get("teacher_top1", ""),
        "seconds": round(record.meta["seconds"]),
    }


def table() -> list[dict]:
    """The rows so far; those of other images or of stages that have gone are left out."""
    if not TABLE.exists():
        return []
    wanted = {(stage, run_id) for stage in STAGES for run_id in runs_of(stage)}
    with TABLE.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row["stage"], row.get("id")) in wanted]


def write(rows: list[dict]) -> None:
    """The table, whole or not at all, in the order of the stages."""
    content = io.StringIO()
    writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: list(STAGES).index(row["stage"])))
    project.write(TABLE, content.getvalue().encode())


if __name__ == "__main__":
    main()
