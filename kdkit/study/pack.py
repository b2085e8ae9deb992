"""Finished runs handed over in one file.

A pack is a zip archive without compression: a folder for each run, with the four files of its
record, and a manifest with the size and SHA-256 of every file. It is written whole or not at all,
and all of it is checked before the store is written.
"""

import hashlib
import json
import re
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .. import __version__
from ..fields import fields
from . import sources, store
from .plans import Run
from .project import quiet, root, say, writing
from .store import ID, RECORD_PARTS, Record

FORMAT = 1
MANIFEST = "manifest.json"
PARTS = {*RECORD_PARTS, "record.json"}
NAME = re.compile(rf"({ID.pattern})/({'|'.join(map(re.escape, sorted(PARTS)))})")
# What a damaged archive raises beside ValueError.
NOT_SOUND = (
    zipfile.BadZipFile,
    EOFError,
    RuntimeError,
    LookupError,
    OverflowError,
    OSError,
    struct.error,
)
END = b"PK\5\6"  # begins the last 22 bytes of a zip archive that has no comment
DATE = (1980, 1, 1, 0, 0, 0)  # of all files: the same runs make the same pack


def chosen(ids: Iterable[str], where: dict[str, str]) -> list[Record]:
    """The finished runs of all stores that have one of these ids, where any is given, and these
    values of fields; and their teachers. ValueError where an id or every run is missing."""
    known = {record.id: record for record in store.records()[0]}
    ids = list(ids) or list(known)
    if lacking := [run_id for run_id in ids if run_id not in known]:
        raise ValueError(
            f"{lacking[0]!r} is no finished run in {', '.join(map(str, store.stores()))}; "
            "`python -m kdkit runs` lists them"
        )
    found = {i: known[i] for i in ids if all(_has(known[i], *pair) for pair in where.items())}
    if not found:
        wanted = ", ".join(f"{name}={value}" for name, value in where.items())
        raise ValueError(f"no finished run{wanted and ' has '}{wanted}: nothing to pack")
    for record in (waiting := list(found.values())):
        teacher = record.meta["teacher"]
        if teacher in known and teacher not in found:
            found[teacher] = known[teacher]
            waiting.append(known[teacher])
        elif teacher and teacher not in known:
            say(f"run {record.id} is packed without its teacher {teacher}, which is in no store")
    return list(found.values())


def _has(record: Record, name: str, text: str) -> bool:
    """Is the field, of the run or of its method, what the text says?"""
    try:
        owner = record.run if name in fields(Run) else record.method
        field = fields(type(owner)).get(name)
        text = sources.ALIASES.get(text, text) if name == "data" else text
        return field is not None and getattr(owner, name) == field.parse(text)
    except ValueError:  # no value of that field, or a user's method that is not loaded
        return False


def pack(file: Path, records: list[Record]) -> None:
    """Write these records into `file`. ValueError where it is there already or one is damaged."""
    if file.exists():
        raise ValueError(f"{file} is there already, and is not replaced: name another file")
    listed = {}
    with (
        writing(file) as out,
        zipfile.ZipFile(out, "w") as archive,
    ):
        for record in _bar(records, "pack"):
            for name, content in _contents(record.path).items():
                listed[f"{record.id}/{name}"] = [len(content), _sha256(content)]
                _add(archive, f"{record.id}/{name}", content)
        about = {"format": FORMAT, "kdkit": __version__, "files": listed}
        _add(archive, MANIFEST, json.dumps(about, indent=1).encode())


