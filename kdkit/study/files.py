"""Data sets on disk: finding, reading, fetching and telling them apart; `sources.py` makes `Data`
of them.

Nothing but `fetch` uses the network, and no file is read in a way that could run code from it.
"""

import gzip
import hashlib
import io
import os
import pickle
import struct
import warnings
import zlib
from contextlib import nullcontext, redirect_stderr
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .project import home, place

GLYPHS = Path(__file__).parents[1] / "assets" / "glyphs.npz"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Up to so many bytes in all, the contents of a folder's files are read for its digest.
MAX_HASHED_BYTES = 10**9


class _Family(NamedTuple):
    needed: tuple[str, ...]  # files (perhaps with .gz) or folders
    places: tuple[str, ...]  # where they may lie under a root


FAMILIES = {
    "fashion_mnist": _Family(IDX, (".", "fashion-mnist", "FashionMNIST/raw")),
    "cifar10": _Family(
        (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"), ("cifar-10-batches-py", ".")
    ),
    "cifar100": _Family(("train", "test"), ("cifar-100-python", ".")),
    "imagenet": _Family(("train", "val"), ("imagenet", ".")),
}


class MissingData(ValueError):
    """A data set is not on this machine; the one-line message says how to get it."""


def unpacked(path: Path) -> bytes:
    """The content of a file, gzipped or not. OSError, EOFError or zlib.error if it is damaged."""
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file, gzipped or not. ValueError if it is damaged."""
    try:
        raw = unpacked(path)
        zero, kind, dims = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
        if zero or kind != 8:  # 8: unsigned byte, the only kind these sets use
            raise ValueError(f"header {raw[:4].hex()}, allowed is 000008..")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as e:
        raise ValueError(f"{path}: not a whole idx file of bytes ({e})") from None


class _Bytes:
    """Stands in for numpy's array in a pickle: numpy's own __setstate__ trusts what it is given."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, _, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # text: written by Python 2
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Kind:
    """Stands in for numpy's dtype; only bytes are allowed."""

    def __init__(self, name: str, *_: Any):
        if name != "u1":
            raise pickle.UnpicklingError(f"array of {name}, allowed is u1")

    def __setstate__(self, state: tuple) -> None:
        pass  # byte order and the like: a byte has none


def _from_buffer(raw: bytes, kind: _Kind, shape: tuple, order: str) -> _Bytes:
    array = _Bytes()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


_GLOBALS = {  # every name a CIFAR file may hold, and what it gets instead of an import
    "numpy.ndarray": lambda: None,
    "numpy.dtype": lambda *a: _Kind(*a),
    "numpy._core.multiarray._reconstruct": lambda *_: _Bytes(),
    "numpy._core.numeric._frombuffer": lambda *a: _from_buffer(*a),  # pickle protocol 5
    # Bytes, as Python 3 writes them in pickle protocol 2.
    "_codecs.encode": lambda text, code: text.encode({"latin1": "latin1"}[code]),
}


class _Unpickler(pickle.Unpickler):
    """Reads byte arrays, lists, dicts, numbers and text; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        seen = f"{module}.{name}"
        known = seen.replace("numpy.core.", "numpy._core.")  # its name before NumPy 2
        if known not in _GLOBALS:
            raise pickle.UnpicklingError(f"asks for {seen}, allowed are plain arrays of bytes")
        return _GLOBALS[known]


def _unpickle(path: Path, md5: str) -> dict:
    """A CIFAR file's dict, read without running anything; warns if it is not the original."""
    raw = path.read_bytes()
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="latin1").load()
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:  # what damaged pickles raise
        raise ValueError(f"{path}: refused, not a CIFAR file ({e})") from None
    if type(content) is not dict:
        raise ValueError(f"{path}: holds a {type(content).__name__}, a CIFAR file holds a dict")
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != md5:
        warnings.warn(f"{path} is not the published file (its MD5 differs)", stacklevel=2)
    return content


def read_cifar(family: str, folder: Path, classes: int) -> tuple:
    """x (N, 3, 32, 32) uint8, y (N,) int64, the same of the test set, and the class names.

    folder holds the files of CIFAR's python version. ValueError if one is damaged or asks to run
    something; a warning where one is sound but not the published file.
    """
    tv, parts = torchvision_set(family), []
    for files in (tv.train_list, tv.test_list):
        images, labels = [], []
        for file, md5 in files:
            content = _unpickle(folder / file, md5)
            x = getattr(content.get("data"), "value", np.empty(0, np.uint8))
            y = np.asarray(content.get("labels", content.get("fine_labels", "absent")))
            if x.shape[1:] != (3072,) or y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
                raise ValueError(
                    f"{folder / file}: data {x.shape} with labels {y.shape} {y.dtype}"
                    "; allowed are (n, 3072) bytes with n whole numbers"
                )
            if len(y) and not 0 <= y.min() <= y.max() < classes:
                raise ValueError(
                    f"{folder / file}: labels {y.min()} to {y.max()}, allowed are "
                    f"0 to {classes - 1}"
                )
            images.append(x.reshape(-1, 3, 32, 32))
            labels.append(y.astype(np.int64))
        parts += [torch.from_numpy(np.concatenate(v)) for v in (images, labels)]
    meta, names = folder / tv.meta["filename"], list(map(str, range(classes)))
    if meta.exists():
        names = _unpickle(meta, tv.meta["md5"]).get(tv.meta["key"])
    if type(names) is not list or len(names) != classes:
        raise ValueError(f"{meta}: allowed is a list of {classes} class names")
    return *parts, tuple(map(str, names))


