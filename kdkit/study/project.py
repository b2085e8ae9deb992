"""Where the kit's files are, and the few ways in which it writes and speaks."""

import os
import sys
from pathlib import Path

import torch


def home() -> Path:
    """The package's project, else the current folder."""
    project = Path(__file__).parents[2]
    return project if (project / "pyproject.toml").exists() else Path.cwd()


def place(variable: str, default: str) -> Path:
    """The folder that an environment variable names, else `default`; a relative one is relative to
    the project, never to where a kernel happens to run, and ~ is the user's home."""
    given = os.environ.get(variable)
    return (home() / Path(given or default).expanduser()).absolute()


def root() -> Path:
    """The run store: $KDKIT_RUNS, else `runs` in `home()`."""
    return place("KDKIT_RUNS", "runs")


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
