"""What every method is: fields, what it needs, and named loss terms that the trainer sums."""

import ast
import dis
import functools
import hashlib
import inspect
import linecache
import operator
import sys
import textwrap
import types
import typing
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..config import Run, choose, typed
from ..losses import rampup
from ..models import Out

Positive = Annotated[float, (">", 0)]
Weight = Annotated[float, (">=", 0)]
Group = Annotated[int, (">=", 2)]  # m, the number of students


class Step(NamedTuple):
    """What a method may know of the step besides the batch."""

    index: Tensor  # (B,) positions of the images in the training set
    epoch: int  # from 0
    epochs: int
    generator: torch.Generator  # the run's own, on the CPU, seeded for this step


class Probe(NamedTuple):
    """What `build` sees: outputs for a probe batch, so that shapes are never typed anywhere."""

    s: Out
    t: Out | None
    K: int  # classes
    labels: Tensor  # (N,) of the training set
    teacher: nn.Module | None = None  # its network


class Hooks(nn.Module):
    """What only some methods ask of the loop."""

    ramped: ClassVar[tuple[str, ...]] = ()  # terms under the ramp-up
    views: ClassVar[bool] = False  # does each student see an augmentation of its own?
    presets: ClassVar[dict[str, dict]] = {}  # what a preset changes in this method's fields
    pairs: ClassVar[dict[tuple[str, str], dict]] = {}  # what (teacher, student) changes in them

    def at_split(self, f: Tensor) -> Tensor:
        """The trunk's last map, as branches take it."""
        return f

    def ramp(self, epoch: int, epochs: int) -> float:
        """OKDDip's ramp-up where the method has a field `rampup` (a fraction of the epochs)."""
        return rampup(epoch, getattr(self, "rampup", 0.0) * epochs)

    def first_epochs(self, epochs: int) -> int:
        """Epochs of a stage before the run, which trains layers of the method's own."""
        return 0

    def first_lr(self, run: Run) -> float:
        """The learning rate of that stage."""
        return run.lr

    def first_terms(self, t: Out, y: Tensor, step: Step) -> dict[str, Tensor]:
        """The loss terms of that stage, of weight 1; step.epoch is negative in it."""
        raise TypeError(f"{type(self).__name__} has no first_terms()")

    def held_out(self, labels: Tensor) -> Tensor | None:
        """Positions (n,) of training images that are not trained on, but shown to `refresh`."""
        return None

    def refresh(self, z: Tensor, y: Tensor, t: Tensor | None) -> None:
        """Before each epoch but the first: the students' logits (m, n, K) of those images, their
        classes (n,) and the teacher's logits (n, K)."""


class Method(Hooks):
    """Base of all methods. A subclass with a `name` is registered when it is defined.

    Annotated class attributes are its hyperparameters; `terms` gives *unweighted* loss terms,
    which the trainer multiplies by `weights()` and, for those in `ramped`, by `ramp()`.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # as printed in tables and figures
    default: ClassVar[bool] = False  # the method of a Run that names none
    teaches: ClassVar[bool] = False  # the method that trains plain teachers
    needs_teacher: ClassVar[bool] = False
    teacher_logits_only: ClassVar[bool] = True  # may the teacher be folded, or cached as logits?

    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        if cls.__dict__.get("name"):
            _REGISTRY[cls.name] = cls

    def __init__(self, **params):
        super().__init__()
        for key in params:
            choose(key, fields(type(self)), f"field of {type(self).name}")
        for key, (kind, start) in fields(type(self)).items():
            setattr(self, key, _checked(key, params.get(key, start), kind))

    def group(self) -> tuple[str, int]:
        """("single", 1), ("network", m) or ("branch", m): what the students are."""
        based = getattr(self, "based", "network")
        return (based, self.m) if hasattr(self, "m") else ("single", 1)

    def deployed(self, seed: int) -> int | None:
        """Index of the student that is used after training; None: any, their mean is reported."""
        return 0 if self.group()[1] == 1 else None

    def peers(self) -> int:
        """How many of the students count for diversity and ensemble: the first so many."""
        return self.group()[1]

    def control(self) -> tuple[type["Method"], dict] | None:
        """The method and fields whose runs are the fair comparison, paired by seed."""
        return None

    def teacher_run(self, run: Run) -> Run | None:
        """The run whose students teach this one (several: their mean logits)."""
        if not self.needs_teacher:
            return None
        plain = next(c.name for c in _REGISTRY.values() if c.teaches)
        epochs = 0 if run.teacher_pretrained else run.epochs
        return replace(
            run,
            method=plain,
            student=run.teacher,
            seed=run.teacher_seed,
            params=(),
            lr=run.teacher_lr or run.lr,
            epochs=epochs,
            pretrained=not epochs,
        )

    def build(self, probe: Probe) -> None:
        """Make the method's own layers from a probe batch."""

    def weights(self) -> dict[str, float]:
        """The weight of each term before the ramp-up."""
        return {"ce": 1.0}

    def terms(self, s: Out, y: Tensor, t: Out | None, step: Step) -> dict[str, Tensor]:
        """Named scalar terms for one batch. s: the students' Out, y: (B,), t: the teacher's."""
        raise TypeError(f"{type(self).__name__} has no terms()")

    def watch(self, **seen: Tensor) -> None:
        """Keep tensors for the record: the trainer averages them over each epoch."""
        self.seen = {k: v.detach() for k, v in seen.items()}


