"""Images as tensors on the training device: the lesson set, Fashion-MNIST, CIFAR, ImageNet.

`load(name)` returns a `Data` (everything in memory, uint8, augmented by tensor functions) or, for
ImageNet, a `Folders` (JPEG files behind a DataLoader). Both have the same attributes and the same
`batches(...)`, so one training loop serves both. Nothing here downloads but `download`.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .config import choose
from .files import LESSON, fetch, find, read_cifar, read_fashion

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
AUGMENT = {"none": (0, False), "flip": (0, True), "crop": (4, False), "crop_flip": (4, True)}
Step = tuple[Tensor, Tensor, Tensor]  # x (B, C, H, W) float32, y (B,) int64, index (B,) int64


class _Set(NamedTuple):
    family: str  # the files it is read from
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_GREY = ((0.2860,), (0.3530,))
SETS = {
    "lesson": _Set("lesson", 10, *_GREY),
    "lesson_few": _Set("lesson", 10, *_GREY),
    "lesson_val": _Set("fashion_mnist", 10, *_GREY),
    "fashion_mnist": _Set("fashion_mnist", 10, *_GREY),
    "fashion_mnist32": _Set("fashion_mnist", 10, _GREY[0] * 3, _GREY[1] * 3),
    "cifar10": _Set("cifar10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _Set("cifar100", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": _Set("imagenet", 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def datasets() -> tuple[str, ...]:
    """The names that `load` takes."""
    return tuple(SETS)


def interleave(y: Tensor) -> Tensor:
    """Order that deals images out class by class: the first of each class, then the second, ...

    y (N,) int64 labels; returns (N,) int64 positions. Any prefix is balanced to within one image a
    class for as long as no class runs out. Depends on nothing but the order of the labels.
    """
    y = y.cpu().long()
    order = y.argsort(stable=True)
    counts = y.bincount()
    rank = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[order]]  # place within the class
    return order[(rank * len(counts) + y[order]).argsort()]


def augmented(x: Tensor, augment: str, generator: Generator | None) -> Tensor:
    """Padded random crop and random flip of uint8 images, one draw an image.

    x (B, C, H, W) uint8 on any device; augment one of "none", "flip", "crop", "crop_flip". A crop
    pads 4 black pixels a side and cuts H x W at offsets in 0..8; a flip has p = .5. Draws come from
    `generator` on its own device. Equals torchvision's pad, crop, horizontal_flip at these offsets.
    """
    pad, flip = AUGMENT[choose(augment, AUGMENT, "augment")]
    if not pad and not flip:
        return x
    b, c, h, w = x.shape
    draw = {"generator": generator, "device": generator.device if generator else "cpu"}
    draws = torch.cat(
        [torch.randint(2 * pad + 1, (2, b), **draw), torch.randint(1 + flip, (1, b), **draw)]
    ).to(x.device)  # one transfer
    top, left, mirror = draws[:, :, None]  # (B, 1) each
    rows = top + torch.arange(h, device=x.device)  # (B, H)
    cols = torch.arange(w, device=x.device)
    cols = left + torch.where(mirror == 1, w - 1 - cols, cols)  # (B, W)
    place = rows[:, :, None] * (w + 2 * pad) + cols[:, None, :]  # (B, H, W) in the padded plane
    planes = F.pad(x, [pad] * 4).flatten(2)  # (B, C, (H+8)(W+8))
    return planes.gather(2, place.view(b, 1, h * w).expand(-1, c, -1)).view(b, c, h, w)


@dataclass(frozen=True, eq=False)
class _Base:
    """What data in memory and data in folders share: C channels, H x W pixels, N training and M
    test images, K classes. y (N,) and y_test (M,) int64 are on the device that batches go to;
    shape = (C, H, W); mean and std per channel in units of 0..1."""

    name: str
    classes: int
    shape: tuple[int, int, int]
    x: Any = field(repr=False)
    y: Tensor = field(repr=False)
    x_test: Any = field(repr=False)
    y_test: Tensor = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = field(repr=False)

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation (C, 1, 1), put on the device once: no transfer in the step."""
        return tuple(
            torch.tensor(v, device=self.y.device)[:, None, None] for v in (self.mean, self.std)
        )

    def normalise(self, x: Tensor, memory_format: torch.memory_format | None = None) -> Tensor:
        """(x/255 - mean)/std: uint8 (B, C, H, W) to float32 of the same shape.

        memory_format: channels_last where there are several channels, else contiguous.
        """
        if memory_format is None:
            memory_format = torch.channels_last if x.shape[1] > 1 else torch.contiguous_format
        mean, std = self._scale
        x = x.to(mean.device, torch.float32, copy=True, memory_format=memory_format)
        return x.div_(255).sub_(mean).div_(std)

    def probe(self, n: int = 1000) -> Tensor:
        """Sorted positions of n test images, n//K a class (the first of each), K classes.

        With more classes than images: one image of each of n classes spread over the K.
        """
        order = interleave(self.y_test)
        if n < self.classes:
            wanted = torch.arange(n) * self.classes // n
            order = order[torch.isin(self.y_test.cpu()[order], wanted)]
        return order[:n].sort().values.to(self.y_test.device)

    def _plan(
        self,
        train: bool,
        batch: int,
        generator: Generator | None,
        start: int,
        subset: Tensor | None,
    ) -> list[tuple[Tensor, int]]:
        """(positions, seed) of each batch of an epoch from number `start` on.

        One draw from the generator seeds the order and, through it, every batch: batch k is the
        same whether or not the batches before it were made.
        """
        order = torch.arange(len(self.y if train else self.y_test))
        order = order if subset is None else order[subset.cpu()]
        steps = len(order) // batch if train and batch > 0 else -(-len(order) // max(batch, 1))
        if batch < 1 or not 0 <= start <= steps or not steps:
            raise ValueError(
                f"batch={batch}, start={start}: {len(order)} images allow batches of "
                f"1 to {len(order)} and, with this one, starts of 0 to {steps}"
            )
        seeds = [0] * steps
        if train:
            base = torch.randint(2**62, (), generator=generator, device=generator.device)
            own = Generator().manual_seed(int(base))
            order = order[torch.randperm(len(order), generator=own)]
            seeds = torch.randint(2**62, (steps,), generator=own).tolist()
        return [(order[k * batch : (k + 1) * batch], seeds[k]) for k in range(start, steps)]


