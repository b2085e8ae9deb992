"""What of a user's own code and data goes into the id of a run, and what only into its record.

A *user's* function or class lives outside this package, outside Python's library and outside
installed packages: in a notebook or in a file of one's own. Its fingerprint is a hash of its code
as Python compiled it, so that comments and docstrings do not count, and of everything of the
user's that it uses: helpers, constants, defaults, parents, and what these use in turn. What
comes from elsewhere counts by its name, and an object also by what it holds. What a function only
fills, as a list that it appends to, counts by its type. Not seen are: what is looked up by text
(getattr, eval), environment variables, and files that are opened by another process.
"""

import copyreg
import dis
import functools
import hashlib
import importlib
import inspect
import os
import sys
import sysconfig
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import data as datasets
from .. import models
from ..methods import Method, method_class
from . import files, sources

PACKAGE = __name__.partition(".")[0]
INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def is_builtin(thing: Any) -> bool:
    """Is it part of this package?"""
    return getattr(thing, "__module__", "").partition(".")[0] == PACKAGE


def is_user_module(module_name: str | None) -> bool:
    """Is a module a user's own, neither this package's nor an installed one?"""
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
    """Sixteen hexadecimal digits that stand for a user's function or class and all it uses."""
    return hashlib.sha256(_describe(thing, {}).encode()).hexdigest()[:16]


def class_digest(cls: type) -> str:
    """A hash of the code of a method's class and of its parents below `Method`; of everything it
    uses where it is a user's. It stands in the record."""
    if is_builtin(cls):
        return _builtin_class_digest(cls)
    return fingerprint(cls)  # not cached: a helper may have been redefined


