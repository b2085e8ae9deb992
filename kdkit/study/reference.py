"""The reference: what finished runs of the lesson gave, kept as rows of text in the project.

`benchmarks/reference.csv` has a row for each run: its id, its fields as `--set` takes them, digests
of its method's code and of its data, and its numbers. `reference_epochs.csv` has its quantities
over the epochs, `reference_faces.csv` how many images of each test typeface its deployed network
names. Tables and figures are drawn from them without training anything and without weights. A row
is found by the id of a run, which covers its recipe and its data; what the code of a method was
is told where it differs, and drops no row.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from . import fingerprint, sources, store
from .hidden import hidden_numbers
from .plans import Plan, Run, plan, preset, unusual
from .project import walk_folder, write
from .store import Record

PRESET, SEEDS = "lesson", range(10)
NUMBERS = {  # of a record's result -> digits behind the point
    "top1": 2,
    "top5": 2,
    "deployed": 0,
    "top1_deployed": 4,
    "ensemble": 2,
    "ensemble_probs": 2,
    "diversity": 6,
    "correlation_number": 4,
    "correlation_number_T4": 4,
    "correlation_teacher": 4,
    "correlation_teacher_T4": 4,
    "correlation_collection": 4,
    "correlation_collection_T4": 4,
    "entropy": 4,
    "calibration_error": 4,
    "teacher_top1": 2,
    "hidden_top1": 2,
    "hidden_top1_bias": 2,
    "seen_top1": 2,
    "seen_top1_bias": 2,
}
COLUMNS = ("id", "method", "fields", "seed", "code", "data", "teacher", *NUMBERS, "seconds")
COLUMNS += ("commit", "processor", "torch")
LISTS = ("top1", "top5", "calibration_error")  # a number for each student
EPOCHS = ("train_top1", "probe_top1", "loss", "diversity", "lr")  # of a row of the history


def folder() -> Path:
    """Where the three files are: in the project, or with the walk of an installed kit."""
    return walk_folder() / "benchmarks"


class ReferenceRecord(Record):
    """A row of the reference in the place of a record: its run, results and history. It has no
    logits, no maps and no weights."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        raise ValueError(f"run {self.id} is a row of the reference: it has numbers alone")

    test_logits = arrays


@dataclass(frozen=True)
class Reference:
    """All rows: id -> row, id -> quantity -> values over the epochs, id -> images named of each
    test typeface."""

    rows: dict[str, dict[str, str]]
    epochs: dict[str, dict[str, list[float]]]
    faces: dict[str, np.ndarray]

    def find(self, run: Run | Plan) -> ReferenceRecord | None:
        """The row of a run, as a record of numbers; None where there is none."""
        planned = plan(run)
        row = self.rows.get(planned.id)
        if row is None:
            return None
        meta = {
            "id": planned.id,
            "run": json.loads(json.dumps(asdict(planned.run))),
            "teacher": row["teacher"] or None,
            "classes": _classes(planned.run.data),
            "method": planned.method.title,
            "code": row["code"],
            "seconds": float(row["seconds"]),
            "result": {"deployed": None, "diversity": None} | _numbers(row),
            "history": self._history(planned.id),
        }
        return ReferenceRecord(folder(), meta)

    def _history(self, run_id: str) -> list[dict]:
        """A record's history, as far as it is kept."""
        curves = self.epochs.get(run_id, {})
        history = []
        for epoch in range(max(map(len, curves.values()), default=0)):
            row = {name: values[epoch] for name, values in curves.items()}
            row["terms"] = {"loss": row.pop("loss")}
            history.append({"epoch": epoch, "diversity": None} | row)
        return history

    def other_code(self, records: Iterable[Record]) -> list[str]:
        """Titles of the methods among these rows whose code is another one by now."""
        return sorted(
            {
                r.meta["method"]
                for r in records
                if r.meta["code"] != fingerprint.class_digest(type(r.method))
            }
        )


def load() -> Reference:
    """The reference of this project; empty where there is none. Read again when a file changes."""
    stamps = tuple((str(p), p.stat().st_mtime_ns if p.exists() else 0) for p in _files())
    return _load(stamps)


def _files() -> tuple[Path, Path, Path]:
    return tuple(folder() / f"reference{part}.csv" for part in ("", "_epochs", "_faces"))


