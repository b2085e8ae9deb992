"""Checks of what a learner wrote: a function, a trained run, a number. They print one result,
return nothing, and never raise on a learner's answer."""

import copy
import inspect
import math
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..methods import method_class
from . import mistakes
from .mistakes import Case, as_tensor, close
from .plans import label, plan, unusual
from .store import Record


@dataclass(frozen=True)
class _Wrong:
    """What differs in one case; the known mistakes that explain it; what else may help. comparable:
    did it give numbers, so that a mistake of another case would show here too?"""

    text: str
    known: dict[tuple, str] = field(default_factory=dict)
    note: str = ""
    comparable: bool = False


_NOT_DONE = _Wrong("None or an ellipsis was returned")


def check(yours: Callable, reference: Callable, cases: list[tuple], hint: str = "") -> None:
    """Compare a learner's function with the library's on `cases`, tuples of arguments.

    Answers may be tensors, arrays, numbers, and lists or tuples of them. Both functions get copies
    of the arguments and the same random numbers. Prints "right", "not done yet" (the answer is None
    or an ellipsis), or the first case that differs with got and expected, and then the mistake
    where it is a known one, else the hint. ValueError without a case.
    """
    if (
        not isinstance(cases, list)
        or not cases
        or not all(isinstance(arguments, tuple) for arguments in cases)
    ):
        raise ValueError(f"cases={cases!r}: a list of tuples of arguments, at least one")
    if yours is None or yours is ...:
        print("not done yet: write the function, then run this cell again.")
        return
    if not callable(yours):
        print(f"a function is expected; this is {_text(yours)}.")
        return
    results = [_compare(yours, reference, arguments) for arguments in cases]
    wrong = [(i, result) for i, result in enumerate(results) if result]
    if not wrong:
        print(f"right: the same as the library, {len(cases)} of {len(cases)} cases")
        return
    i, first = wrong[0]
    if first is _NOT_DONE:
        print("not done yet: nothing is returned. Write the body, then run this cell again.")
        return
    known = first.known
    for _, other in wrong[1:]:  # an accident of the first case does not show in the others
        if other.comparable:
            known = {key: text for key, text in known.items() if key in other.known}
    key, advice = next(iter(known.items()), ((), first.note))
    if hint and (not key or key[0] in mistakes.VAGUE):
        advice = f"{advice} Hint: {hint}".strip()
    names = _names(yours, len(cases[i]))
    given = ", ".join(f"{name} {_text(a)}" for name, a in zip(names, cases[i], strict=True))
    print(f"case {i + 1} of {len(cases)}, {given}: {first.text}")
    if advice:
        print(advice)


def _compare(yours: Callable, reference: Callable, arguments: tuple) -> _Wrong | None:
    """What is wrong with the learner's answer in one case; None where it is right."""
    wanted = _parts(_call(reference, arguments))
    try:
        answer = _call(yours, arguments)
    except NotImplementedError:
        return _NOT_DONE
    except Exception as e:  # a learner's mistake is an answer, not a crash of the notebook
        return _Wrong(_error(e, yours))
    if answer is None or answer is ...:
        return _NOT_DONE
    try:
        parts = _parts(answer)
    except TypeError as e:
        return _Wrong(f"got {e}, expected {', '.join(map(_numbers, wanted))}.")
    if len(parts) == 1 < len(wanted) and parts[0].shape[:1] == (len(wanted),):
        parts = list(parts[0])
    if len(parts) != len(wanted):
        shapes = [", ".join(str(tuple(p.shape)) for p in side) for side in (parts, wanted)]
        return _Wrong(f"got {len(parts)} value(s) {shapes[0]}, expected {len(wanted)} {shapes[1]}.")
    for i, (got, want) in enumerate(zip(parts, wanted, strict=True)):
        coarse = 2 * torch.finfo(got.dtype).eps if got.is_floating_point() else 0.0
        exact = coarse < 1e-5  # not bfloat16
        if not (close(got, want) if exact else close(got, want, coarse, coarse)):
            case = Case(
                arguments,
                _names(yours, len(arguments)),
                lambda *changed, i=i: _parts(_call(reference, changed))[i],
            )
            which = f"part {i + 1}: " if len(wanted) > 1 else ""
            note = mistakes.not_finite(got, want)
            known = {} if note or not got.numel() else mistakes.find(got, want, case)
            finite = bool(got.double().isfinite().all())
            return _Wrong(which + _difference(got, want), known, note, finite)
    return None


