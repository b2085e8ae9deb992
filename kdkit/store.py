"""The run store: one folder a run id, written whole or not at all, checked when read.

A finished run's folder holds `record.json` (config, environment, history, results, checksums),
`weights.pt`, `history.npz` (arrays for each epoch) and `test_logits.npz`; one under way holds
`checkpoint.pt` and `progress.json`. `record.json` is written last: it makes the run finished.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor, nn

from . import models
from .config import FORMAT, Run, content, digest
from .methods import effective, is_ours, make, method_class, resolve, source_digest

ID = re.compile(r"[0-9a-f]{12}")
OURS = re.compile(
    r"(record\.json|weights\.pt|history\.npz|test_logits\.npz|checkpoint\.pt|"
    r"progress\.json)(\.\d+\.part|\.damaged-[0-9a-f]+)?"
)  # in a run's folder


def home() -> Path:
    """The package's project, else the current folder."""
    project = Path(__file__).parents[1]
    return project if (project / "pyproject.toml").exists() else Path.cwd()


def root() -> Path:
    """$KDKIT_RUNS, else `runs` in `home()`."""
    return Path(os.environ.get("KDKIT_RUNS") or home() / "runs").absolute()


def main_process() -> bool:
    """Of several processes that train one run, only one prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def quiet() -> bool:
    """No bars and no live pictures: under papermill, nbval and other processes' helpers."""
    return os.environ.get("KDKIT_BATCH") == "1" or not main_process()


def say(text: str) -> None:
    """One line for a person, on standard error."""
    if main_process():
        print(f"kdkit: {text}", file=sys.stderr, flush=True)