@lru_cache(maxsize=1)
def _load(stamps: tuple) -> Reference:
    rows, epochs, faces = (list(_read(path)) for path in _files())
    if rows and tuple(rows[0]) != COLUMNS:
        raise ValueError(
            f"{_files()[0]}: seen columns {', '.join(rows[0])}; allowed: {', '.join(COLUMNS)}"
        )
    curves: dict[str, dict[str, list[float]]] = {}
    for row in epochs:
        values = [float(v) for v in row["values"].split()]
        curves.setdefault(row["id"], {})[row["quantity"]] = values
    named = {row["id"]: np.array(row["named"].split(), float) for row in faces}
    return Reference({row["id"]: row for row in rows}, curves, named)


def _read(path: Path) -> Iterator[dict[str, str]]:
    """The rows of one file; none where it is missing."""
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


@cache
def _classes(name: str) -> int:
    """How many classes a data set has; reading it takes a tenth of a second."""
    return len(sources.load(name).class_names)


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    """The result of a record, from its row; what the row lacks is left out."""
    found: dict[str, Any] = {}
    for name in NUMBERS:
        if row[name]:
            values = [float(part) for part in row[name].split()]
            found[name] = values if name in LISTS else values[0]
    if "deployed" in found:
        found["deployed"] = int(found["deployed"])
    return found


def fields_text(run: Run | Plan) -> str:
    """What is unusual in a run, as `--set` takes it, separated by spaces: "m=6 based=network"."""
    return " ".join(f"{name}={_text(value)}" for name, value in unusual(run).items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run_of(method: str, fields: str = "", seed: int = 0, preset_name: str = PRESET) -> Run:
    """The run that a row describes. ValueError for unknown fields."""
    pairs = dict(pair.split("=", 1) for pair in fields.split())
    return preset(preset_name, **{"method": method, **pairs, "seed": seed})


def append(record: Record) -> bool:
    """Add the row of a finished run, unless it is there; is it new? One process at a time."""
    folder().mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(_files()[0].with_suffix(".lock")):
        return record.id not in load().rows and _append(record)


def _append(record: Record) -> bool:
    """Add the row of a finished run."""
    planned, result = plan(record.run), record.result
    if planned.run.hide:
        result = result | hidden_numbers(record)
    row = {
        "id": record.id,
        "method": planned.run.method,
        "fields": fields_text(planned),
        "seed": planned.run.seed,
        "code": record.meta["code"],
        "data": record.meta["data"]["digest"][:16],
        "teacher": record.meta["teacher"] or "",
        "seconds": record.meta["seconds"],
        "commit": (record.meta["environment"].get("commit") or "")[:12],
        "processor": record.meta["environment"].get("processor", ""),
        "torch": record.meta["environment"].get("torch", ""),
    }
    row |= {name: _digits(result.get(name), digits) for name, digits in NUMBERS.items()}
    curves = {name: [_of_epoch(name, each) for each in record.history] for name in EPOCHS}
    epochs = [
        {"id": record.id, "quantity": name, "values": " ".join(f"{v:.4g}" for v in values)}
        for name, values in curves.items()
        if None not in values
    ]
    named = {"id": record.id, "named": " ".join(f"{v:g}" for v in images_named(record))}
    added = (COLUMNS, [row]), (("id", "quantity", "values"), epochs), (("id", "named"), [named])
    for path, (columns, new) in reversed(list(zip(_files(), added, strict=True))):
        text = io.StringIO()  # the row itself is written last: it makes the run count
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        before = path.read_bytes() if path.exists() else b""
        if not before:
            writer.writeheader()
        writer.writerows(new)
        write(path, before + text.getvalue().encode())
    return True


def _digits(value: Any, digits: int) -> str:
    """A number, or several with spaces between, rounded; "" for None."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(_digits(v, digits) for v in value)
    return f"{value:.{digits}f}"


def _of_epoch(name: str, row: dict) -> float | None:
    """A quantity of one epoch."""
    if name == "loss":
        return sum(row["terms"].values())
    value = row[name]
    return value if value is None else float(np.mean(value))


def images_named(record: Record) -> np.ndarray:
    """How many images of each test typeface the deployed network names (F,); where any student may
    be deployed, the mean over them."""
    z, deployed = record.logits()[0], record.result["deployed"]
    right = z.argmax(-1) == record.labels  # (m, N)
    right = right.mean(0) if deployed is None else right[deployed]
    faces = sources.glyph_faces()[0]  # of glyphs_few, the first of them
    return np.bincount(faces[: len(right)], right)


def stored(planned: Plan) -> Record | None:
    """The record of a run in the store, else its row of the reference."""
    return store.find(planned) or load().find(planned)
