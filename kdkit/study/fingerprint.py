"""What of a learner's own code and data goes into the id of a run, and what only into its record.

A *learner's* function or class lives outside this package, outside Python's library and outside
installed packages: in a notebook or in a file of one's own. Its fingerprint is a hash of its code
as Python compiled it, so that comments and docstrings do not count, and of everything of the
learner's that it uses: helpers, constants, defaults, parents, and what these use in turn. What
comes from elsewhere counts by its name alone, and a list that a function appends to by its type.
"""

import dis
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import data as datasets
from .. import models
from ..methods import Method, method_class
from . import files, sources

PACKAGE = __name__.partition(".")[0]
INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def is_builtin(thing: Any) -> bool:
    """Is it part of this package?"""
    return getattr(thing, "__module__", "").partition(".")[0] == PACKAGE


def is_learners(module_name: str | None) -> bool:
    """Is a module a learner's own, neither this package's nor an installed one?"""
    name = module_name or ""
    if name.partition(".")[0] == PACKAGE:
        return False
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or name == "__main__":
        return bool(name)
    if file is None:  # made in memory, as by exec; Python's own are listed
        return name.partition(".")[0] not in sys.stdlib_module_names
    return not any(file.startswith(folder + os.sep) for folder in INSTALLED) and not {
        "site-packages",
        "dist-packages",
    }.intersection(Path(file).parts)


def fingerprint(thing: Any) -> str:
    """Sixteen hexadecimal digits that stand for a learner's function or class and all it uses."""
    return hashlib.sha256(_describe(thing, {}).encode()).hexdigest()[:16]


def class_digest(cls: type) -> str:
    """A hash of the code of a method's class and of its parents below `Method`; of everything it
    uses where it is a learner's. It stands in the record."""
    return _own_digest(cls) if is_builtin(cls) else fingerprint(cls)  # a helper may be new by now