def write(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all: temporary file, sync, rename. OSError: it was not."""
    if not main_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as e:  # a full disk, or a second Ctrl-C
        part.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise OSError(e.errno, f"not written: {e.strerror}", str(path)) from e
        raise


def run_id(run: Run) -> str:
    """Hash of every field of the resolved run that changes its result, of its teacher's id and,
    for a method class outside this package, of its syntax tree."""
    run = resolve(run)
    cls, teacher = method_class(run.method), make(run).teacher_run(run)
    code = None if is_ours(cls) else source_digest(cls)
    return digest(content(effective(run)), teacher and run_id(teacher), code)


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Over the names and bytes of the tensors, in name order."""
    h = hashlib.sha256()
    for name in sorted(state):
        h.update(name.encode())
        h.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return h.hexdigest()


def students(run: Run, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The untrained students of a run: one network, `Peers` or `Branches`.

    shape: (C, H, W) of an image. ValueError where names and number of students do not agree.
    """
    method, names = make(run), run.student.split(",")
    kind, m = method.group()
    if len(names) not in (1, m) or (kind == "branch" and len(set(names)) > 1):
        raise ValueError(
            f"student={run.student!r}: {method.title} has {m} student(s), "
            f"kind {kind}; name one network, or {m} for a group of whole networks"
        )
    nets = [models.build(n.strip(), shape[0], classes) for n in (names * m)[:m]]
    if kind == "branch":
        return models.Branches(nets, method.at_split)
    return models.Peers(nets) if kind == "network" else nets[0]


@dataclass(frozen=True)
class Record:
    """A finished run. `result`, `history` and the rest of record.json are in `meta`."""

    path: Path
    meta: dict

    @property
    def id(self) -> str:
        return self.meta["id"]

    @property
    def result(self) -> dict:
        return self.meta["result"]

    @property
    def history(self) -> list[dict]:
        """One dict an epoch: epoch, lr, terms, train_top1, probe_top1, diversity, ..."""
        return self.meta["history"]

    @cached_property
    def run(self) -> Run:
        return run_from(self.meta["run"])

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """For each of E epochs: pair_distance (E, m, m), probe_logits (E, m, 64, K), and what the
        method watched, such as attention (E, m-1, m-1); and probe_index (64,)."""
        return dict(np.load(self.path / "history.npz", allow_pickle=False))

    @cached_property
    def test_logits(self) -> dict[str, np.ndarray]:
        """students (m, N, K) and, where there is one, teacher (N, K), in the test file's order;
        above 200 classes the last axis holds eleven, whose classes are in `*_classes`."""
        return dict(np.load(self.path / "test_logits.npz", allow_pickle=False))

    def model(self, device: str = "cpu") -> nn.Module:
        """The trained students, in eval mode, frozen."""
        net = students(self.run, tuple(self.meta["shape"]), self.meta["classes"])
        state = torch.load(self.path / "weights.pt", map_location="cpu", weights_only=True)
        net.load_state_dict(state["students"])
        return net.to(device).eval().requires_grad_(False)


def run_from(fields: dict) -> Run:
    """A Run from JSON; ValueError where it is none of this version."""
    try:
        params = tuple((str(k), v) for k, v in fields["params"])
        return Run(**{**fields, "params": params})
    except (TypeError, KeyError) as e:
        raise ValueError(f"not a run of this version: {e}") from e


def _blob(save: Callable, content) -> bytes:
    """What `save(content, file)` writes."""
    buffer = io.BytesIO()
    save(content, buffer)
    return buffer.getvalue()


def save(run: Run, meta: dict, weights: dict, files: dict[str, dict[str, np.ndarray]]) -> Record:
    """Write a finished run; `record.json` last. files: name -> arrays of an .npz file."""
    path = root() / run_id(run)
    blobs = {"weights.pt": _blob(torch.save, weights)}
    blobs |= {k: _blob(lambda v, f: np.savez_compressed(f, **v), a) for k, a in files.items()}
    for name, blob in blobs.items():
        write(path / name, blob)
    sums = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
    flat = {f"{k}.{n}": v for k, state in weights.items() for n, v in state.items()}
    meta = {
        "format": FORMAT,
        "id": path.name,
        "run": dataclasses.asdict(run),
        **meta,
        "code": source_digest(method_class(run.method)),
        "created": round(time.time()),
        "weights_sha256": weights_sha256(flat),
        "files": sums,
    }
    meta = json.loads(json.dumps(meta))
    write(path / "record.json", json.dumps({**meta, "sha256": _seal(meta)}, indent=1).encode())
    for left in ("checkpoint.pt", "progress.json") if main_process() else ():
        (path / left).unlink(missing_ok=True)
    return Record(path, meta)


def half(v: np.ndarray) -> np.ndarray:
    """In half precision, or in single where half cannot hold it (an untrained batch norm's)."""
    return v.astype(np.float16 if np.abs(v).max() < np.finfo(np.float16).max else np.float32)


def packed(z: np.ndarray, t: np.ndarray | None, y: np.ndarray) -> tuple:
    """(arrays of test_logits.npz, z, t): as `half` keeps them, and z and t as they will be read,
    so that a record's numbers are those of its stored logits. z (m, N, K), t (N, K), y (N,).

    Above 200 classes only the ten largest logits and the true class's are kept.
    """
    z, t = half(z), None if t is None else half(t)
    arrays = {"students": z} if t is None else {"students": z, "teacher": t}
    if z.shape[-1] > 200:
        whole, arrays = arrays, {}
        for name, v in whole.items():
            ten = np.argpartition(-v, 10, axis=-1)[..., :10]
            kept = np.concatenate([ten, np.broadcast_to(y[:, None], (*v.shape[:-1], 1))], -1)
            arrays |= {name: np.take_along_axis(v, kept, -1), f"{name}_classes": kept}
    return arrays, z, t


def write_checkpoint(run: Run, state: dict) -> None:
    """A checkpoint of tensors, numbers and text, whole or not at all, with its checksum first."""
    blob = _blob(torch.save, state)
    write(root() / run_id(run) / "checkpoint.pt", hashlib.sha256(blob).digest() + blob)


def read_checkpoint(run: Run) -> dict | None:
    """The state `write_checkpoint` kept, on the CPU, or None. A damaged one is set aside."""
    path = root() / run_id(run) / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        blob = path.read_bytes()
        if hashlib.sha256(blob[32:]).digest() != blob[:32]:
            raise ValueError("it does not match its checksum")
        return torch.load(io.BytesIO(blob[32:]), map_location="cpu", weights_only=True)
    except Exception as e:  # what torch raises for files that are not its own has no common type
        why = str(e).partition("\n")[0]
        set_aside(path, f"{path.parent.name}: damaged checkpoint: {why}")
        return None


def write_progress(run: Run, history: list[dict]) -> None:
    """What a live picture of an unfinished run reads: its history so far."""
    write(root() / run_id(run) / "progress.json", json.dumps(history).encode())


def _seal(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Record:
    """The record in a folder; ValueError, in one line, if anything in it is damaged."""
    try:
        meta = json.loads((path / "record.json").read_bytes())
        if not isinstance(meta, dict) or meta.pop("sha256", None) != _seal(meta):
            raise ValueError("record.json does not match its checksum")
        if meta["format"] != FORMAT or meta["id"] != path.name:
            raise ValueError(f"format {meta['format']} and id {meta['id']} do not belong here")
        for name, want in meta["files"].items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != want:
                raise ValueError(f"{name} does not match its checksum")
        record = Record(path, meta)
        record.run  # noqa: B018  fields of another version are damage too
        return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path.name}: damaged record: {e}") from e


def set_aside(path: Path, why: str) -> None:
    """Keep something damaged under another name, and say so."""
    other = path.with_name(f"{path.name}.damaged-{time.time_ns():x}")
    say(f"{why}; set aside as {other.name}")
    if main_process():
        path.rename(other)


def find(run: Run, mend: bool = False) -> Record | None:
    """The finished record of a run, or None where there is none or it is damaged.

    mend: set a damaged one aside. Only who holds the run's lock may: what looks damaged to others
    may be half replaced by the process that trains it.
    """
    path = root() / run_id(run)
    try:
        return read(path)
    except ValueError as e:
        if mend and path.exists() and not path.is_dir():
            set_aside(path, f"{path.name}: a file stands where a run's folder belongs")
        elif mend and (path / "record.json").exists():
            set_aside(path, str(e))
        return None


def records() -> tuple[list[Record], list[Path], list[Path]]:
    """(finished runs by age, folders of unfinished ones, damaged ones) in the store."""
    done, under_way, damaged = [], [], []
    for path in sorted(p for p in root().glob("*") if ID.fullmatch(p.name) and p.is_dir()):
        inside = {p.name for p in path.iterdir()}
        try:
            if "record.json" in inside:
                done.append(read(path))
            elif any(map(OURS.fullmatch, inside)):  # else it is not of the store
                under_way.append(path)
        except ValueError:
            damaged.append(path)
    return sorted(done, key=lambda r: r.meta["created"]), under_way, damaged


@contextmanager
def lock(run: Run):
    """Only one process trains a run: the others wait here, and say so."""
    if not main_process():  # it works for the main process of its group, which holds the lock
        yield
        return
    path = root() / f"{run_id(run)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(path)
    with suppress(filelock.Timeout):
        held.acquire(blocking=False)
    if not held.is_locked:
        say(f"another process is training {run.method} (run {path.stem}): waiting for it")
        held.acquire()
    try:
        yield
    finally:
        _free_for_good(held)


def _free_for_good(held: filelock.FileLock) -> None:
    """Delete a lock file while it is held: who opened it meanwhile takes a new one."""
    with suppress(OSError):  # Windows does not delete a file that is open
        Path(held.lock_file).unlink(missing_ok=True)
    held.release()


def leftovers() -> list[tuple[Path, str]]:
    """What `gc` would clear: (path, why). Foreign files are never listed."""
    keys = sorted({p.name[:12] for p in root().glob("*") if ID.match(p.name)})
    return [found for key in keys if _free(key) for found in _stale(key)]


def _free(key: str) -> bool:
    held = filelock.FileLock(root() / f"{key}.lock")
    with suppress(filelock.Timeout):
        if Path(held.lock_file).exists():
            held.acquire(blocking=False)
            held.release()
        return True
    return False


def _stale(key: str) -> Iterator[tuple[Path, str]]:
    """The leftovers of a run that no process is training."""
    folder = root() / key
    inside = {p.name: OURS.fullmatch(p.name) for p in sorted(folder.glob("*"))}
    for name, m in inside.items():
        if m and m[2]:
            yield (
                folder / name,
                (
                    "a damaged checkpoint that was set aside"
                    if "damaged" in m[2]
                    else "a half-written file"
                ),
            )
        elif "record.json" in inside and name in ("checkpoint.pt", "progress.json"):
            yield folder / name, "left over from a finished run"
    needed = inside.keys() & {"record.json", "checkpoint.pt"}
    if folder.is_dir() and not needed and all(inside.values()):
        yield folder, "a run that never came to a checkpoint"
    for path in sorted(root().glob(f"{key}.*")):
        if re.fullmatch(r"\.damaged-[0-9a-f]+", path.name[12:]):
            yield path, "a damaged record that was set aside"
        elif path.name[12:] == ".lock":
            yield path, "a lock that nobody holds"


def clear(path: Path) -> None:
    """Delete one leftover, file or folder, unless a process uses it, or has by now made use of it;
    and the run's lock file."""
    key = (path if path.parent == root() else path.parent).name[:12]
    held = filelock.FileLock(root() / f"{key}.lock")
    with suppress(filelock.Timeout), held.acquire(blocking=False):
        if path in dict(_stale(key)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _free_for_good(held)
