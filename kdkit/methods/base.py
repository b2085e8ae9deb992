"""What every method is: fields, what it needs, and named loss terms that the trainer sums."""

from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..fields import Field, Registry, choose, fields
from ..losses import ce, rampup
from ..models import Out

Temperature = Annotated[float, Field(0.01, 1000, step=0.5), "temperature"]
Weight = Annotated[float, Field(0, 1e6, step=0.1)]
LabelWeight = Annotated[Weight, "weight of the labels"]
Group = Annotated[int, Field(2, 1000, step=1), "number of students"]
Size = Annotated[int, Field(2, 10**6, step=16)]
Epochs = Annotated[float, Field(0, 1, unit="of the epochs", knob=False)]
Rampup = Annotated[Epochs, "length of the ramp-up"]
Epsilon = Annotated[float, Field(0, 0.01, knob=False), "added to the target's probabilities"]


class Step(NamedTuple):
    """What a method may know of the step besides the batch."""

    index: Tensor | None = None  # (B,) positions of the images in the training set
    epoch: int = 0  # from 0; negative in the pretraining stage
    epochs: int = 1
    generator: torch.Generator | None = None  # the run's own, on the CPU, seeded for this step
    class_weights: Tensor | None = None  # (K,)

    def ce(self, z: Tensor, y: Tensor) -> Tensor:
        """The labels' cross-entropy of logits z (..., B, K) and y (B,): (...,). Every method's
        term on labels goes through here, so that a recipe can weight the classes."""
        return ce(z, y, self.class_weights)


class Probe(NamedTuple):
    """What `build` sees: outputs for a probe batch, so that shapes are never typed anywhere."""

    s: Out
    t: Out | None
    K: int  # classes
    labels: Tensor  # (N,) of the training set
    teacher: nn.Module | None = None  # its network; None where the teacher is a function


class Method(nn.Module):
    """Base of all methods. A subclass with a `name` is registered when it is defined.

    Annotated class attributes are its hyperparameters; `terms` gives *unweighted* loss terms,
    which the trainer multiplies by `weights()` and, for those in `ramped`, by `ramp()`.

        class Smooth(Method):
            name, title = "smooth", "Smooth"
            eps: Annotated[float, Field(0, 1, 0.05), "weight of the uniform target"] = 0.1

            def weights(self):
                return {"ce": 1 - self.eps, "uniform": self.eps}

            def terms(self, s, y, t, step):
                uniform = -torch.log_softmax(s.logits, -1).mean()
                return {"ce": step.ce(s.logits, y), "uniform": uniform}
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""  # as printed in tables and figures
    default: ClassVar[bool] = False  # the method of a run that names none
    teaches: ClassVar[bool] = False  # the method that trains plain teachers
    needs_teacher: ClassVar[bool] = False
    student_needs: ClassVar[tuple[str, ...]] = ()  # of "feats", "preacts", "pooled", besides logits
    teacher_needs: ClassVar[tuple[str, ...]] = ()  # likewise; where () a teacher may be folded
    ramped: ClassVar[tuple[str, ...]] = ()  # terms under the ramp-up
    views: ClassVar[bool] = False  # does each student see an augmentation of its own?
    presets: ClassVar[dict[str, dict]] = {}  # what a preset changes in this method's fields
    pairs: ClassVar[dict[tuple[str, str], dict]] = {}  # what (teacher, student) changes; "": any
    scratch: ClassVar[tuple[str, ...]] = ()  # buffers of training alone, not kept in a record

    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        if cls.__dict__.get("name"):
            METHODS[cls.name] = cls

    def __init__(self, **values):
        super().__init__()
        known = fields(type(self))
        for key in values:
            choose(key, known, f"field of {type(self).name}")
        for key, field in known.items():
            setattr(self, key, field.parse(values.get(key, field.default)))

    def values(self) -> dict:
        """The method's fields by name."""
        return {key: getattr(self, key) for key in fields(type(self))}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.values().items())

    # What it needs

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

    def teacher_method(self) -> tuple[type["Method"], dict] | None:
        """The method and fields whose trained students teach this one; None without a teacher."""
        return (plain_method(), {}) if self.needs_teacher else None

    # The loss

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
        self.seen = {key: value.detach() for key, value in seen.items()}

    # What only some methods ask of the loop

    def at_split(self, f: Tensor) -> Tensor:
        """The trunk's last map, as branches take it."""
        return f

    def ramp(self, epoch: int, epochs: int) -> float:
        """OKDDip's ramp-up where the method has a field `rampup` (a fraction of the epochs)."""
        return rampup(epoch, getattr(self, "rampup", 0.0) * epochs)

    def pretrain_epochs(self, epochs: int) -> int:
        """Epochs of a pretraining stage, before the run, of layers of the method's own."""
        return 0

    def pretrain_rate(self, lr: float) -> float:
        """The learning rate of that stage; lr is the recipe's."""
        return lr

    def pretrain_terms(self, t: Out, y: Tensor, step: Step) -> dict[str, Tensor]:
        """The loss terms of that stage, of weight 1; step.epoch is negative in it."""
        raise TypeError(f"{type(self).__name__} has no pretrain_terms()")

    def held_out(self, labels: Tensor) -> Tensor | None:
        """Positions (n,) of training images that are not trained on, but shown to `refresh`."""
        return None

    def refresh(self, z: Tensor, y: Tensor, t: Tensor | None) -> None:
        """Before each epoch but the first: the students' logits (m, n, K) of those images, their
        classes (n,) and the teacher's logits (n, K)."""


METHODS = Registry("method")


def list_methods() -> list[str]:
    """Registered names, in the order of their definition."""
    return list(METHODS)


def method_class(name: str = "") -> type[Method]:
    """The class registered under `name`; "" is the default method."""
    return METHODS.find(name or next(c.name for c in METHODS.values() if c.default))


def plain_method() -> type[Method]:
    """The method that trains plain teachers."""
    return next(c for c in METHODS.values() if c.teaches)


def term_weights(method: Method, terms: dict, epoch: int, epochs: int) -> list[float]:
    """The factor of each term in an epoch: its weight, times the ramp-up where it has one.

    ValueError where `terms` and the method's `weights` and `ramped` do not agree.
    """
    if epoch < 0:
        return [1.0] * len(terms)
    weights, ramp = method.weights(), method.ramp(epoch, epochs)
    if set(weights) != set(terms) or (method.ramped and not set(method.ramped) & set(weights)):
        raise ValueError(
            f"{method.title}: terms() gives {sorted(terms)}, weights() names "
            f"{sorted(weights)}, ramped {sorted(method.ramped)}: they must agree"
        )
    return [weights[name] * (ramp if name in method.ramped else 1.0) for name in terms]
