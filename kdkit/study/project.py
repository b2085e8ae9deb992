"""Where the kit's files are, and the few ways in which it writes and speaks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

BUNDLED = Path(__file__).parents[1] / "assets" / "walk"  # of an installed kit; setup.py fills it
LAID = ".kdkit.json"  # in a folder that `kdkit lab` filled: what it put there


def checkout() -> Path | None:
    """The project that this package is the code of; None for an installed kit."""
    project = Path(__file__).parents[2]
    return project if (project / "pyproject.toml").exists() else None


def is_laid(folder: Path) -> bool:
    """Was the folder filled by `kdkit lab`?"""
    return os.path.exists(folder / LAID)  # False also where one may not look


def home() -> Path:
    """The package's project; of an installed kit the nearest folder, from the current one upwards,
    that `kdkit lab` filled, else the current one."""
    here = Path.cwd()
    return checkout() or next(filter(is_laid, (here, *here.parents)), here)


def walk_folder() -> Path:
    """The folder with `notebooks`, `figures` and `benchmarks`: `home()`, where it has them, else
    what an installed kit brings."""
    folder = home()
    return folder if checkout() or is_laid(folder) else BUNDLED


def place(variable: str, default: str) -> Path:
    """The folder that an environment variable names, else `default`; see `absolute`."""
    return absolute(os.environ.get(variable) or default)


def absolute(name: str) -> Path:
    """A folder that a setting names: a relative one is relative to `home()`, never to where a
    kernel happens to run, and ~ is the user's home. ValueError where there is no such user."""
    try:
        return (home() / Path(name).expanduser()).absolute()
    except RuntimeError as e:
        raise ValueError(f"{name}: {e}") from e


def stores() -> tuple[Path, ...]:
    """The run stores that $KDKIT_RUNS names, separated as in PATH: the first is written, the others
    are read alone. An empty first name is `runs` in `home()`, other empty ones are none.

    ValueError for a folder that cannot be passed on in such a list.
    """
    first, *others = os.environ.get("KDKIT_RUNS", "").split(os.pathsep)
    found = dict.fromkeys(absolute(name) for name in (first or "runs", *filter(None, others)))
    for path in found:
        if os.pathsep in str(path):
            raise ValueError(
                f"store {path}: a path without {os.pathsep!r} is needed; KDKIT_RUNS names another"
            )
    return tuple(found)


def root() -> Path:
    """The store that is written, the first of `stores()`."""
    return stores()[0]


def runs_variable() -> dict[str, str]:
    """$KDKIT_RUNS for another process, which may run elsewhere: `stores()`, whole."""
    return {"KDKIT_RUNS": os.pathsep.join(map(str, stores()))}


def main_process() -> bool:
    """Of several processes that train one run together, only the first prints and writes."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def quiet() -> bool:
    """No bars and no live pictures: under papermill, nbval and other processes' helpers."""
    return os.environ.get("KDKIT_BATCH") == "1" or not main_process()


def say(text: str) -> None:
    """One line for a person, on standard error."""
    if main_process():
        print(f"kdkit: {text}", file=sys.stderr, flush=True)


def write(path: Path, data: bytes) -> None:
    """Write `path` whole or not at all: temporary file, sync, rename. OSError: it was not."""
    if main_process():
        with writing(path) as file:
            file.write(data)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends, whole, or not at all where it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as e:  # a full disk, or a second Ctrl-C
        part.unlink(missing_ok=True)
        if isinstance(e, OSError):
            raise OSError(e.errno, f"not written: {e.strerror}", str(path)) from e
        raise
