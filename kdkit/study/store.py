"""The run store: one folder a run id, written whole or not at all, checked when read.

A finished run's folder holds `record.json` (config, environment, history, results, checksums),
`weights.pt`, `history.npz` (arrays for each epoch) and `test_logits.npz`; one under way holds
`checkpoint.pt` and `progress.json`. `record.json` is written last: it makes the run finished.
"""

import dataclasses
import errno
import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
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

from .. import metrics, models
from ..callbacks import followed, to_half
from ..methods import Method
from ..randomness import own_draws
from ..train import Fitted
from . import fingerprint
from .plans import FORMAT, Plan, Run, build_students, plan, run_from
from .project import home, main_process, quiet, root, say, write

__all__ = ["home", "main_process", "quiet", "root", "say", "write"]  # they are used as store's, too

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


class Deployed(nn.Module):
    """A network with its normalisation inside: images (B, C, H, W) in, logits (B, K) out.

    mean, std: per channel, in units of 0..1; images are bytes, or floats from 0 to 1. For data that
    were never bytes all are in the data's own units.
    """

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(
                name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            )  # (C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return models.as_out(self.network((x - self.mean) / self.std)).logits


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
        """Accuracies in percent and more (`metrics.report`), of the last epoch."""
        return self.meta["result"]

    @property
    def history(self) -> list[dict]:
        """One dict per epoch: epoch, lr, terms, train_top1, probe_top1, diversity, ..."""
        return self.meta["history"]

    @cached_property
    def run(self) -> Run:
        return run_from(self.meta["run"])

    @cached_property
    def method(self) -> Method:
        """The run's method, with its fields. ValueError where a user's is not loaded."""
        return plan(self.run).method

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """For each of E epochs: pair_distance (E, m, m), probe_logits (E, m, 64, K), and what the
        method watched, such as attention (E, m-1, m-1); and probe_index (64,)."""
        return dict(np.load(self.path / "history.npz", allow_pickle=False))

    @cached_property
    def test_logits(self) -> dict[str, np.ndarray]:
        """students (m, N, K) and, where there is one, teacher (N, K), in the test file's order;
        above 200 classes the last axis holds eleven, whose classes are in `*_classes`."""
        kept = np.load(self.path / "test_logits.npz", allow_pickle=False)
        return {name: kept[name] for name in kept.files if name != "labels"}

    @property
    def labels(self) -> np.ndarray:
        """The test images' classes (N,) int64."""
        kept = np.load(self.path / "test_logits.npz", allow_pickle=False)
        if "labels" in kept.files:
            return kept["labels"].astype(np.int64)
        return fingerprint.load_data(self.run.data).y_test.cpu().numpy()  # an old record

    def logits(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The stored test logits: students (m, N, K) and teacher (N, K) or None, float64.

        They were rounded to half precision, by at most 1/2048 of each value. ValueError where the
        store kept only the largest of each image.
        """
        kept = self.test_logits
        if "students_classes" in kept:
            raise ValueError(f"run {self.id}: only the largest logits are stored above 200 classes")
        teacher = kept.get("teacher")
        z = kept["students"].astype(np.float64)
        return z, None if teacher is None else teacher.astype(np.float64)

    def metric(self, name: str) -> float | list[float]:
        """A metric of the test images, computed now from the stored logits: one of
        `metrics.list_metrics()`, also one registered after the run was trained.

            @kd.metric("margin")
            def margin(z, y):  # z: (m, N, K) float64 logits, y: (N,) -> (m,)
                two = np.sort(z, -1)[..., -2:]
                return (two[..., 1] - two[..., 0]).mean(-1)

            record.metric("margin")

        Logits are stored in half precision: they are right to three decimal digits.
        """
        if name not in metrics.METRICS and name in self.result:
            return self.result[name]
        value = metrics.METRICS.find(name)(self.logits()[0], self.labels)
        return np.asarray(value).tolist() if isinstance(value, np.ndarray | np.generic) else value

    def model(self, device: str = "cpu") -> nn.Module:
        """The trained students, in eval mode, frozen: they take normalised images.

        ValueError where a user's network is another one by now than the one that was trained.
        """
        trained = {k: v for k, v in self.meta.get("identity", {}).items() if k != "method"}
        for name, now in fingerprint.network_identity(self.run.student).items():
            if trained.get(name, now) != now:
                raise ValueError(f"run {self.id} was trained with other code of {name}")
        with own_draws(0):  # nobody sees what they were before
            net = build_students(self.run, tuple(self.meta["shape"]), self.meta["classes"])
        state = torch.load(self.path / "weights.pt", map_location="cpu", weights_only=True)
        net.load_state_dict(state["students"])
        return net.to(device).eval().requires_grad_(False)

    def student(self, device: str = "cpu") -> nn.Module:
        """The deployed network alone, as a plain module: images (B, C, H, W) in, as bytes or as
        floats of the data's own range (0 to 1 for bytes), logits (B, K) out."""
        net, index = self.model(), self.result["deployed"] or 0
        if "mean" in self.meta:
            mean, std = self.meta["mean"], self.meta["std"]
        else:  # an old record
            data = fingerprint.load_data(self.run.data)
            mean, std = data.mean, data.std
        single = net.nets[index] if isinstance(net, models.Peers | models.Branches) else net
        return Deployed(single, mean, std).to(device).eval().requires_grad_(False)


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
    for name, blob in blobs.items():
        write(path / name, blob)
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
    write(path / "record.json", json.dumps(sealed, indent=1).encode())
    for left in ("checkpoint.pt", "progress.json") if main_process() else ():
        (path / left).unlink(missing_ok=True)
    return Record(path, meta)


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
    if not (home() / ".git").exists():
        return None
    with suppress(OSError):
        ask = ["git", "-C", home(), "rev-parse", "HEAD"]
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
    try:
        meta = json.loads(read_bytes(path / "record.json"))
        if not isinstance(meta, dict) or meta.pop("sha256", None) != _meta_sha256(meta):
            raise ValueError("record.json does not match its checksum")
        if meta["format"] != FORMAT or meta["id"] != path.name:
            raise ValueError(f"format {meta['format']} and id {meta['id']} do not belong here")
        lacking = [name for name in RECORD_FIELDS if name not in meta]
        lacking += [name for name in RECORD_PARTS if name not in meta["files"]]
        if lacking or not isinstance(meta["created"], int | float):
            raise ValueError(f"record.json lacks {', '.join(lacking) or 'a time'}")
        for name, want in meta["files"].items():
            if hashlib.sha256(read_bytes(path / name)).hexdigest() != want:
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
    """The finished record of a run, or None where there is none or it is damaged.

    quarantine_damaged: set a damaged one aside. Only who holds the run's lock may: what looks
    damaged to others may be half replaced by the process that trains it.
    """
    path = folder(run)
    try:
        return read(path)
    except ValueError as e:
        if quarantine_damaged and path.exists() and not path.is_dir():
            quarantine(path, f"{path.name}: a file stands where a run's folder belongs")
        elif quarantine_damaged and (path / "record.json").exists():
            quarantine(path, str(e))
        return None


def records() -> tuple[list[Record], list[Path], list[Path]]:
    """(finished runs by age, folders of unfinished ones, damaged ones) in the store."""
    done, under_way, damaged = [], [], []
    for path in sorted(p for p in root().glob("*") if ID.fullmatch(p.name) and p.is_dir()):
        inside = {p.name for p in path.iterdir()}
        try:
            if "record.json" in inside:
                done.append(read(path))
            elif any(map(RECORD_FILES.fullmatch, inside)):  # else it is not of the store
                under_way.append(path)
        except ValueError:
            damaged.append(path)
        except OSError as e:  # passing, perhaps: it is not damaged
            say(f"{path.name} cannot be read at present: {e}")
    return sorted(done, key=lambda r: r.meta["created"]), under_way, damaged


@contextmanager
def lock(run: Run | Plan):
    """Only one process trains a run: the others wait here, and say so."""
    if not main_process():  # it works for the main process of its group, which holds the lock
        yield
        return
    path = root() / f"{plan(run).id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(path)
    with suppress(filelock.Timeout):
        held.acquire(blocking=False)
    if not held.is_locked:
        say(f"another process is training {plan(run).run.method} (run {path.stem}): waiting for it")
        held.acquire()
    try:
        yield
    finally:
        _delete_and_release(held)


def _delete_and_release(held: filelock.FileLock) -> None:
    """Delete a lock file before releasing it: a process that waits for it opens a new one."""
    with suppress(OSError):  # Windows does not delete a file that is open
        Path(held.lock_file).unlink(missing_ok=True)
    held.release()


def leftovers() -> list[tuple[Path, str]]:
    """What `gc` would clear: (path, why). Foreign files are never listed."""
    keys = sorted({p.name[:12] for p in root().glob("*") if ID.match(p.name)})
    return [found for key in keys if _is_unlocked(key) for found in _stale(key)]


def _is_unlocked(key: str) -> bool:
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
    inside = {p.name: RECORD_FILES.fullmatch(p.name) for p in sorted(folder.glob("*"))}
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
        _delete_and_release(held)