@functools.cache
def _builtin_class_digest(cls: type) -> str:
    members = [vars(c) for c in cls.__mro__[: cls.__mro__.index(Method)]]
    texts = [
        f"{name} {_code(value.__code__) if inspect.isfunction(value) else value!r}"
        for values in members
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
    inner = functools.partial(_describe, found=found)
    if isinstance(thing, tuple):
        return f"{type(thing).__name__}[{', '.join(map(inner, thing))}]"
    if id(thing) in found:
        return f"<{found[id(thing)][0]}>"
    found[id(thing)] = len(found), thing
    for kinds, describe in _KINDS.items():
        if isinstance(thing, kinds):
            return describe(thing, inner)
    if inspect.isfunction(thing) and is_user_module(thing.__module__):
        return _describe_function(thing, inner)
    if hasattr(thing, "__wrapped__") and is_user_module(getattr(thing, "__module__", "")):
        return f"{type(thing).__qualname__} of {inner(thing.__wrapped__)}"  # as of lru_cache
    if inspect.isclass(thing) and is_user_module(thing.__module__):
        skip = _NOT_CODE | ({"title"} if issubclass(thing, Method) else set())
        values = {k: v for k, v in sorted(vars(thing).items()) if k not in skip}
        parents = [c for c in thing.__bases__ if c is not object]
        return f"class({inner(values)}, {inner(parents)})"
    if inspect.ismodule(thing) and is_user_module(thing.__name__):
        return inner({k: v for k, v in vars(thing).items() if not k.startswith("__")})
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
        of = getattr(thing, "__self__", None)  # of a bound method in C, such as [1].count
        bound = "" if of is None or inspect.ismodule(of) else f" of {inner(of)}"
        return f"{getattr(thing, '__module__', '')}.{name}{bound}"
    return f"{inner(type(thing))} with {_describe_state(thing, inner)}"


def _describe_state(thing: Any, inner: Callable) -> str:
    """What an object holds, as pickle would keep it; nothing where that cannot be, as of a lock."""
    if isinstance(thing, torch.Generator):
        return inner(thing.get_state())
    reduce = copyreg.dispatch_table.get(type(thing))
    try:
        kept = reduce(thing) if reduce else thing.__reduce_ex__(4)
    except Exception:  # what objects raise here has no common type
        return inner(getattr(thing, "__dict__", {}))
    if isinstance(kept, str):
        return kept
    _, arguments, *rest = kept
    state, items, pairs = (*rest, None, None, None)[:3]
    return inner([arguments, state, list(items or ()), list(pairs or ())])


def _describe_array(thing: np.ndarray, inner: Callable) -> str:
    if thing.dtype == object:
        return inner(thing.tolist())
    raw = hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
    return f"array {thing.dtype} {thing.shape} {raw}"


# Kinds of things that are described in a way of their own. Of what is weak, only that it is there:
# a cache holds what has been asked for.
_KINDS: dict[Any, Callable[[Any, Callable], str]] = {
    torch.Tensor: lambda t, inner: inner(t.detach().cpu().numpy()),
    np.ndarray: _describe_array,
    list: lambda t, inner: f"list[{', '.join(map(inner, t))}]",
    set | frozenset: lambda t, inner: f"set[{', '.join(sorted(map(inner, t)))}]",
    weakref.WeakKeyDictionary | weakref.WeakValueDictionary | weakref.ref: lambda *_: "weak",
    Mapping: lambda t, inner: f"dict[{', '.join(f'{inner(k)}: {inner(v)}' for k, v in t.items())}]",
    staticmethod | classmethod: lambda t, inner: inner(t.__func__),
    property: lambda t, inner: f"property{inner([t.fget, t.fset])}",
    functools.cached_property: lambda t, inner: f"property{inner(t.func)}",
    types.MethodType: lambda t, inner: f"{inner(t.__func__)} of {inner(t.__self__)}",
}
# Entries of a class that say where it stands and how it is documented, not what it does.
_NOT_CODE = {
    *("__module__", "__doc__", "__qualname__", "__dict__", "__weakref__", "__annotations__"),
    *("__firstlineno__", "__static_attributes__", "__annotate__", "__annotate_func__"),
    *("__slotnames__", "_abc_impl"),  # caches of copy and of abstract classes
}


def _describe_function(function: Callable, inner: Callable) -> str:
    names, attributes, filled, imported = _names_used(function.__code__)

    def steady(name: str, value: Any) -> Any:
        """The value, or the type of a list that the function does nothing with but fill it."""
        return type(value) if name in filled and isinstance(value, list | dict | set) else value

    used = {}
    for name in sorted(names):
        value = steady(name, function.__globals__.get(name))
        if inspect.ismodule(value) and is_user_module(value.__name__):
            value = {a: getattr(value, a) for a in sorted(attributes) if hasattr(value, a)}
        used[name] = value
    for name in sorted(imported):  # inside the function: the whole module counts
        with suppress(ImportError, ValueError):
            package = function.__globals__.get("__package__") or None
            module = importlib.import_module(name, package)
            used[f"import {name}"] = module if is_user_module(module.__name__) else name
    cells = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a cell that is not filled yet
            cells.append(steady(name, cell.cell_contents))
    parts = [function.__defaults__, function.__kwdefaults__, cells, used]
    parts += [getattr(function, "__wrapped__", None), dict(getattr(function, "registry", {}))]
    return f"{_code(function.__code__)} {inner(parts)}"


_FILLING = {"add", "append", "clear", "extend", "insert"}  # and they return nothing


def _names_used(code: types.CodeType) -> tuple[set[str], set[str], set[str], set[str]]:
    """Of a function, and those inside it: the names that it reads from its module; the attributes
    that it reads from anything; names of what it only fills, as by `append`; modules it imports."""
    names, attributes, imported, codes = set(), set(), set(), [code]
    uses: dict[str, set[bool]] = {}  # name -> whether each of its uses only fills it
    while codes:
        current = codes.pop()
        codes += [constant for constant in current.co_consts if inspect.iscode(constant)]
        steps = list(dis.get_instructions(current))
        for step, after in zip(steps, [*steps[1:], steps[-1]], strict=True):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF"):
                if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                    names.add(step.argval)
                fills = after.opname.startswith(("LOAD_ATTR", "LOAD_METHOD"))
                uses.setdefault(step.argval, set()).add(fills and after.argval in _FILLING)
            elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")):
                attributes.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                imported.add(step.argval)
    return names, attributes, {name for name, only in uses.items() if only == {True}}, imported


def _code(code: types.CodeType) -> str:
    """What a function does, as Python compiled it: comments, layout, docstrings and the names of
    its variables do not count."""
    steps = list(dis.get_instructions(code))
    documents = {  # positions of the two steps that give a class inside the function its docstring
        position - back
        for position, step in enumerate(steps)
        for back in (0, 1)
        if step.opname == "STORE_NAME" and step.argval == "__doc__"
    }
    texts = [
        f"{step.opname} {step.arg if step.opname.endswith('_FAST') else _constant(step.argval)}"
        for position, step in enumerate(steps)
        if position not in documents
    ]
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return f"{arguments} {code.co_argcount} {texts}"


def _constant(value: Any) -> str:
    """What an instruction works with, in a text that is the same in every process."""
    if inspect.iscode(value):
        return _code(value)
    if isinstance(value, frozenset):
        return f"set{sorted(map(repr, value))}"
    return repr(value)


# What a run uses of the user's code and data


def identity(run) -> dict[str, str]:
    """What the id of a run needs beside its fields: fingerprints of a user's method and
    networks, and the digest of the data."""
    cls, found = method_class(run.method), {}
    if not is_builtin(cls):
        found["method"] = fingerprint(cls)
    found |= network_identity(run.student)
    digest, how = data_identity(run.data)
    if digest:
        found["data"] = f"{how}: {digest}"
    return found


def user_code(run) -> list[str]:
    """What of a run is a user's, in words: "method mine", "network tiny", "data set pets"."""
    own = [f"method {run.method}"] if not is_builtin(method_class(run.method)) else []
    own += list(network_identity(run.student))
    if not is_builtin(datasets.loader_of(run.data)):
        own.append(f"data set {run.data}")
    return own


def network_identity(student: str) -> dict[str, str]:
    """The fingerprints of a user's networks among the names of a run's students."""
    found = {}
    for name in sorted({name.strip() for name in student.split(",")}):
        builder = models.builder_of(name)
        if not is_builtin(builder):
            found[f"network {name}"] = fingerprint(builder)
    return found


def data_identity(name: str) -> tuple[str, str]:
    """(digest of the data set `name`, what it was taken of); ("", "missing") where its files are
    not here.

    Of a data set whose items are read as they are needed, which may draw, the code that makes it
    counts as well, and all that it holds.
    """
    if is_builtin(datasets.loader_of(name)) and name in sources.SETS:
        try:
            return sources.identity(name)
        except files.MissingData:  # a run may be described where its data is not
            return "", "missing"
    kept = load_user_data(name)
    return kept.digest, "contents and code" if kept.stream_digest else "contents"


@dataclass(frozen=True)
class _Loaded:
    """A user's data set in memory, and what tells whether it is still what it was."""

    data: datasets.Data
    loader_digest: str  # fingerprint of its function
    stamps: dict  # of the files it was read from
    digest: str
    stream_digest: str  # what else counts, where items are read as they are needed


_loaded: dict[str, _Loaded] = {}
_opened: list[set[str]] = []  # a set for each load under way in this process
_loading = threading.Lock()


def _forget_other_threads() -> None:
    """In a forked process only the thread that forked goes on, and nobody frees the lock."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


@functools.cache
def _watch_files() -> None:
    """From now on this process notes which files and folders are opened while data are loaded."""

    def note(event: str, args: tuple) -> None:
        if _opened and event in ("open", "os.listdir", "os.scandir"):
            if args and isinstance(args[0], str | bytes | os.PathLike):
                for paths in _opened:
                    paths.add(os.path.abspath(os.fsdecode(args[0])))

    sys.addaudithook(note)


def _is_code(path: str) -> bool:
    """Is it a part of Python, of a package, or of what a process shows of itself, and no data?"""
    places = (*INSTALLED, sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev")
    return path.endswith((".py", ".pyc")) or ".egg-info" in path or path.startswith(places)


def _stamps(paths: Iterable[str]) -> dict[str, tuple | None]:
    """What changes when a file or folder does; None for one that is not there."""
    stamps = {}
    for path in paths:
        try:
            stat = os.stat(path)
            stamps[path] = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
        except OSError:
            stamps[path] = None
    return stamps


def _paths_in(thing: Any, seen: set[int]) -> set[str]:
    """Files and folders that are named in what an object holds: libraries in C open some without
    Python's knowledge."""
    if id(thing) in seen:
        return set()
    seen.add(id(thing))
    if isinstance(thing, str | Path):
        text = str(thing)
        return {os.path.abspath(text)} if 0 < len(text) < 4096 and os.path.exists(text) else set()
    if isinstance(thing, Mapping):
        thing = list(thing.values())
    if isinstance(thing, list | tuple | set):
        return set().union(*(_paths_in(part, seen) for part in thing)) if thing else set()
    return _paths_in(dict(vars(thing)), seen) if hasattr(thing, "__dict__") else set()


def load_data(name: str) -> datasets.Data:
    """The data set of that name; a user's is the very object that its identity was taken of."""
    if is_builtin(datasets.loader_of(name)):
        return sources.load(name)
    return load_user_data(name).data


def load_user_data(name: str) -> _Loaded:
    """A user's data set. It is kept in memory until its function, what that uses, or a file or
    folder that was opened for it has changed.

    ValueError, in one line, where its function fails.
    """
    loader = datasets.loader_of(name)
    loader_digest, kept = fingerprint(loader), _loaded.get(name)
    if kept and kept.loader_digest == loader_digest and kept.stamps == _stamps(kept.stamps):
        return kept
    _watch_files()
    with _loading:
        paths: set[str] = set()
        _opened.append(paths)
        try:
            data = datasets.load(name)
            digest = data.content_digest()  # which reads every item
        except (ValueError, OSError):
            raise
        except Exception as e:
            raise ValueError(f"data set {name!r}: {type(e).__name__}: {e}") from e
        finally:
            _opened.remove(paths)
        stream_digest = ""
        if isinstance(data, datasets.Stream):
            sets = [data.x.source, data.x_test.source]
            stream_digest = fingerprint([loader, *sets])
            digest = hashlib.sha256(f"{digest} {stream_digest}".encode()).hexdigest()
            paths |= _paths_in(sets, set())
        paths = {path for path in paths if not _is_code(path)}
        _loaded[name] = _Loaded(data, loader_digest, _stamps(paths), digest, stream_digest)
    return _loaded[name]