_REGISTRY: dict[str, type[Method]] = {}


def methods() -> list[str]:
    """Registered names, in the order of their definition."""
    return list(_REGISTRY)


def method_class(name: str = "") -> type[Method]:
    """The class registered under `name`; "" is the default method."""
    name = name or next(c.name for c in _REGISTRY.values() if c.default)
    return _REGISTRY[choose(name, _REGISTRY, "method")]


@functools.cache
def fields(cls: type[Method]) -> dict[str, tuple[Any, Any]]:
    """Hyperparameters of a method class: name -> (type, default)."""
    hints = typing.get_type_hints(cls, include_extras=True)
    own = {
        k: v
        for base in reversed(cls.__mro__)
        if issubclass(base, Method)
        for k, v in base.__dict__.get("__annotations__", {}).items()
    }
    return {
        k: (hints[k], getattr(cls, k)) for k in own if typing.get_origin(hints[k]) is not ClassVar
    }


def _checked(key: str, value: Any, kind: Any) -> Any:
    """A field's value, as its type and within its bound."""
    bound = None
    if typing.get_origin(kind) is Annotated:
        kind, bound = typing.get_args(kind)[:2]
    value = typed(key, value, kind)
    compare = {">": operator.gt, ">=": operator.ge}
    if bound and not compare[bound[0]](value, bound[1]):
        raise ValueError(f"{key}={value!r}: must be {bound[0]} {bound[1]}")
    return value


def make(run: Run) -> Method:
    """The method of `run`, with its preset's and networks' fields and then the run's own."""
    cls = method_class(run.method)
    return cls(**(implied(cls, run) | dict(run.params)))


def implied(cls: type[Method], run: Run) -> dict:
    """The fields that the run's preset and its two networks change in the method."""
    return cls.presets.get(run.preset, {}) | cls.pairs.get((run.teacher, run.student), {})


def scales(method: Method, terms: dict, epoch: int, epochs: int) -> list[float]:
    """The factor of each term in an epoch: its weight, times the ramp-up where it has one."""
    if epoch < 0:
        return [1.0] * len(terms)
    w, ramp = method.weights(), method.ramp(epoch, epochs)
    if set(w) != set(terms) or (method.ramped and not set(method.ramped) & set(w)):
        raise ValueError(
            f"{method.title}: terms() gives {sorted(terms)}, weights() names "
            f"{sorted(w)}, ramped {sorted(method.ramped)}: they must agree"
        )
    return [w[k] * (ramp if k in method.ramped else 1.0) for k in terms]


