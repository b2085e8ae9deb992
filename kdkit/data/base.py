"""Images in memory, and how any data set is cut, augmented and dealt out in batches."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..fields import choose
from ..randomness import integers, permutation
from .checks import check_same, kind

AUGMENT = ("none", "flip", "crop", "crop_flip")
Step = tuple[Tensor, Tensor, Tensor]  # x (B, C, H, W) float32, y (B,) int64, index (B,) int64
# Of each batch: positions (B,) and what its draws come from.
BatchPlan = list[tuple[Tensor, Generator]]
Augment = str | Callable[[Tensor, Generator], Tensor]  # a name of AUGMENT, or a function


def interleave(y: Tensor) -> Tensor:
    """Order that deals images out class by class: the first of each class, then the second, ...

    y (N,) int64 labels; returns (N,) int64 positions. Any prefix is balanced to within one image a
    class for as long as no class runs out. Depends on nothing but the order of the labels.
    """
    classes, order = y.cpu().sort(stable=True)
    rank = torch.arange(len(y), dtype=torch.int64, device="cpu") - torch.searchsorted(
        classes, classes
    )  # place within the class
    return order[rank.argsort(stable=True)]


def augmented(x: Tensor, augment: Augment, generator: Generator) -> Tensor:
    """Raw images after random changes, one draw an image: padded random crop and random flip.

    x (B, C, H, W) uint8 or float32 on any device. augment: "none", "flip", "crop" or "crop_flip",
    where a crop pads 4 pixels of 0 a side and cuts H x W at offsets in 0..8, and a flip has p = .5;
    or a function (x, generator) -> images of the same shape and type. Draws come from `generator`,
    one of the CPU. Equals torchvision's pad, crop, horizontal_flip at these offsets.
    ValueError: an unknown name, or a function that returns something else.
    """
    if callable(augment):
        new = augment(x, generator)
        check_same("augment returned", kind(new), kind(x))
        return new
    choose(augment, AUGMENT, "augment")
    if augment == "none":
        return x
    pad = 4 * ("crop" in augment)
    down, across = (
        torch.arange(size, dtype=torch.int64, device="cpu") for size in x.shape[2:]
    )  # (H,), (W,)
    top, left = integers(2 * pad + 1, (2, len(x), 1), generator)  # (B, 1) each
    mirror = integers(1 + ("flip" in augment), (len(x), 1), generator)
    rows = top + down  # (B, H) in the padded image
    columns = left + torch.where(mirror == 1, across.flip(0), across)  # (B, W)
    place = rows[:, :, None] * (len(across) + 2 * pad) + columns[:, None]  # (B, H, W)
    place = place.flatten(1)[:, None].to(x.device)  # one transfer
    planes = F.pad(x, [pad] * 4).flatten(2)  # (B, C, (H+8)(W+8))
    return planes.gather(2, place.expand(-1, x.shape[1], -1)).view(x.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set in memory: C channels, H x W pixels, N training and M test images, K classes.

    x (N, C, H, W) and x_test (M, C, H, W) are both uint8 (0 to 255) or both float32 (taken as they
    are), y (N,) and y_test (M,) int64, all on one device, which batches go to; shape = (C, H, W);
    mean and std per channel, of uint8 images in units of 0..1. own_augment: the images come
    augmented already, and `augment` is ignored. `tensors` makes one and checks it.

    It is a torch Dataset of the training images as well: `len(data)` is N, and `data[i]` is
    (normalised image (C, H, W) float32, label as int), for a plain DataLoader.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    x: Any
    y: Tensor
    x_test: Any
    y_test: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    own_augment: bool = False

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.y[index])  # past the end: IndexError, which ends a loop over the data
        return self.batch(torch.tensor([index], dtype=torch.int64, device="cpu"), "none", None)[
            0
        ], label

    def to(self, device: str | torch.device) -> Self:
        """The same data with batches that go to `device`; what is there already is not copied."""
        moved = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def subset(self, n_train: int) -> Self:
        """With n_train training images, classes dealt out in turn and each class in its order.

        Always the same images, and a smaller choice is the beginning of a larger one. 0 keeps all
        as they are. ValueError: fewer than one per class, or more than there are.
        """
        if n_train == 0:
            return self
        if not self.classes <= n_train <= len(self):
            raise ValueError(
                f"n_train={n_train}: {self.name} allows {self.classes} (one per class) "
                f"to {len(self)}, or 0 for all"
            )
        order = interleave(self.y)[:n_train]
        return replace(self, x=self.x[order], y=self.y[order])

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (C, 1, 1), put on the device once: no transfer in the step."""
        return tuple(
            torch.tensor(v, dtype=torch.float32, device=self.y.device)[:, None, None]
            for v in (self.mean, self.std)
        )

    def normalise(self, x: Tensor) -> Tensor:
        """(x/255 - mean)/std of uint8 images (B, C, H, W), (x - mean)/std of float ones: float32,
        channels_last in memory where there are several channels."""
        layout = torch.channels_last if x.shape[1] > 1 else torch.contiguous_format
        mean, std = self._scale
        scaled = x.to(mean.device, torch.float32, copy=True, memory_format=layout)
        if x.dtype == torch.uint8:
            scaled.div_(255)
        return scaled.sub_(mean).div_(std)

    def probe(self, n: int = 1000) -> Tensor:
        """Sorted positions of n test images, n//K per class (the first of each), K classes.

        With more classes than images: one image of each of n classes spread over the K.
        """
        order, classes = interleave(self.y_test), len(self.y_test.unique())
        if n < classes:
            order = order[
                torch.arange(n, dtype=torch.int64, device="cpu") * classes // n
            ]  # it begins with the first of each class
        return order[:n].sort().values.to(self.y_test.device)

    def content_digest(self) -> str:
        """SHA-256, in hexadecimal, of all that decides a result: shapes, types and bytes of images
        and labels, mean, deviation and class names; neither the name nor the device. Computed
        once an object."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr((self.shape, self.mean, self.std, self.class_names)).encode())
        for part in self._contents():
            digest.update(repr((tuple(part.shape), part.dtype)).encode())
            digest.update(part.cpu().contiguous().numpy())
        return digest.hexdigest()

    def _contents(self) -> Iterable[Tensor]:
        """The tensors that content_digest is of."""
        return self.x, self.y, self.x_test, self.y_test

    def batch(self, index: Tensor, augment: Augment, generator: Generator | None) -> Tensor:
        """Training images at `index` (B,), augmented and normalised: (B, C, H, W) float32.

        No generator is one that starts at its default seed.
        """
        plan = [(index.to(self.y.device), generator or Generator())]
        return next(self._read(True, plan, augment))[0]

    def batches(
        self,
        train: bool,
        batch: int,
        augment: Augment,
        generator: Generator | None,
        start: int = 0,
        subset: Tensor | None = None,
    ) -> Iterator[Step]:
        """One epoch of (x, y, index): x (B, C, H, W) float32 normalised, y and index (B,) int64.

        train: shuffled, augmented, full batches only; one draw from `generator`, made at the call.
        Otherwise the test images in order, as they are, the last batch possibly smaller; the
        generator may be None. `index` is the position in the training (test) set. `start` skips
        batches without changing the others. `subset` (n,) int64 restricts the epoch to those
        positions (a probe, all but a held-out split). A function as `augment` gets the raw images
        and a generator on the CPU. ValueError: batch or start out of range; with
        the first batch, an unknown augment; of a `Stream`, an item of another shape, type or label
        than it should have.
        """
        order = (
            torch.arange(len(self.y if train else self.y_test), dtype=torch.int64, device="cpu")
            if subset is None
            else subset
        )
        own = Generator()  # seeds the order and every batch, made or skipped
        if train:
            own.manual_seed(int(integers(2**62, (), generator)))
            order = order[permutation(len(order), own)]
        parts = [
            part
            for part in order.to(self.y.device).split(max(batch, 1))  # one transfer, not one a step
            if len(part) == batch or not train
        ]
        if batch < 1 or not parts or not 0 <= start <= len(parts):
            raise ValueError(
                f"batch={batch}, start={start}: {len(order)} images allow batches of "
                f"1 to {len(order)} and, with this one, starts of 0 to {len(parts)}"
            )
        seeds = integers(2**62, (len(parts),), own).tolist()
        plan = [(p, Generator().manual_seed(s)) for p, s in zip(parts, seeds, strict=True)]
        return self._read(train, plan[start:], augment)

    def _read(self, train: bool, plan: BatchPlan, augment: Augment) -> Iterator[Step]:
        """The batches of a plan."""
        x, y = (self.x, self.y) if train else (self.x_test, self.y_test)
        for images, (index, generator) in zip(self._loaded(x, plan), plan, strict=True):
            if train and not self.own_augment:
                images = augmented(images, augment, generator)
            yield self.normalise(images), y[index], index

    def _loaded(self, x: Any, plan: BatchPlan) -> Iterator[Tensor]:
        """The raw images of each batch of a plan, on the device of the labels."""
        return (x[index] for index, _ in plan)