@dataclass(frozen=True, eq=False)
class Data(_Base):
    """A data set in memory: x (N, C, H, W) and x_test (M, C, H, W) uint8, on the same device."""

    def batch(self, index: Tensor, augment: str, generator: Generator | None) -> Tensor:
        """Training images at `index` (B,), augmented and normalised: (B, C, H, W) float32."""
        return self.normalise(augmented(self.x[index.to(self.x.device)], augment, generator))

    def batches(
        self,
        train: bool,
        batch: int,
        augment: str,
        generator: Generator | None,
        start: int = 0,
        subset: Tensor | None = None,
    ) -> Iterator[Step]:
        """One epoch of (x, y, index): x (B, C, H, W) float32 normalised, y and index (B,) int64.

        train: shuffled, augmented, full batches only; one draw from `generator`, made at the call.
        Otherwise the test images in order, as they are, the last batch possibly smaller; the
        generator may be None. `index` is the position in the training (test) set. `start` skips
        batches without changing the others. `subset` (n,) int64 restricts the epoch to those
        positions (a probe, all but a held-out split). ValueError: batch or start out of range.
        """
        plan = self._plan(train, batch, generator, start, subset)
        plan = [(index.to(self.y.device), seed) for index, seed in plan]
        if not train:
            return ((self.normalise(self.x_test[i]), self.y_test[i], i) for i, _ in plan)
        augmented(self.x[:0], augment, None)  # a wrong name is told now, not at the first batch
        return (
            (self.batch(i, augment, Generator().manual_seed(seed)), self.y[i], i)
            for i, seed in plan
        )


class _Images(torch.utils.data.Dataset):
    """An image folder whose item (position, seed) draws its augmentation from the seed alone."""

    def __init__(self, folder: Any, order: Iterable[int]):
        self.folder, self.samples = folder, [folder.samples[i] for i in order]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        path, y = self.samples[item[0]]
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.default_generator.manual_seed(item[1])
            return self.folder.transform(self.folder.loader(path)), y, item[0]


