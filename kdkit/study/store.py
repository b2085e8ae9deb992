"""The run stores: one folder a run id, written whole or not at all, checked when read.

A finished run's folder holds `record.json` (config, environment, history, results, checksums),
`weights.pt`, `history.npz` (arrays for each epoch) and `test_logits.npz`; one under way holds
`checkpoint.pt` and `progress.json`. `record.json` is written last: it makes the run finished.

The first of `project.stores()` is written. The others are read alone: nothing in them is made,
locked, set aside or cleared, and what is wrong there is told once and passed over.
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..callbacks import followed, to_half
from ..methods import Method
from ..train import Fitted
from . import fingerprint
from .plans import FORMAT, Plan, Run, plan
from .project import checkout, main_process, quiet, root, say, stores, write
from .record import Record

__all__ = ["quiet", "stores"]  # they are used as store's, too

ID = re.compile(r"[0-9a-f]{12}")
RECORD_FILES = re.compile(
    r"(record\.json|weights\.pt|history\.npz|test_logits\.npz|checkpoint\.pt|"
    r"progress\.json)(\.\d+\.part|\.damaged-[0-9a-f]+)?"
)  # in a run's folder


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Over the names and bytes of the tensors, in name order."""
    h = hashlib.sha256()
    for name in sorted(state):
        h.update(name.encode())
        h.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return h.hexdigest()


def folder(run: Run | Plan) -> Path:
    """Where a run's files are, or will be."""
    return root() / plan(run).id


def _blob(save: Callable, content) -> bytes:
    """What `save(content, file)` writes."""
    buffer = io.BytesIO()
    save(content, buffer)
    return buffer.getvalue()


def save(planned: Plan, fitted: Fitted, data, resumed_at: int | None = None) -> Record:
    """Write a finished run; `record.json` last."""
    path, method, labels = root() / planned.id, fitted.method, data.y_test.cpu().numpy()
    logits, z, t = compress_logits(fitted.test_logits, fitted.teacher_logits, labels)
    result = metrics.report(z, labels, method.peers(), method.deployed(planned.run.seed), t)
    result |= correlations(method, z, t)
    if fitted.history:
        best = max(fitted.history, key=lambda row: np.mean(row["probe_top1"]))
        result["best_probe"] = {"epoch": best["epoch"], "top1": best["probe_top1"]}
    weights = {"students": fitted.students.state_dict(), "method": method.state_dict()}
    trained = {f"{part}.{k}": v for part, state in weights.items() for k, v in state.items()}
    weights["method"] = {k: v for k, v in weights["method"].items() if k not in method.scratch}
    probe = data.probe().cpu().numpy()
    arrays = fitted.arrays | {"probe_index": probe[:: followed(len(probe))][:64]}
    blobs = {"weights.pt": _blob(torch.save, weights)}
    for name, content in {"history.npz": arrays, "test_logits.npz": logits}.items():
        blobs[name] = _blob(lambda v, f: np.savez_compressed(f, **v), content)
    digest, how = fingerprint.data_identity(planned.run.data)
    meta = {
        "format": FORMAT,
        "id": planned.id,
        "run": dataclasses.asdict(planned.run),
        "method": method.title,
        "shape": list(data.shape),
        "classes": data.classes,
        "class_names": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
        "data": {"digest": digest, "of": how},
        "identity": planned.identity,
        "teacher": planned.teacher and planned.teacher.id,
        "environment": {
            "python": platform.python_version(),
            "commit": commit(),
            **fitted.environment,
        },
        "seconds": round(fitted.seconds, 2),
        "resumed_at": resumed_at,
        "history": fitted.history,
        "result": result,
        "code": fingerprint.class_digest(type(method)),
        "created": round(time.time()),
        "weights_sha256": weights_sha256(trained),  # of all that was trained, scratch included
        "files": {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()},
    }
    meta = json.loads(json.dumps(meta))
    sealed = {**meta, "sha256": _meta_sha256(meta)}
    write_record(planned.id, blobs | {"record.json": json.dumps(sealed, indent=1).encode()})
    return Record(path, meta)


def write_record(run_id: str, blobs: dict[str, bytes]) -> None:
    """The files of a finished run, `record.json` last, in the place of what was left of it."""
    path = root() / run_id
    for name in (*RECORD_PARTS, "record.json"):
        write(path / name, blobs[name])
    for left in ("checkpoint.pt", "progress.json") if main_process() else ():
        (path / left).unlink(missing_ok=True)