def resolve(run: Run) -> Run:
    """`run` with everything named that its preset and method imply, and nothing that has no
    effect: two runs with one result are then equal but for `preset`. ValueError on bad fields."""
    if not run.epochs:  # nothing is trained, so nothing else acts
        run = Run(
            method=run.method,
            student=run.student,
            data=run.data,
            preset=run.preset,
            precision=run.precision,
            threads=run.threads,
            pretrained=True,
            epochs=0,
        )
    method = make(run)
    named = implied(type(method), run)  # what it sets must be named, or it acts again
    params = {
        k: getattr(method, k)
        for k, (_, start) in fields(type(method)).items()
        if getattr(method, k) != start or k in named
    }
    changes = dict(method=type(method).name, params=tuple(sorted(params.items())))
    start = Run()
    if method.teacher_run(run) is None:
        changes |= dict(teacher="", teacher_seed=0, teacher_lr=0.0, teacher_pretrained=False)
    elif run.teacher_lr == run.lr:
        changes |= dict(teacher_lr=0.0)
    if run.schedule == "step":
        changes |= dict(T_0=start.T_0, T_mult=start.T_mult)
    else:
        changes |= dict(milestones=start.milestones)
    return replace(run, **changes)


def effective(run: Run) -> Run:
    """A resolved run without those fields of its method that are at the class's defaults."""
    known = fields(method_class(run.method))
    return replace(run, params=tuple((k, v) for k, v in run.params if v != known[k][1]))


def source_digest(cls: type[Method]) -> str:
    """A hash of the class's syntax tree without docstrings, of its parents' below Method and, for
    a class that lives outside this package, of what stands beside it and its methods name:
    functions, numbers, text."""
    return _digest(cls, *(() if is_ours(cls) else _beside(cls)))


@functools.cache
def _digest(cls: type[Method], *helpers: str) -> str:
    trees = list(helpers)
    for c in cls.__mro__[: cls.__mro__.index(Method)]:
        tree = _class_tree(c)
        for node in ast.walk(tree) if tree else ():
            body = getattr(node, "body", None)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body = body[1:] or [ast.Pass()]
        known = {k: str(v) for k, v in vars(c).items() if k == "__annotations__" or k[:2] != "__"}
        trees.append(ast.dump(tree) if tree else repr(sorted(known.items())))
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]


def _beside(cls: type[Method]) -> list[str]:
    """The defaults of a class, and what its methods take by name from its own module: functions,
    with what these take in turn, and plain values."""
    found, todo = (
        {},
        [
            getattr(f, "__func__", f)
            for c in cls.__mro__
            if not is_ours(c)
            for f in vars(c).values()
        ],
    )
    while todo:
        f = todo.pop()
        if not inspect.isfunction(f) or f.__module__ != cls.__module__:
            continue
        for name in sorted(_globals(f.__code__) - found.keys()):
            value = f.__globals__.get(name)
            if inspect.isfunction(value) and value.__module__ == cls.__module__:
                found[name] = _told(value)
                todo.append(value)
            elif isinstance(value, int | float | str | tuple):
                found[name] = repr(value)
    return [repr(fields(cls)), *(f"{k} = {found[k]}" for k in sorted(found))]


def _globals(code: types.CodeType) -> set[str]:
    """Names that a function, and those inside it, read from its module."""
    inner = [_globals(c) for c in code.co_consts if inspect.iscode(c)]
    return {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}.union(*inner)


def _told(f: typing.Callable) -> str:
    """A function's syntax tree, or its byte code where it has no source."""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(f))))
    except (OSError, SyntaxError):
        return f"{f.__code__.co_code}{f.__code__.co_consts}"


def _class_tree(cls: type) -> ast.ClassDef | None:
    """The class statement, also of a class from a notebook, where `inspect` finds no file."""
    codes = [f.__code__ for f in vars(cls).values() if inspect.isfunction(f)]
    module = sys.modules.get(cls.__module__)
    file = codes[0].co_filename if codes else getattr(module, "__file__", None)
    lines = linecache.getlines(file) if file else []
    found = [
        n
        for n in ast.walk(ast.parse("".join(lines)))
        if isinstance(n, ast.ClassDef) and n.name == cls.__name__
    ]
    at = codes[0].co_firstlineno if codes else 0
    holds = [n for n in found if n.lineno <= at <= n.end_lineno]
    return (holds or found or [None])[-1]


def is_ours(cls: type[Method]) -> bool:
    """Is the class part of this package (or a learner's own)?"""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]