def _visit(index: Tensor, generator: Generator) -> list[tuple[int, int]]:
    """Items of `_Images` for the images at `index`, each with a seed of its own."""
    seeds = torch.randint(2**62, index.shape, generator=generator, device=generator.device)
    return list(zip(index.tolist(), seeds.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Folders(_Base):
    """ImageNet's kind: a folder a class. As `Data`, but x and x_test are folders, not tensors.

    `x[position, seed]` is (uint8 image (3, 224, 224), class, position). `workers` processes decode;
    they do not change what comes out.
    """

    workers: int = 0

    def batch(self, index: Tensor, augment: str, generator: Generator) -> Tensor:
        """As `Data.batch`, decoded in this process; the augmentation is always ImageNet's."""
        return self.normalise(torch.stack([self.x[item][0] for item in _visit(index, generator)]))

    def batches(
        self,
        train: bool,
        batch: int,
        augment: str,
        generator: Generator | None,
        start: int = 0,
        subset: Tensor | None = None,
    ) -> Iterator[Step]:
        """As `Data.batches`; `augment` is ignored: random resized crop and flip when training."""
        plan, device = self._plan(train, batch, generator, start, subset), self.y.device
        visits = (_visit(index, Generator().manual_seed(seed)) for index, seed in plan)
        loader = torch.utils.data.DataLoader(
            self.x if train else self.x_test,
            batch_sampler=visits,
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            generator=Generator(),
        )
        return (
            (self.normalise(x.to(device, non_blocking=True)), y.to(device), index.to(device))
            for x, y, index in loader
        )


def _lesson() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with np.load(LESSON, allow_pickle=False) as z:
        x, y, xt, yt, i = (
            torch.from_numpy(z[k]) for k in ("x", "y", "x_test", "y_test", "train_index")
        )
    return x[:, None], y.long(), xt[:, None], yt.long(), i.long()


def _lesson_val(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, _, _, index = _lesson()
    x_all, y_all, _, _ = read_fashion(folder)
    if len(y_all) != 60_000 or not x_all[index].equal(x) or not y_all[index].equal(y):
        raise ValueError(
            f"{folder}: these are not Fashion-MNIST's original training images, which "
            "lesson_val needs: `python -m kdkit data fashion_mnist` gets them"
        )
    last = interleave(y_all)[-10_000:]  # the last 1,000 of each class; the lesson has the first 500
    return x, y, x_all[last], y_all[last]


def _imagenet(device: torch.device, n_train: int, folder: Path, workers: int | None) -> Folders:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    crop = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage()]
    whole = [v2.Resize(256), v2.CenterCrop(224), v2.ToImage()]
    try:
        train = ImageFolder(folder / "train", v2.Compose(crop))
        test = ImageFolder(folder / "val", v2.Compose(whole))
    except FileNotFoundError as e:  # no class folder, or one without images
        raise ValueError(f"{folder}: not a folder a class: {e}") from None
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{folder}: train and val must hold the same classes, only one has {odd}")
    y, spec = torch.tensor(train.targets), SETS["imagenet"]
    order = _prefix("imagenet", y, len(train.classes), n_train)
    return Folders(
        "imagenet",
        len(train.classes),
        (3, 224, 224),
        _Images(train, order.tolist()),
        y[order].to(device),
        _Images(test, range(len(test))),
        torch.tensor(test.targets, device=device),
        spec.mean,
        spec.std,
        tuple(train.classes),
        min(8, os.cpu_count() or 1) if workers is None else workers,
    )


def _prefix(name: str, y: Tensor, classes: int, n_train: int) -> Tensor:
    """Positions of the n_train images to keep, classes dealt out in turn; 0: all, as stored."""
    if n_train == 0:
        return torch.arange(len(y))
    if not classes <= n_train <= len(y):
        raise ValueError(
            f"n_train={n_train}: {name} allows {classes} (one a class) to {len(y)}, or 0 for all"
        )
    return interleave(y)[:n_train]


def load(
    name: str,
    device: str | torch.device = "cpu",
    n_train: int = 0,
    root: str | os.PathLike | None = None,
    workers: int | None = None,
) -> Data | Folders:
    """The data set `name` (one of `datasets()`) on `device`.

    n_train > 0 keeps that many training images, classes dealt out in turn and each class in file
    order: always the same images, and a smaller choice is the beginning of a larger one. 0 keeps
    all, in file order (the lesson set is stored dealt out). `lesson` is in kdkit; `lesson_few`
    has 50 of its test images a class, for quick trials; `lesson_val` has its training images, and
    for a test set 10,000 of Fashion-MNIST's training images that the lesson does not use: recipes
    are chosen on it. `fashion_mnist32` is padded by 2 black pixels a side and repeated to 3
    channels. Files are looked for under `root` alone if given, else under $KDKIT_DATA, ./data and,
    for Fashion-MNIST, where Debian installs it. `workers` (ImageNet only): processes that decode
    images, by default one a core, at most 8.
    Errors: ValueError for an unknown name, n_train out of range or a damaged file; MissingData.
    """
    spec, device = SETS[choose(name, SETS, "data set")], torch.device(device)
    folder = find(spec.family, root)
    if name == "imagenet":
        return _imagenet(device, n_train, folder, workers)
    names = FASHION
    if spec.family == "lesson":
        x, y, x_test, y_test, _ = _lesson()
        if name == "lesson_few":
            few = interleave(y_test)[:500]
            x_test, y_test = x_test[few], y_test[few]
    elif name == "lesson_val":
        x, y, x_test, y_test = _lesson_val(folder)
    elif spec.family == "fashion_mnist":
        x, y, x_test, y_test = read_fashion(folder)
    else:
        x, y, x_test, y_test, names = read_cifar(name, folder, spec.classes)
    order = _prefix(name, y, spec.classes, n_train)
    x, y = x[order], y[order]
    if name == "fashion_mnist32":
        x, x_test = (F.pad(v, [2] * 4).expand(-1, 3, -1, -1).contiguous() for v in (x, x_test))
    return Data(
        name,
        spec.classes,
        tuple(x.shape[1:]),
        x.to(device),
        y.to(device),
        x_test.to(device),
        y_test.to(device),
        spec.mean,
        spec.std,
        tuple(names),
    )


def download(name: str, root: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """Fetch a data set through torchvision, which checks its MD5; returns where it is.

    root: where to put it, by default $KDKIT_DATA or ./data. What is already there is left alone.
    progress: show torchvision's bar. Errors: ValueError for an unknown name; MissingData for
    ImageNet, which nobody may pass on; OSError or RuntimeError if the transfer fails.
    """
    return fetch(SETS[choose(name, SETS, "data set")].family, root, progress)
