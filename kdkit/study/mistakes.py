"""Known mistakes in a learner's answer, recognised by changing the right one until it agrees.

Everything here is a fact about the numbers ("16 times too small; 16 is T**2"), never a guess about
the code; where several hold, the more specific one comes first.
"""

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

OPERATIONS = {
    "mean": Tensor.mean,
    "sum": Tensor.sum,
    "maximum": Tensor.amax,
    "minimum": Tensor.amin,
}
LOGARITHMS = {math.log(2): "2", math.log(10): "10"}
ELEMENTWISE = {
    "square": Tensor.square,
    "square root": Tensor.sqrt,
    "exponential": Tensor.exp,
    "logarithm": Tensor.log,
    "inverse": Tensor.reciprocal,
}
VAGUE = ("_values", "_sums")  # these say what is seen, and leave open why: a hint may help as well
STEPS = {  # functions of a reference that go along an axis -> their name in a sentence
    "softmax": "softmax",
    "log_softmax": "softmax",
    "logsumexp": "softmax",
    "normalize": "normalisation",
    "max": "maximum",
    "min": "minimum",
    "amax": "maximum",
    "amin": "minimum",
    "mean": "mean",
    "sum": "sum",
}


@dataclass(frozen=True)
class Case:
    """One call of an exercise: its arguments, what the learner calls them, and the library's
    function of them, which returns one tensor and is not to be handed the arguments themselves."""

    arguments: tuple
    names: list[str]
    reference: Callable[..., Tensor]

    def tensors(self) -> list[tuple[int, Tensor]]:
        """Position and value of the arguments that are tensors or arrays."""
        found = [(i, as_tensor(a)) for i, a in enumerate(self.arguments)]
        return [(i, t) for i, t in found if t is not None and t.ndim]

    def numbers(self) -> list[tuple[int, float]]:
        """Position and value of the arguments that are numbers."""
        found = [(i, a) for i, a in enumerate(self.arguments) if isinstance(a, numbers.Real)]
        return [(i, float(a)) for i, a in found if not isinstance(a, bool)]

    def answer(self, changes: dict) -> Tensor | None:
        """The library's answer with arguments, by position, replaced; None where it has none."""
        with suppress(Exception):
            given = [changes.get(i, a) for i, a in enumerate(self.arguments)]
            return self.reference(*given).double()
        return None


def as_tensor(value) -> Tensor | None:
    """A tensor or array of real numbers as a tensor on the CPU; None for anything else."""
    if isinstance(value, Tensor) and not value.is_complex():
        return value.detach().cpu().to_dense()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.tensor(value.copy())  # a view that runs backwards is no tensor
    return None


