"""How students are trained: epochs, batches, optimiser, learning rate, augmentation, precision."""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from .fields import Field, choose, fields

Fraction = Annotated[float, Field(1e-6, 1, unit="of the epochs")]


@dataclass(frozen=True)
class Recipe:
    """A training recipe. Lengths are fractions of the epochs, so that a recipe scales with them.

    optimizer: "sgd" or "adamw", or a callable `(parameters, lr=...) -> Optimizer`, such as
    `torch.optim.RAdam`; one that takes no `lr` has rates of its own, which the schedule scales.
    schedule: "step", "sgdr" or "constant", or a callable `(epoch, epochs) -> factor of the rate`,
    epochs counted from 0.
    augment: a name, or a callable `(x, generator) -> x` on raw images (B, C, H, W).

        Recipe(epochs=20, optimizer=torch.optim.RAdam, lr=1e-3, schedule=lambda e, E: 1 - e / E)
    """

    epochs: Annotated[int, Field(0, 10**6), "passes over the training images"] = 30
    batch: Annotated[int, Field(1, 10**6, unit="images"), "images of one step"] = 128
    lr: Annotated[float, Field(1e-12, 1e30), "learning rate at the start"] = 0.1
    optimizer: Annotated[Literal["sgd", "adamw"] | Callable, "what takes the steps"] = "sgd"
    momentum: Annotated[float, Field(0, 1), "of SGD"] = 0.9
    nesterov: Annotated[bool, "Nesterov's form of SGD's momentum"] = True
    weight_decay: Annotated[
        float, Field(0, 1e3), "decay of all weights: L2 in sgd, decoupled in adamw"
    ] = 5e-4
    schedule: Annotated[
        Literal["step", "sgdr", "constant"] | Callable, "how the learning rate changes"
    ] = "step"
    milestones: Annotated[
        tuple[float, ...], Field(1e-6, 1, unit="of the epochs"), "where step divides the rate by 10"
    ] = (0.5, 0.75)
    T_0: Annotated[Fraction, "length of sgdr's first cycle"] = 1 / 7
    T_mult: Annotated[int, Field(1, 1000), "each cycle of sgdr is so many times longer"] = 2
    augment: Annotated[
        Literal["none", "flip", "crop", "crop_flip"] | Callable, "random changes of the images"
    ] = "none"
    class_weights: Annotated[
        tuple[float, ...], Field(0, 1e6), "weight of each class in the labels' cross-entropy"
    ] = ()
    full_tests: Annotated[
        int, Field(0, 10**6), "epochs, besides the last, after which the whole test set is read"
    ] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp64"], "auto: bf16 where the device computes in it"
    ] = "fp32"
    threads: Annotated[int, Field(0, 4096), "of the processor; 0 leaves torch's number"] = 0
    compile: Annotated[bool, "compile the students with torch.compile"] = False

    def __post_init__(self):
        for name, field in fields(type(self)).items():
            object.__setattr__(self, name, field.parse(getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Raise ValueError where fields do not go together; each alone is within its bounds."""

    def replace(self, **changes):
        """A copy with fields changed; only these are parsed. ValueError for unknown names."""
        known = fields(type(self))
        changed = copy.copy(self)
        for name, value in changes.items():
            choose(name, known, "field")
            object.__setattr__(changed, name, known[name].parse(value))
        changed.check()
        return changed


def schedule_factor(recipe: Recipe, epoch: int) -> float:
    """What the learning rate of `epoch` (from 0) is multiplied by.

    step: a tenth from each milestone on (RepDistiller, OKDDip).  sgdr: cosine with warm restarts,
    one step an epoch, to 0 (Loshchilov and Hutter 2017; torch's scheduler agrees).
    """
    if callable(recipe.schedule):
        return float(recipe.schedule(epoch, recipe.epochs))
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "step":
        return 0.1 ** sum(epoch >= round(m * recipe.epochs) for m in recipe.milestones)
    length, position = max(1, round(recipe.T_0 * recipe.epochs)), epoch
    while position >= length:
        position, length = position - length, length * recipe.T_mult
    return (1 + math.cos(math.pi * position / length)) / 2


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The recipe's learning rate during `epoch` (from 0)."""
    return recipe.lr * schedule_factor(recipe, epoch)


def make_optimizer(recipe: Recipe, parameters: list) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameters`."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.lr,
            recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
            fused=True,
        )
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay)
    try:
        inspect.signature(recipe.optimizer).bind(parameters, lr=recipe.lr)
    except TypeError:
        return recipe.optimizer(parameters)
    return recipe.optimizer(parameters, lr=recipe.lr)