def read_fashion(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (N, 1, 28, 28) uint8, y (N,) int64 and the same of the test set, from four idx files.

    The files may be gzipped; gzip's checksum then finds damage. ValueError if a file is damaged.
    """
    paths = [next(p for p in (folder / f"{f}.gz", folder / f) if p.exists()) for f in IDX]
    x, y, x_test, y_test = (torch.from_numpy(read_idx(p)) for p in paths)
    for a, b in ((x, y), (x_test, y_test)):
        if a.shape != (len(b), 28, 28) or b.ndim != 1 or b.numel() and b.max() > 9:
            raise ValueError(
                f"{folder}: images {tuple(a.shape)} with labels {tuple(b.shape)}; "
                "allowed are (n, 28, 28) with (n,) of 0 to 9"
            )
    return x[:, None], y.long(), x_test[:, None], y_test.long()


def torchvision_set(family: str) -> Any:
    """torchvision's class, for its list of files, addresses, checksums; it loads nothing here."""
    import torchvision.datasets as tv  # here, because `import kdkit` should not wait for it

    known = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100, "fashion_mnist": tv.FashionMNIST}
    return known[family]


def default_root() -> Path:
    """$KDKIT_DATA, else `data` in the project."""
    return place("KDKIT_DATA", "data")


def find(family: str, root: str | os.PathLike | None) -> Path:
    """The folder that holds a family's files: under root alone if given. Errors: MissingData.

    Else under $KDKIT_DATA, the project's `data` and, for Fashion-MNIST, where Debian installs it.
    The glyphs' one file is in the package.
    """
    if family == "glyphs":
        return GLYPHS
    needed, subs = FAMILIES[family]
    roots = [Path(root).expanduser()] if root else [default_root(), home() / "data"]
    folders = [folder / sub for folder in dict.fromkeys(roots) for sub in subs]
    folders += [SYSTEM] if family == "fashion_mnist" and not root else []
    for folder in folders:
        if all(_there(folder, name).exists() for name in needed):
            return folder
    get = (
        "put train/CLASS/*.JPEG and val/CLASS/*.JPEG there by hand"
        if family == "imagenet"
        else f"get it with `python -m kdkit data {family}`"
    )
    raise MissingData(
        f"{family}: looked for {', '.join(needed)} in "
        f"{', '.join(str(p) for p in folders)}; {get}, or set KDKIT_DATA"
    )


def _there(folder: Path, name: str) -> Path:
    """A needed file or folder, gzipped where there is such a file."""
    packed = folder / f"{name}.gz"
    return packed if packed.exists() else folder / name


@lru_cache(maxsize=100_000)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file's unpacked content; read again when its size or time of change differ."""
    try:
        return hashlib.sha256(unpacked(path)).hexdigest()
    except (OSError, EOFError, zlib.error) as e:
        raise ValueError(f"{path}: cannot be read whole ({e})") from None


def identity(family: str, folder: Path) -> tuple[str, str]:
    """(SHA-256, what it is of) for the images and labels of a family in its folder.

    "contents": names and unpacked contents of its files. "names and sizes": of those alone, where
    a family is folders of images with more than MAX_HASHED_BYTES in all. Hidden files do not
    count. ValueError: a file cannot be read whole.
    """
    found, in_folders = {}, False
    for name in FAMILIES[family].needed:
        path = _there(folder, name)
        found[name] = path
        if path.is_dir():
            in_folders = True
            del found[name]
            for parent, _, names in os.walk(path, followlinks=True):
                paths = (Path(parent, file) for file in names if not file.startswith("."))
                found |= {p.relative_to(folder).as_posix(): p for p in paths}
    facts = {name: path.stat() for name, path in sorted(found.items())}
    if in_folders and sum(fact.st_size for fact in facts.values()) > MAX_HASHED_BYTES:
        how, described = "names and sizes", [(name, fact.st_size) for name, fact in facts.items()]
    else:
        how, described = (
            "contents",
            [
                (name, _sha256(found[name], fact.st_size, fact.st_mtime_ns))
                for name, fact in facts.items()
            ],
        )
    return hashlib.sha256(repr(described).encode()).hexdigest(), how


def fetch(family: str, root: str | os.PathLike | None, progress: bool) -> Path:
    """What `sources.download` says, for a family of files."""
    try:
        return find(family, root)
    except MissingData:
        if family == "imagenet":
            raise
    from torchvision.datasets import utils

    tv = torchvision_set(family)
    root = Path(root).expanduser() if root else default_root()
    if family == "fashion_mnist":
        parts = [(tv.mirrors[0] + file, "FashionMNIST/raw", md5) for file, md5 in tv.resources]
    else:
        parts = [(tv.url, ".", tv.tgz_md5)]
    with nullcontext() if progress else redirect_stderr(io.StringIO()):
        for url, sub, md5 in parts:  # not the data set's class: that one would unpickle what came
            utils.download_and_extract_archive(url, root / sub, md5=md5)
    return find(family, root)