def correlations(method: Method, z: np.ndarray, t: np.ndarray | None) -> dict[str, float]:
    """Mean correlation numbers of the teacher and of what each student gets from the others, where
    the method has a `collect`, at T = 1 and 4. z (m, N, K), t (N, K): logits."""
    sources = {} if t is None else {"teacher": t}
    if hasattr(method, "collect"):
        collected = method.collect(torch.from_numpy(np.asarray(z, np.float32)))
        sources["collection"] = collected.numpy()
    return {
        f"correlation_{who}{end}": float(metrics.correlation_number(metrics.softmax(v, T)).mean())
        for who, v in sources.items()
        for T, end in ((1.0, ""), (4.0, "_T4"))
    }


def commit() -> str | None:
    """The commit of the project's checkout, if it is one."""
    project = checkout()
    if project is None or not (project / ".git").exists():
        return None
    with suppress(OSError):
        ask = ["git", "-C", project, "rev-parse", "HEAD"]
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip() or None


def compress_logits(z: np.ndarray, t: np.ndarray | None, y: np.ndarray) -> tuple:
    """(arrays of test_logits.npz, z, t): in half precision, and z and t as they will be read, so
    that a record's numbers are those of its stored logits. z (m, N, K), t (N, K), y (N,).

    Above 200 classes the arrays keep only the ten largest logits and the true class's; z and t keep
    all, and the record's numbers are of those.
    """
    z, t = to_half(z), None if t is None else to_half(t)
    arrays = {"students": z} if t is None else {"students": z, "teacher": t}
    if z.shape[-1] > 200:
        whole, arrays = arrays, {}
        for name, v in whole.items():
            ten = np.argpartition(-v, 10, axis=-1)[..., :10]
            kept = np.concatenate([ten, np.broadcast_to(y[:, None], (*v.shape[:-1], 1))], -1)
            arrays |= {name: np.take_along_axis(v, kept, -1), f"{name}_classes": kept}
    return arrays | {"labels": y.astype(np.int32)}, z, t


def tensors_to(kept, device: torch.device):
    """Tensors inside dicts and lists, on a device."""
    if isinstance(kept, dict):
        return {name: tensors_to(value, device) for name, value in kept.items()}
    return kept.to(device) if isinstance(kept, Tensor) else kept


def write_checkpoint(run: Run | Plan, state: dict) -> None:
    """A checkpoint of tensors, numbers and text, whole or not at all, with its checksum first."""
    blob = _blob(torch.save, state)
    write(folder(run) / "checkpoint.pt", hashlib.sha256(blob).digest() + blob)


def read_checkpoint(run: Run | Plan) -> dict | None:
    """The state `write_checkpoint` kept, on the CPU, or None. A damaged one is set aside."""
    path = folder(run) / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        blob = read_bytes(path)
        if hashlib.sha256(blob[32:]).digest() != blob[:32]:
            raise ValueError("it does not match its checksum")
        return torch.load(io.BytesIO(blob[32:]), map_location="cpu", weights_only=True)
    except OSError as e:
        if not isinstance(e, _NO_FILE):
            raise
        quarantine(path, f"{path.parent.name}: damaged checkpoint: {e}")
        return None
    except Exception as e:  # what torch raises for files that are not its own has no common type
        why = str(e).partition("\n")[0]
        quarantine(path, f"{path.parent.name}: damaged checkpoint: {why}")
        return None


def write_progress(run: Run | Plan, history: list[dict]) -> None:
    """What a live picture of an unfinished run reads: its history so far."""
    write(folder(run) / "progress.json", json.dumps(history).encode())


def _meta_sha256(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


RECORD_FIELDS = ("id", "run", "result", "history", "code", "created", "seconds", "environment")
RECORD_PARTS = ("weights.pt", "history.npz", "test_logits.npz")
_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
TRANSIENT_ERRNOS = {
    errno.EIO,
    errno.ESTALE,
    errno.EACCES,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ETIMEDOUT,
}


def read_bytes(path: Path, pauses: tuple[float, ...] = (0.05, 0.5)) -> bytes:
    """The content of a file; a file system that fails now and then is asked again.

    OSError where it goes on failing: that is no damage, and nothing is set aside for it.
    """
    for pause in pauses:
        try:
            return path.read_bytes()
        except OSError as e:
            if e.errno not in TRANSIENT_ERRNOS:
                raise
            time.sleep(pause)
    return path.read_bytes()


def read(path: Path) -> Record:
    """The record in a folder; ValueError, in one line, if anything in it is damaged or missing;
    OSError where it cannot be read at present."""
    return check(path, lambda name: read_bytes(path / name))


def check(path: Path, load: Callable[[str], bytes]) -> Record:
    """The record of the folder `path`, whose files' contents `load` gives. Errors as `read`."""
    try:
        meta = json.loads(load("record.json"))
        if not isinstance(meta, dict) or meta.pop("sha256", None) != _meta_sha256(meta):
            raise ValueError("record.json does not match its checksum")
        if meta["format"] != FORMAT or meta["id"] != path.name:
            raise ValueError(f"format {meta['format']} and id {meta['id']} do not belong here")
        lacking = [name for name in RECORD_FIELDS if name not in meta]
        lacking += [name for name in RECORD_PARTS if name not in meta["files"]]
        if lacking or not isinstance(meta["created"], int | float):
            raise ValueError(f"record.json lacks {', '.join(lacking) or 'a time'}")
        for name, want in meta["files"].items():
            if hashlib.sha256(load(name)).hexdigest() != want:
                raise ValueError(f"{name} does not match its checksum")
        record = Record(path, meta)
        record.run  # noqa: B018  fields of another version are damage too
        return record
    except _NO_FILE as e:
        raise ValueError(f"{path.name}: damaged record: {e}") from e
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path.name}: damaged record: {e}") from e


