"""What runs leave behind in the first store, and how it is cleared: the command gc."""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import filelock

from . import store
from .project import root


def find() -> list[tuple[Path, str]]:
    """What `gc` would clear: (path, why). Foreign files are never listed."""
    keys = sorted({p.name[:12] for p in root().glob("*") if store.ID.match(p.name)})
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
    inside = {p.name: store.RECORD_FILES.fullmatch(p.name) for p in sorted(folder.glob("*"))}
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
        store.delete_and_release(held)