def _contents(path: Path) -> dict[str, bytes]:
    """The files of a record, checked as they are read."""
    found = {}

    def load(name: str) -> bytes:
        found[name] = store.read_bytes(path / name)
        return found[name]

    store.check(path, load)
    return found


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, DATE)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(info, content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def unpack(file: Path) -> tuple[list[str], list[str]]:
    """Put the runs of a pack into the first store: (ids of those, ids of those that were there).

    ValueError, in one line and before anything is written, where anything in the file is not as its
    manifest or a record says. What another process is training just now is passed over.
    """
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    done, there, size = [], [], file.stat().st_size
    with file.open("rb") as opened:
        try:
            opened.seek(max(0, size - len(END) - 18))
            if not opened.read().startswith(END):  # else zipfile finds that of an array inside
                raise ValueError("it does not end as a pack does")
            archive = zipfile.ZipFile(opened)
            listed = _listed(archive, size)
            runs = sorted({name.partition("/")[0] for name in listed})
            for run_id in _bar(runs, "check"):
                _check(archive, listed, run_id)
        except (*NOT_SOUND, ValueError) as e:
            raise ValueError(f"{file}: not a sound pack, nothing was unpacked: {e}") from e
        for run_id in _bar(runs, "unpack"):
            if store.find_id(run_id):
                there.append(run_id)
                continue
            with store.locked(run_id) as mine:
                if not mine:
                    say(f"run {run_id} is trained by another process just now: passed over")
                elif store.find_id(run_id, quarantine_damaged=True):
                    there.append(run_id)
                else:
                    _write(run_id, {name: _read(archive, listed, run_id, name) for name in PARTS})
                    done.append(run_id)
    return done, there


def _bar(items: list, title: str) -> tqdm:
    return tqdm(items, title, unit="run", mininterval=1, leave=False, disable=quiet())


def _read(archive: zipfile.ZipFile, listed: dict, run_id: str, part: str) -> bytes:
    """A file of a record. ValueError where it is not what the manifest lists."""
    name = f"{run_id}/{part}"
    try:
        content = archive.read(name)
    except NOT_SOUND as e:
        raise ValueError(f"{name} cannot be read: {e}") from e
    if [len(content), _sha256(content)] != listed[name]:
        raise ValueError(f"{name} is not what the manifest lists")
    return content


def _check(archive: zipfile.ZipFile, listed: dict, run_id: str) -> None:
    """ValueError where a run in the archive is no record as the store has them."""
    record = store.check(root() / run_id, lambda part: _read(archive, listed, run_id, part))
    if record.meta["files"].keys() != set(RECORD_PARTS):
        raise ValueError(f"{run_id}: its record names other files")


def _write(run_id: str, contents: dict[str, bytes]) -> None:
    """Write one record, and nothing of it where that fails."""
    path = root() / run_id
    new = not path.exists()
    try:
        store.write_record(run_id, contents)
    except BaseException:  # a full disk, Ctrl-C
        if new:
            shutil.rmtree(path, ignore_errors=True)
        raise


def _listed(archive: zipfile.ZipFile, size: int) -> dict[str, tuple[int, str]]:
    """Name -> (size, SHA-256) from the manifest. ValueError unless the archive holds just these,
    plain files of records, and no more bytes than its own `size`."""
    inside: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.orig_filename
        if name != MANIFEST and not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a record's file")
        if name in inside:
            raise ValueError(f"{name} is there twice")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.compress_type or info.flag_bits & 1:
            raise ValueError(f"{name} is not a plain file, neither packed nor encrypted")
        inside[name] = info
    if MANIFEST not in inside:
        raise ValueError("it has no manifest")
    about: Any = json.loads(archive.read(inside.pop(MANIFEST)))
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        seen = about.get("format") if isinstance(about, dict) else about
        raise ValueError(f"its format is {seen!r}, known is {FORMAT}")
    listed = about.get("files")
    if not isinstance(listed, dict) or not listed or listed.keys() != inside.keys():
        raise ValueError("its files are not those that the manifest lists")
    for name, entry in listed.items():
        if not isinstance(entry, list) or [type(value) for value in entry] != [int, str]:
            raise ValueError(f"the manifest lists {name} as {entry!r}, known is [bytes, SHA-256]")
        if entry[0] != inside[name].file_size:
            raise ValueError(f"{name} has {inside[name].file_size} bytes, {entry[0]} are listed")
        if lacking := {f"{name.partition('/')[0]}/{part}" for part in PARTS} - listed.keys():
            raise ValueError(f"it lacks {min(lacking)}")
    if sum(info.file_size for info in inside.values()) > size:
        raise ValueError("its files are said to be larger than itself")
    return listed