def quarantine(path: Path, why: str) -> None:
    """Keep something damaged under another name, and say so."""
    other = path.with_name(f"{path.name}.damaged-{time.time_ns():x}")
    say(f"{why}; set aside as {other.name}")
    if main_process():
        path.rename(other)


def find(run: Run | Plan, quarantine_damaged: bool = False) -> Record | None:
    """The finished record of a run, of the first store that has a sound one; None without one.

    quarantine_damaged: set one aside that is damaged in the first store. Only who holds the run's
    lock may: what looks damaged to others may be half replaced by the process that trains it.
    """
    return find_id(plan(run).id, quarantine_damaged)


def find_id(run_id: str, quarantine_damaged: bool = False) -> Record | None:
    """The same as `find`, of a run that is known by its id alone."""
    path = root() / run_id
    try:
        return read(path)
    except ValueError as e:
        if quarantine_damaged and path.exists() and not path.is_dir():
            quarantine(path, f"{path.name}: a file stands where a run's folder belongs")
        elif quarantine_damaged and (path / "record.json").exists():
            quarantine(path, str(e))
    shared = (_read_shared(folder / run_id) for folder in shared_stores())
    return next(filter(None, shared), None)


_say_once = cache(say)


def shared_stores() -> list[Path]:
    """The stores that are read alone; one that cannot be is told, once."""
    found = []
    for path in stores()[1:]:
        if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
            found.append(path)
        else:
            _say_once(f"KDKIT_RUNS names {path}, which is no folder that can be read: passed over")
    return found


def _read_shared(path: Path) -> Record | None:
    """The record in a folder of a store that is read alone, or None."""
    try:
        return read(path) if (path / "record.json").exists() else None
    except (ValueError, OSError) as e:
        _say_once(f"passed over in {path.parent}, which is read alone: {e}")
        return None


def records() -> tuple[list[Record], list[Path], list[Path]]:
    """(finished runs of all stores by age, each once; folders of unfinished ones, damaged ones in
    the first store)."""
    done, under_way, damaged = {}, [], []
    for path in _run_folders(root()):
        inside = {p.name for p in path.iterdir()}
        try:
            if "record.json" in inside:
                done[path.name] = read(path)
            elif any(map(RECORD_FILES.fullmatch, inside)):  # else it is not of the store
                under_way.append(path)
        except ValueError:
            damaged.append(path)
        except OSError as e:  # passing, perhaps: it is not damaged
            say(f"{path.name} cannot be read at present: {e}")
    for folder in shared_stores():
        for path in _run_folders(folder):
            if path.name not in done and (record := _read_shared(path)):
                done[path.name] = record
    return sorted(done.values(), key=lambda r: r.meta["created"]), under_way, damaged


def _run_folders(store: Path) -> list[Path]:
    """What may be runs in a store, by id."""
    return sorted(p for p in store.glob("*") if ID.fullmatch(p.name) and os.path.isdir(p))


@contextmanager
def lock(run: Run | Plan):
    """Only one process trains a run: the others wait here, and say so."""
    if not main_process():  # it works for the main process of its group, which holds the lock
        yield
        return
    run_id = plan(run).id
    with locked(run_id) as mine:
        if mine:
            yield
            return
    say(f"another process is training {plan(run).run.method} (run {run_id}): waiting for it")
    with locked(run_id, blocking=True):
        yield


@contextmanager
def locked(run_id: str, blocking: bool = False):
    """Hold the lock of a run in the first store; is it held? Always, where `blocking` waits."""
    held = filelock.FileLock(root() / f"{run_id}.lock")
    root().mkdir(parents=True, exist_ok=True)
    with suppress(filelock.Timeout):
        held.acquire(blocking=blocking)
    try:
        yield held.is_locked
    finally:
        if held.is_locked:
            delete_and_release(held)


def delete_and_release(held: filelock.FileLock) -> None:
    """Delete a lock file before releasing it: a process that waits for it opens a new one."""
    with suppress(OSError):  # Windows does not delete a file that is open
        Path(held.lock_file).unlink(missing_ok=True)
    held.release()
