"""What a field is: type, bounds, step, unit and description, read off its annotation.

    class KD(Method):
        T: Annotated[float, Field(0.01, 1000, step=0.5), "temperature"] = 4.0

Validation, the command line's help and the widgets' knobs all read these annotations.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from torch import nn


@dataclass(frozen=True)
class Field:
    """A field's bounds (both included, either may be left out), step and unit, and whether it is
    worth a knob.

    `fields` adds the rest: name, type without annotations, default, and the description, which is
    the text beside the bounds in the annotation.
    """

    low: float | None = None
    high: float | None = None
    step: float | None = None
    unit: str = ""
    knob: bool = True
    name: str = ""
    kind: Any = None
    default: Any = None
    description: str = ""

    @property
    def options(self) -> tuple:
        """The allowed values of a field that is a choice between names; else ()."""
        kinds = [k for k in (self.kind, *get_args(self.kind)) if get_origin(k) is Literal]
        return get_args(kinds[0]) if kinds else ()

    def parse(self, value: Any) -> Any:
        """`value`, perhaps text, as the field's type and within its bounds.

        Raises ValueError that says what was seen and what is allowed.
        """
        if get_origin(self.kind) in (Union, types.UnionType):  # names, or a function
            if callable(value):
                return value
            return choose(value, self.options, self.name)
        value = _convert(self.name, value, self.kind)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                self._check_bounds(number, value)
        return value

    def _check_bounds(self, number: float, value: Any) -> None:
        if self.low is not None and number < self.low:
            raise ValueError(f"{self.name}={value!r}: must be at least {self.low:g}")
        if self.high is not None and number > self.high:
            raise ValueError(f"{self.name}={value!r}: must be at most {self.high:g}")


@functools.cache
def fields(cls: type) -> dict[str, Field]:
    """The annotated fields of a class and its parents, by name, in the order of definition.

    ClassVar annotations are left out, and so are those of `nn.Module`.
    """
    parents = [c for c in reversed(cls.__mro__) if not issubclass(nn.Module, c)]
    names = {name: None for c in parents for name in c.__dict__.get("__annotations__", {})}
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        name: _field(name, hints[name], getattr(cls, name, None))
        for name in names
        if get_origin(hints[name]) is not ClassVar
    }


def _field(name: str, annotation: Any, default: Any) -> Field:
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    bounds = [note for note in notes if isinstance(note, Field)]
    texts = [note for note in notes if isinstance(note, str)]
    return dataclasses.replace(
        bounds[-1] if bounds else Field(),
        name=name,
        kind=kind,
        default=default,
        description=texts[-1] if texts else "",
    )


def _convert(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return choose(value, get_args(kind), name)
    if get_origin(kind) is tuple:
        if isinstance(value, str):
            value = [v for v in value.strip("()[] ").split(",") if v.strip()]
        item = get_args(kind)[0]
        return tuple(v if get_origin(item) else _convert(name, v, item) for v in value)
    text = str(value).strip()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            return _parse_int(text)
        if kind is float and math.isfinite(float(text)):
            return float(text)
        if kind is str:
            return value if isinstance(value, str) else text
    except (KeyError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name}={value!r}: must be a {getattr(kind, '__name__', kind)}")


def _parse_int(text: str) -> int:
    """An exact whole number; "1e3" and "4.0" are whole, and exact up to 2**53."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if number != int(number) or abs(number) > 2**53:
            raise
        return int(number)


def choose(value: Any, known: Iterable, what: str) -> Any:
    """`value` if it is in `known`, else a ValueError with the nearest valid names."""
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), map(str, known), 3, 0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown {what} {value!r}: {hint}known: {', '.join(map(str, known))}")
    return value


class Registry(dict):
    """Names of one kind of thing that people add: methods, networks, data sets, figures, metrics.

    A name that is defined again replaces the earlier one, as when a notebook's cell is run again.
    """

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def find(self, name: str) -> Any:
        """What is registered under `name`; ValueError with the nearest names if nothing is."""
        return self[choose(name, self, self.what)]

    def decorator(self, *names: str) -> Callable:
        """Decorator that registers a function or class under `names` and returns it unchanged."""

        def register(thing):
            self.update(dict.fromkeys(names, thing))
            return thing

        return register