def _call(function: Callable, arguments: tuple) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return function(*map(_copied, arguments))


def _copied(value: Any) -> Any:
    """A copy that an answer in place does not reach beyond."""
    if isinstance(value, Tensor):  # deepcopy refuses one with a history of gradients
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return copy.deepcopy(value)


def _parts(value: Any) -> list[Tensor]:
    """An answer as tensors: one, also where a list of equal shapes can be stacked to one, or those
    of a list. TypeError, with a name of what it is instead, for what is no number."""
    if isinstance(value, tuple) and hasattr(value, "indices"):  # of torch.max along an axis
        raise TypeError("values and their positions (take .values)")
    if isinstance(value, list | tuple):
        parts = [part for item in value for part in _parts(item)]
        if len(parts) == len(value) and len({part.shape for part in parts}) == 1:
            return [torch.stack([part.double() for part in parts])]
        return parts
    if isinstance(value, Real):
        return [torch.tensor(float(value), dtype=torch.float64)]
    tensor = as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    if tensor is None:
        raise TypeError(
            f"values of type {value.dtype}" if hasattr(value, "dtype") else _text(value)
        )
    return [tensor]


def _names(function: Callable, count: int) -> list[str]:
    """What a function calls its first arguments."""
    try:
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind != p.VAR_POSITIONAL][:count]
    except (TypeError, ValueError):
        names = []
    return names + [f"argument {i + 1}" for i in range(len(names), count)]


def _error(error: Exception, yours: Callable) -> str:
    """An error in a learner's function, with their line of code."""
    code = getattr(inspect.unwrap(yours), "__code__", None)
    lines = [
        frame.line
        for frame in traceback.extract_tb(error.__traceback__)
        if code and frame.filename == code.co_filename and frame.line
    ]
    text = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
    return f"{text}, in your line `{lines[-1]}`" if lines else text


def _text(value: Any) -> str:
    """An argument or an odd answer, in a few letters."""
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return str(tuple(value.shape))
    if isinstance(value, Real | Tensor | np.ndarray) and not isinstance(value, bool):
        return f"{float(value):g}"
    if isinstance(value, str | bool):
        return textwrap.shorten(repr(value), 40)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def _numbers(values: Tensor) -> str:
    """The shape and the first few values, or the one there is."""
    if not values.ndim:
        return f"{values.item() + 0.0:.4g}"
    few = ", ".join(f"{v + 0.0:.4g}" for v in values.flatten()[:3].tolist())
    return f"shape {tuple(values.shape)}: {few}{', ...' if values.numel() > 3 else ''}"


def _difference(got: Tensor, want: Tensor) -> str:
    """Got and expected: of two shapes the first values, else where they are furthest apart."""
    if got.shape != want.shape:
        return f"got {_numbers(got)}; expected {_numbers(want)}."
    got, want = got.double(), want.double()
    apart = torch.isclose(got, want, 1e-4, 1e-6, equal_nan=True).logical_not()
    distance = (got - want).abs().nan_to_num(math.inf, math.inf).where(apart, -1.0)
    place = tuple(n.item() for n in torch.unravel_index(distance.argmax(), got.shape))
    pair = [f"{side[place].item() + 0.0:.4g}" for side in (got, want)]
    if pair[0] == pair[1]:
        pair = [f"{side[place].item():.9g}" for side in (got, want)]
    if not got.ndim:
        return f"got {pair[0]}, expected {pair[1]}."
    return (
        f"got {pair[0]} at {list(place)}, expected {pair[1]}; "
        f"{int(apart.sum())} of {got.numel()} values differ."
    )


