"""The walk in a folder of one's own, and JupyterLab there: the command lab."""

import hashlib
import importlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from .. import __version__
from . import walk
from .project import BUNDLED, LAID, checkout, is_laid, write

NEW = "new_"  # begins the name of a file's new version, beside the one that its owner has changed


def lay(folder: Path) -> dict[str, list[str]]:
    """Put the walk's files into a folder; what was done -> their names.

    "laid": was not there. "renewed": was as an earlier version had put it there. "kept": its owner
    has changed it; where this version has another one than before, that is "beside" it, under a
    name that begins with `NEW`. A file that is as it should be is not told of.

    ValueError for a file, and in the project for a folder that is the project's.
    """
    source, project = checkout() or BUNDLED, checkout()
    names = walk.files(source)
    if not names:
        raise ValueError(f"{source} holds no notebooks: this kdkit was built without them")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    within = project and folder.resolve().is_relative_to(project.resolve())
    if within and not is_laid(folder) and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is a folder of the project itself: name a new one")
    before = _laid_before(folder)
    now, done = dict(before), {"laid": [], "renewed": [], "kept": [], "beside": []}

    def put(name: str, content: bytes, what: str = "") -> bool:
        """Write a file, unless it is its owner's; is it as it should be?"""
        path, digest = folder / name, hashlib.sha256(content).hexdigest()
        seen = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
        if seen not in (None, digest, before.get(name)):
            return False
        if seen != digest:
            write(path, content)
            done[what or ("renewed" if seen else "laid")].append(name)
        now[name] = digest
        return True

    for name in names:
        content = (source / name).read_bytes()
        if not put(name, content):
            done["kept"].append(name)
            digest = hashlib.sha256(content).hexdigest()
            if before.get(name) != digest:
                other = Path(name)
                put(str(other.with_name(NEW + other.name)), content, "beside")
                now[name] = digest
    if within:
        write(folder / ".gitignore", b"*\n")
    write(folder / LAID, json.dumps({"kdkit": __version__, "files": now}, indent=1).encode())
    return done


def _laid_before(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what was put into the folder; nothing where that is not known."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return dict(json.loads((folder / LAID).read_bytes())["files"])
    return {}


def told(folder: Path, done: dict[str, list[str]]) -> str:
    """What `lay` did, in a line or more."""
    counts = [f"{len(done[what])} files {what}" for what in ("laid", "renewed") if done[what]]
    lines = [f"{folder}: {', '.join(counts) or 'the walk is there already'}"]
    for name in done["kept"]:
        other = Path(name).with_name(NEW + Path(name).name).as_posix()
        new = f"; its new version is {other}" if other in done["beside"] else ""
        lines.append(f"kept as you changed it: {name}{new}")
    return "\n".join(lines)


def open_lab(folder: Path, browser: bool = True) -> None:
    """JupyterLab on the folder's notebooks, in the place of this process."""
    importlib.import_module("jupyterlab")  # ModuleNotFoundError is told before a process starts
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={folder}"]
    command += ["--LabApp.default_url=/lab/tree/notebooks", *([] if browser else ["--no-browser"])]
    env, project = dict(os.environ), checkout()
    if project:  # so that kernels find this kdkit, whatever the environment holds
        paths = [str(project), *filter(None, [env.get("PYTHONPATH")])]
        env["PYTHONPATH"] = os.pathsep.join(paths)
    os.execve(command[0], command, env)