def close(got: Tensor, want: Tensor | None, rtol: float = 1e-4, atol: float = 1e-6) -> bool:
    """Equal up to rounding, in shape and values; nan equals nan. atol: of the largest value."""
    if want is None or got.shape != want.shape:
        return False
    got, want = got.double(), want.double()
    finite = want[want.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    return torch.allclose(got, want, rtol, atol * max(1.0, largest), equal_nan=True)


def find(got: Tensor, want: Tensor, case: Case) -> dict[tuple, str]:
    """What is known about a wrong answer, the most specific first: a key that is the same in every
    case that shows the mistake -> its sentence."""
    got, want = got.double(), want.double()
    found: dict[tuple, str] = {}
    looks = (_oneself, _shape, _sign, _factor, _arguments, _steps, _values, _sums)
    for look in looks:
        for key, sentence in look(got, want, case):
            found.setdefault((look.__name__, *key), sentence)
    return found


def not_finite(got: Tensor, want: Tensor) -> str:
    """Where nan or an infinite value stands that should not be there, and what brings one; else
    nothing."""
    if got.shape != want.shape:
        return ""
    bad = ~got.double().isfinite() & want.double().isfinite()
    if not bad.any():
        return ""
    first = got[tuple(bad.nonzero()[0])]
    why = (
        "0/0, inf - inf, 0 * inf (as in 0 * log 0) or the logarithm of a negative number"
        if first.isnan()
        else "the exponential of a large number, a division by 0 or the logarithm of 0"
    )
    return f"{first.item()} comes from {why}."


def axes_text(axes: tuple[int, ...]) -> str:
    """Axes as a sentence names them."""
    return f"ax{'is' if len(axes) == 1 else 'es'} {' and '.join(map(str, axes))}"


def _shape(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    """Transposed; right values in another shape; an axis that should be gone, or one that is."""
    for pair in itertools.combinations(range(got.ndim), 2):
        if close(got.transpose(*pair), want):
            yield ("transposed", *pair), f"It is transposed: exchange {axes_text(pair)}."
    if got.shape == want.shape:
        return
    if got.numel() == want.numel() and close(got.reshape(want.shape), want):
        what = "The values are right, their shape is not"
        if got.squeeze().shape == want.squeeze().shape:
            keep = "leave keepdim=True out" if got.ndim > want.ndim else "keepdim=True keeps it"
            yield ("squeeze",), f"{what}: an axis of size 1 is too many or too few; {keep}."
        yield ("reshape",), f"{what}: reshape or flatten them."
    larger, smaller = (got, want) if got.ndim > want.ndim else (want, got)
    for axes in itertools.combinations(range(larger.ndim), larger.ndim - smaller.ndim):
        if min((larger.shape[a] for a in axes), default=1) < 2:
            continue
        for names in itertools.product(OPERATIONS, repeat=len(axes)):
            value = larger
            for axis, name in reversed(list(zip(axes, names, strict=True))):
                value = OPERATIONS[name](value, axis)
            if close(value, smaller):
                over = " and ".join(
                    f"the {n} over axis {a}" for a, n in zip(axes, names, strict=True)
                )
                missing = f"{over[0].upper()}{over[1:]} {'is' if len(axes) == 1 else 'are'} missing"
                kept = f"You took {over} as well, which should be kept"
                yield (larger is got, names), f"{missing if larger is got else kept}."


def _sign(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    if close(got, -want):
        yield (), "The sign is turned round."


def _oneself(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    """All m were taken where the m - 1 others are meant: row k of the right answer does not change
    with row k of the first argument."""
    for i, z in case.tensors()[:1]:
        if z.shape != want.shape or len(z) < 2 or not z.is_floating_point():
            continue
        moved = z.clone()
        moved[0] += 1
        changed = case.answer({i: moved})
        if changed is None or not close(changed[0], want[0]):
            continue
        for name, of in OPERATIONS.items():
            everyone = of(z.double(), 0)
            alike = (want.shape, everyone.shape, (1, *everyone.shape))
            if got.shape in alike and close(got.expand(want.shape), everyone.expand(want.shape)):
                text = f"The {name} is over all {len(z)}; only the others are meant"
                yield (name,), f"{text}: leave oneself out."


def _arguments(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    """Two arguments exchanged, or a number that is not used."""
    tensors = [(i, tuple(t.shape), case.arguments[i]) for i, t in case.tensors()]
    single = [(i, (), case.arguments[i]) for i, _ in case.numbers()]
    for (i, shape, a), (j, other, b) in itertools.combinations(tensors + single, 2):
        if shape == other and close(got, case.answer({i: b, j: a})):
            names = f"{case.names[i]} and {case.names[j]}"
            yield ("order", i, j), f"The order is turned round: it is right for {names} exchanged."
    for i, value in case.numbers():
        name, usual = case.names[i], case.answer({i: type(case.arguments[i])(1)})
        if value == 1 or usual is None:
            continue
        if close(got, usual):
            yield ("unused", i), f"It is the answer for {name} = 1: {name} is not used."
        for power in (name, f"{name}**2"):
            if close(got, usual * value ** (1 if power == name else 2)):
                text = f"It is {power} times the answer for {name} = 1"
                yield ("factor", i, power), f"{text}: {name} acts as a factor alone."


class _Otherwise(TorchFunctionMode):
    """Takes one kind of the reference's steps along another axis, or over all values at once."""

    def __init__(self, step: str, axis: int | None):
        super().__init__()
        self.step, self.axis, self.right = step, axis, None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        right = args[1] if len(args) > 1 else kwargs.get("dim")
        if STEPS.get(name) != self.step or not isinstance(right, int):
            return func(*args, **kwargs)
        x, rest, right = args[0], args[2:], right % args[0].ndim
        kwargs.pop("dim", None)

        def along(value, axis):
            return func(value, axis, *rest, **kwargs) if rest else func(value, dim=axis, **kwargs)

        if self.axis is None:
            usual, flat = along(x, right), along(x.flatten(), 0)
            if isinstance(usual, tuple):  # values and positions
                return usual
            self.right = right
            return flat.view_as(usual) if flat.numel() == usual.numel() else flat.expand_as(usual)
        if right == self.axis or self.axis >= x.ndim:
            return along(x, right)
        self.right = right
        return along(x, self.axis)


def _steps(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    """A softmax, mean, sum or maximum over the wrong axis, or over all values at once."""
    deep = max((t.ndim for _, t in case.tensors()), default=0)
    for step, axis in itertools.product(dict.fromkeys(STEPS.values()), [*range(deep), None]):
        with _Otherwise(step, axis) as mode:
            answer = case.answer({})
        if mode.right is not None and close(got, answer):
            over = "all values at once" if axis is None else f"axis {axis}"
            yield (
                (step, axis is None),
                f"Your {step} is over {over}; it should be over axis {mode.right}.",
            )
    for i, j in itertools.permutations(range(deep), 2):  # the reference may not be torch's
        for turn in (Tensor.movedim, Tensor.transpose):
            turned = [(k, turn(t, i, j)) for k, t in case.tensors() if max(i, j) < t.ndim]
            answer = case.answer(
                {k: t if isinstance(case.arguments[k], Tensor) else t.numpy() for k, t in turned}
            )
            back = answer is not None and max(i, j) < answer.ndim and turn(answer, j, i)
            if close(got, answer) or (back is not False and close(got, back)):
                text = f"it is right with {axes_text((min(i, j), max(i, j)))} exchanged"
                yield ("along",), f"It goes along the wrong axis: {text}."


def _known_factors(case: Case) -> Iterator[tuple[float, tuple, str, str, str]]:
    """Numbers that an answer may be too large or too small by: value, key, name, and what to do in
    either case. The more usual ones come first."""
    needless = "Do you divide by it without need?"
    for i, value in case.numbers():
        name = case.names[i]
        yield value, (i, 1), name, f"Divide by {name}.", f"Multiply by {name}."
        yield value**2, (i, 2), f"{name}**2", f"Divide by {name}**2.", f"Multiply by {name}**2."
    for i, t in case.tensors():
        for axis, n in enumerate(t.shape):
            name = f"the size of {case.names[i]}'s axis {axis}"
            for key in (axis, axis - t.ndim):  # either may be the same in another case
                yield n, (i, key), name, "Is the mean over it missing?", needless
    for i, t in case.tensors():
        for a, b in itertools.combinations(range(t.ndim), 2):
            n, k = t.shape[a], t.shape[b]
            name = f"{n} * {k}, the sizes of {case.names[i]}'s axes {a} and {b}"
            for key in (a, a - t.ndim):
                yield n * k, (i, key, b - a), name, "Is the mean over both missing?", needless
    for i, t in case.tensors():
        for axis, n in enumerate(t.shape):
            name = f"one less than the size of {case.names[i]}'s axis {axis}"
            small = needless if n != 3 else f"{needless[:-1]}, or is a factor 2 missing?"
            for key in (axis, axis - t.ndim):
                yield n - 1, (i, key, "others"), name, "Divide by it.", small


def _factor(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    """Off by a factor that has a name, perhaps with the sign turned round as well."""
    ratio = _ratio(got, want)
    start = "It is" if ratio > 0 else "The sign is turned round, and it is"

    def is_(value: float) -> bool:
        return math.isclose(abs(ratio), abs(value), rel_tol=1e-4)

    if is_(0) or is_(1):
        return
    for value, base in LOGARITHMS.items():
        if is_(1 / value):
            yield ("log", base), f"The logarithm is to base {base}; the natural one is meant."
        if is_(value):
            yield ("ln", base), f"The logarithm is natural; the one to base {base} is meant."
    for value, key, name, divide, multiply in _known_factors(case):
        which = f"{value:g} is {name}"
        if is_(value):
            yield ("large", *key), f"{start} {value:g} times too large; {which}. {divide}"
        if value and is_(1 / value):
            yield ("small", *key), f"{start} {value:g} times too small; {which}. {multiply}"
    for i, t in case.tensors():
        n = len(t)
        for key, over, under in (("more", n, n - 1), ("less", n - 1, n)):
            if under and is_(over / under):
                text = f"{start} {over}/{under} of the right answer; {n} is the size of"
                ask = "Is one too many counted, or one too few?"
                yield (key, i), f"{text} {case.names[i]}'s axis 0. {ask}"
        for a, b in itertools.permutations(range(t.ndim), 2):
            if t.shape[b] and is_(t.shape[a] / t.shape[b]):
                text = f"{start} {t.shape[a]}/{t.shape[b]} of the right answer, the sizes of"
                yield (i, a, b), f"{text} {case.names[i]}'s axes {a} and {b}: one for the other?"
    for size, value in (("large", 2), ("small", 1 / 2)):
        if is_(value):
            yield (size,), f"{start} 2 times too {size}."


def _ratio(got: Tensor, want: Tensor) -> float:
    """By what the right answer is to be multiplied to give this one everywhere; else 0."""
    square = float(want.flatten() @ want.flatten())
    if got.shape != want.shape or not square or not math.isfinite(square):
        return 0.0
    ratio = float(got.flatten() @ want.flatten()) / square
    return ratio if close(got, ratio * want) else 0.0


def _values(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    """The right answer before or after one more function, or shifted; one of the arguments' own
    extremes everywhere."""
    for name, of in ELEMENTWISE.items():
        if close(got, of(want)):
            yield (name,), f"It is the {name} of the right answer."
        elif name in ("square", "square root") and want.unique().numel() > 2:
            if _ratio(got, of(want)):
                yield (name, "of"), f"It goes as the {name} of the right answer."
    if got.shape == want.shape and got.numel() > 1 and want.unique().numel() > 1:
        apart = (got - want).mean()
        if close(got, want + apart):
            word = "large" if apart > 0 else "small"
            yield ("shift",), f"Every value is {abs(float(apart)):.4g} too {word}."
        if ratio := _ratio(got, want):
            yield ("factor",), f"Every value is {ratio:.4g} times the right one."
    for i, t in case.tensors():
        for name, of in OPERATIONS.items():
            for axis in range(t.ndim):
                everything = of(t.double().flatten(), 0)
                if close(want, of(t.double(), axis)) and close(got, everything.expand(got.shape)):
                    text = f"It is the {name} of all values of {case.names[i]} at once"
                    yield (name, i, axis), f"{text}; it should be over axis {axis}."


def _sums(got: Tensor, want: Tensor, case: Case) -> Iterator[tuple[tuple, str]]:
    """What sums to 1, or has length 1, along one axis does so along another or nowhere."""
    if got.shape != want.shape:
        return

    def ones(x, of):
        sums = [of(x, axis) if x.shape[axis] > 1 else x * 0 for axis in range(x.ndim)]
        return {a for a, s in enumerate(sums) if close(s, torch.ones_like(s))}

    def length(x, axis):
        return x.square().sum(axis).sqrt()

    for verb, of in (("sum to 1", Tensor.sum), ("have length 1", length)):
        for axis in ones(want, of) - ones(got, of):
            text = f"The values along axis {axis} should {verb}"
            for other in ones(got, of) - ones(want, of):
                yield (verb, axis, other), f"{text}; yours do along axis {other}."
            if close(of(got.flatten(), 0), torch.ones(())):
                yield (verb, axis, "all"), f"{text}; yours do so only all together."
            yield (verb, axis), f"{text}; yours do not."