def check_run(record: Record | list[Record], **fields) -> None:
    """Check that a learner trained the run that an exercise asks for: `fields` with these values.

    A field at its default counts as given, and any seed will do unless one is asked for; the
    method's other fields must be as usual. record: a finished run, or a list as `lab.all` gives.
    """
    if record is None or record is ...:
        print("not done yet: train the run with lab.get, then run this cell again.")
        return
    records = list(record) if isinstance(record, list | tuple) and record else [record]
    for each in records:
        if not isinstance(each, Record):
            print(f"a finished run is expected, as lab.get gives it; this is {_text(each)}.")
            return
        try:
            if why := _unlike(each, fields):
                print(f"{label(each.run)}, run {each.id}: {why}.")
                return
        except ValueError as e:  # such as a method whose cell was not run
            print(f"run {each.id}: {e}")
            return
    accuracies = ", ".join(f"{each.result['top1_deployed']:.2f}" for each in records)
    ids = ", ".join(each.id for each in records)
    print(f"right: {label(records[0].run)}, {accuracies} % of the test images (run {ids})")


def _unlike(record: Record, fields: dict) -> str:
    """How a run differs from the one that is asked for."""
    run = record.run
    method = method_class(fields.get("method", run.method)).name
    if run.method != method:
        return f"method={method!r} is asked for, and this is {run.method!r}"
    seen, wanted = plan(run), plan(run.replace(**fields))
    for name in fields:
        a, b = (getattr(p.run, name, p.method.values().get(name)) for p in (seen, wanted))
        if a != b:
            return f"{name}={b!r} is asked for, and this run has {name}={a!r}"
    changed = {k: v for k, v in unusual(run).items() if k in seen.method.values()}
    for name, value in changed.items():
        if name not in fields:
            return f"{name}={value!r} should be left at its default"
    return ""


def check_value(
    answer: float, wanted: float, unit: str = "", tolerance: float | None = None
) -> None:
    """Check a number that a learner computed or read off, without giving the right one away.

    unit: of both; "%" and "points" are told from shares of 1. tolerance: how far off is right, in
    the same unit; by default a hundredth of the right number.
    """
    if answer is None or answer is ...:
        print("not done yet: put your number there, then run this cell again.")
        return
    try:
        (part,) = _parts(None if isinstance(answer, bool) else answer)
        value = part.double().item()
    except (TypeError, ValueError, RuntimeError):
        print(f"one number is expected; this is {_text(answer)}.")
        return
    near = abs(wanted) / 100 + 1e-9 if tolerance is None else tolerance
    given, percent = f"{value:g} {unit}".strip(), unit in ("%", "points")

    def is_(number: float) -> bool:
        return abs(number - wanted) <= near

    if is_(value):
        print(f"right: {given}")
    elif not math.isfinite(value):
        print(f"{given} is no number: is there a division by 0, or a logarithm of it?")
    elif is_(-value):
        print(f"{given} has the wrong sign: which of the two is subtracted?")
    elif is_(100 * value):
        asked = "percent is asked for" if unit == "%" else f"{unit} are asked for"
        what = f"a share of 1, and {asked}" if percent else "100 times too small"
        print(f"{given} is {what}: multiply by 100.")
    elif is_(value / 100):
        what = "100 times too large" if percent else "percent, and a share of 1 is asked for"
        print(f"{given} is {what}: divide by 100.")
    elif unit == "%" and is_(100 - value):
        print(f"{given} is what is left to 100 %: is it an error, or an accuracy?")
    elif value * wanted < 0:
        print(f"{given} has the wrong sign.")
    else:
        print(f"{given} is too {'large' if value > wanted else 'small'}.")
