"""Images that do not fit into memory, or come from somebody's own torch Dataset."""

from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from ..randomness import integers, own_draws
from .base import BatchPlan, Data
from .checks import as_images, as_labels, as_tensor, check_same, kind


def picture(image: Any, what: str) -> Tensor:
    """One image as (C, H, W) uint8 or float32: of a tensor or array (C, H, W) or (H, W), or PIL's.

    Palettes of PIL's become colours. ValueError: anything else.
    """
    if hasattr(image, "convert"):
        image = image.convert("RGB") if image.mode == "P" else image
        image = np.atleast_3d(image).transpose(2, 0, 1)
    return as_images(as_tensor(image, what)[None], what)[0]


@dataclass(frozen=True, eq=False)
class Items(Dataset):
    """Images of a dataset of (image, label), indexed as a tensor is: [order] are those at these
    positions, [position, seed] is one. What it draws from torch depends on its seed alone, whoever
    asks for it and in which process; a transform that draws from numpy or `random` is its own
    affair.

    what: its name in messages; source: any dataset with len() and [i]; order (n,) int64: which of
    its items, in which order; y (n,) int64: their labels; like (C, H, W): an image of the shape
    and type that all must have.
    """

    what: str
    source: Any
    order: Tensor
    y: Tensor
    like: Tensor

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, which: Tensor | tuple) -> "Items | Tensor":
        if isinstance(which, Tensor):
            return replace(self, order=self.order[which], y=self.y[which])
        position, seed = which
        number = int(self.order[position])
        name = f"item {number} of {self.what}"
        with own_draws(seed):
            image, label = self.source[number]
        image = picture(image, name)
        check_same(f"{name} is", kind(image), kind(self.like))
        check_same(f"{name} has the label", int(label), int(self.y[position]))
        return image

    def still(self, position: int) -> Tensor:
        """The image at this position alone, (1, C, H, W), drawn from the seed 0."""
        return self[position, 0][None]


def items_of(source: Any, what: str) -> Items:
    """All items of a dataset of (image, label); every image must be as the first one is."""
    if not isinstance(source, Sized) or not len(source):
        raise ValueError(
            f"{what} is {kind(source)}, allowed are datasets with items, len() and [i]"
        )
    with own_draws(0):
        first = source[0]
        check_same(f"item 0 of {what} is not (image, label), its length is", len(first), 2)
        y = labels_of(source, f"the labels of {what}")
    return Items(
        what,
        source,
        torch.arange(len(y), dtype=torch.int64, device="cpu"),
        y,
        picture(first[0], f"item 0 of {what}"),
    )


def labels_of(source: Any, what: str) -> Tensor:
    """The labels (N,) int64 of a dataset: what it keeps of them, if they are whole numbers and
    nothing transforms them, else those of every item. `Items` refuses one that says otherwise."""
    if not getattr(source, "target_transform", None):
        for name in ("targets", "labels", "y"):
            with suppress(ValueError):  # not there, or not plain
                return as_labels(getattr(source, name, None), len(source), what).cpu()
    return as_labels([source[i][1] for i in range(len(source))], len(source), what)


@dataclass(frozen=True, eq=False, repr=False)
class Stream(Data):
    """Data behind a loader. As `Data`, but x and x_test are `Items`, not tensors.

    `workers` processes load the items; they do not change what comes out. identity: a function
    that returns what stands for the items in `content_digest`; "" reads every item once.
    """

    workers: int = 0
    identity: Callable[[], str] = str

    def _contents(self) -> Iterator[Tensor]:
        yield from (self.y, self.y_test)
        identity = torch.tensor(list(self.identity().encode()), dtype=torch.int64, device="cpu")
        for items in (self.x, self.x_test):
            if len(identity):
                yield from (items.order, identity)
            else:
                yield from map(items.still, range(len(items)))

    def _loaded(self, x: Items, plan: BatchPlan) -> Iterator[Tensor]:
        loader = DataLoader(
            x,
            batch_sampler=visits([(index.cpu(), generator) for index, generator in plan]),
            num_workers=self.workers if len(plan) > 1 else 0,
            pin_memory=self.y.device.type == "cuda",
            generator=Generator(),
        )
        return (images.to(self.y.device, non_blocking=True) for images in loader)


def visits(plan: BatchPlan) -> Iterator[list]:
    """(position, seed) of the items of each batch, the seeds drawn from its generator."""
    for index, generator in plan:
        seeds = integers(2**62, index.shape, generator)
        yield list(zip(index.tolist(), seeds.tolist(), strict=True))