@functools.cache
def _own_digest(cls: type) -> str:
    own = [vars(c) for c in cls.__mro__[: cls.__mro__.index(Method)]]
    texts = [
        f"{name} {_code(value.__code__) if inspect.isfunction(value) else value!r}"
        for values in own
        for name, value in sorted(values.items())
        if inspect.isfunction(value) or isinstance(value, int | float | str | tuple | dict)
        if name not in _NOT_CODE
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _describe(thing: Any, found: dict[int, tuple]) -> str:
    """A text that changes when `thing` does.

    found: what is described already, id -> (its number, itself, so that no id is used twice).
    """
    plain = bool | int | float | complex | str | bytes | range | Path | np.generic
    if thing is None or isinstance(thing, plain | torch.dtype | torch.device):
        return repr(thing)
    if id(thing) in found:
        return f"<{found[id(thing)][0]}>"
    found[id(thing)] = len(found), thing
    inner = functools.partial(_describe, found=found)
    if isinstance(thing, torch.Tensor):
        thing = thing.detach().cpu().numpy()
    if isinstance(thing, np.ndarray):
        raw = np.ascontiguousarray(thing).tobytes()
        return f"array {thing.dtype} {thing.shape} {hashlib.sha256(raw).hexdigest()}"
    if isinstance(thing, list | tuple):
        return f"{type(thing).__name__}[{', '.join(map(inner, thing))}]"
    if isinstance(thing, set | frozenset):
        return f"set[{', '.join(sorted(map(inner, thing)))}]"
    if isinstance(thing, dict):
        return f"dict[{', '.join(f'{inner(k)}: {inner(v)}' for k, v in thing.items())}]"
    if isinstance(thing, functools.partial):
        return f"partial({inner(thing.func)}, {inner(thing.args)}, {inner(thing.keywords)})"
    if isinstance(thing, staticmethod | classmethod):
        return inner(thing.__func__)
    if isinstance(thing, property):
        return f"property({inner(thing.fget)}, {inner(thing.fset)})"
    if isinstance(thing, types.MethodType):
        return f"{inner(thing.__func__)} of {inner(thing.__self__)}"
    if inspect.isfunction(thing) and is_learners(thing.__module__):
        return _describe_function(thing, inner)
    if inspect.isclass(thing) and is_learners(thing.__module__):
        values = {k: v for k, v in sorted(vars(thing).items()) if k not in _NOT_CODE}
        parents = [c for c in thing.__bases__ if c is not object]
        return f"class({inner(values)}, {inner(parents)})"
    if isinstance(thing, nn.Module):
        return f"{inner(type(thing))} with {inner(dict(thing.state_dict()))}"
    if is_learners(type(thing).__module__):
        return f"{inner(type(thing))} with {inner(getattr(thing, '__dict__', {}))}"
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    return f"{getattr(thing, '__module__', '')}.{name or type(thing).__qualname__}"


# Entries of a class that say where it stands and how it is documented, not what it does.
_NOT_CODE = {
    *("__module__", "__doc__", "__qualname__", "__dict__", "__weakref__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__"),  # from Python 3.13 on
    *("__annotate_func__", "__annotations_cache__"),  # from Python 3.14 on
}


def _describe_function(function: Callable, inner: Callable) -> str:
    used, (names, filled) = {}, _names_used(function.__code__)

    def steady(name: str, value: Any) -> Any:
        """The value, or the type of a list that a run fills."""
        return type(value) if name in filled and isinstance(value, list | dict | set) else value

    for name, attributes in sorted(names.items()):
        value = steady(name, function.__globals__.get(name))
        if inspect.ismodule(value) and is_learners(value.__name__):
            value = {a: getattr(value, a) for a in sorted(attributes) if hasattr(value, a)}
        used[name] = value
    cells = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a cell that is not filled yet
            cells.append(steady(name, cell.cell_contents))
    parts = [function.__defaults__, function.__kwdefaults__, cells, used]
    parts.append(getattr(function, "__wrapped__", None))
    return f"{_code(function.__code__)} {inner(parts)}"


_FILLING = {"add", "append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}


def _names_used(code: types.CodeType) -> tuple[dict[str, set[str]], set[str]]:
    """(names that a function, and those inside it, read from its module -> attributes that the
    function reads from anything; names of what it fills, as by `append`)."""
    attributes: set[str] = set()
    names, filled, codes = {}, set(), [code]
    while codes:
        current, before = codes.pop(), None
        codes += [constant for constant in current.co_consts if inspect.iscode(constant)]
        for instruction in dis.get_instructions(current):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                names[instruction.argval] = attributes
            elif instruction.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
                attributes.add(instruction.argval)
                if instruction.argval in _FILLING and isinstance(before.argval, str):
                    filled.add(before.argval)
            before = instruction
    return names, filled


def _code(code: types.CodeType) -> str:
    """What a function does, as Python compiled it: comments, layout and docstring do not count."""
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    steps = [f"{i.opname} {_constant(i.argval)}" for i in dis.get_instructions(code)]
    return f"{arguments} {code.co_argcount} {steps}"


def _constant(value: Any) -> str:
    """What an instruction works with, in a text that is the same in every process."""
    if inspect.iscode(value):
        return _code(value)
    if isinstance(value, frozenset):
        return f"set{sorted(map(repr, value))}"
    return repr(value)


# The data


def identity(run) -> dict[str, str]:
    """What the id of a run needs beside its fields: fingerprints of a learner's method and
    networks, and the identity of data that is not the package's own. Empty for the package's."""
    cls, found = method_class(run.method), {}
    if not is_builtin(cls):
        found["method"] = fingerprint(cls)
    for name in sorted({name.strip() for name in run.student.split(",")}):
        builder = models.builder_of(name)
        if builder is not None and not is_builtin(builder):
            found[f"network {name}"] = fingerprint(builder)
    digest, how = data_identity(run.data)
    if digest:
        found["data"] = f"{how}: {digest}"
    return found


def data_identity(name: str) -> tuple[str, str]:
    """(digest of the data set `name`, what it was taken of); ("", ...) for the package's own."""
    if is_builtin(datasets.loader_of(name)) and name in sources.SETS:
        try:
            return sources.identity(name)
        except files.MissingData:  # a run may be described where its data is not
            return "", "missing"
    return load_own(name).content_digest(), "contents"


_opened = threading.local()
_loaded: dict[str, tuple[str, Any, dict]] = {}  # name -> fingerprint, data, files it was read from


@functools.cache
def _watch_files() -> None:
    """From now on this process notes which files are opened while a data set is being loaded."""

    def note(event: str, args: tuple) -> None:
        if event == "open" and getattr(_opened, "paths", None) is not None:
            if isinstance(args[0], str | bytes | os.PathLike):
                _opened.paths.add(os.fsdecode(args[0]))

    sys.addaudithook(note)


def _stamps(paths: Any) -> dict[str, tuple[int, int] | None]:
    """Size and time of change of files; None for one that is not there."""
    stamps = {}
    for path in paths:
        try:
            stat = os.stat(path)
            stamps[path] = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            stamps[path] = None
    return stamps


def load_data(name: str) -> Any:
    """The data set of that name; a learner's is the very object that its identity was taken of."""
    return sources.load(name) if is_builtin(datasets.loader_of(name)) else load_own(name)


def load_own(name: str) -> Any:
    """A learner's data set. It is kept in memory until its function, what that uses, or a file that
    it opened has changed."""
    loader = datasets.loader_of(name)
    code, kept = fingerprint(loader), _loaded.get(name)
    if kept and kept[0] == code and kept[2] == _stamps(kept[2]):
        return kept[1]
    _watch_files()
    _opened.paths = set()
    try:
        loaded = datasets.load(name)
    finally:
        paths, _opened.paths = _opened.paths, None
    _loaded[name] = code, loaded, _stamps(p for p in paths if not p.endswith((".py", ".pyc")))
    return loaded
