"""Data sets: images in memory (`tensors`), any torch Dataset (`dataset`), and names for them.

A registered name is a function that returns one of them; `load(name)` calls it, `loader_of(name)`
is the function itself. Nothing here reads a file or the environment: a function that is registered
may.

>>> @register_dataset("noise")
... def noise():
...     return tensors(torch.rand(20, 8, 8), torch.arange(20) % 2, torch.rand(2, 8, 8), [0, 1])
>>> load("noise", n_train=4).y.tolist()
[0, 1, 0, 1]
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from ..fields import Registry
from .base import AUGMENT, Data, Step, augmented, interleave
from .checks import as_images, as_labels, as_names, as_scale, check_same, kind
from .stream import Stream, items_of

DATASETS = Registry("data set")
register_dataset = DATASETS.decorator
loader_of = DATASETS.find


def list_datasets() -> tuple[str, ...]:
    """The names that `load` takes, in the order in which they were registered."""
    return tuple(DATASETS)


def load(name: str, device: str | torch.device = "cpu", n_train: int = 0, **options: Any) -> Data:
    """The data set that is registered as `name`, on `device`.

    n_train > 0 keeps that many training images, classes dealt out in turn and each class in its
    order: always the same images, and a smaller choice is the beginning of a larger one. options
    go to the registered function. ValueError: an unknown name, a function that returns something
    else, n_train out of range; and whatever the function raises.
    """
    data = DATASETS.find(name)(**options)
    if not isinstance(data, Data):
        raise ValueError(
            f"the data set {name!r} is a {kind(data)}, allowed is what tensors or dataset returns"
        )
    return replace(data, name=name).subset(n_train).to(device)


def tensors(
    x: Any,
    y: Any,
    x_test: Any,
    y_test: Any,
    names: Iterable[str] | None = None,
    mean: Any = None,
    std: Any = None,
) -> Data:
    """A data set of tensors or numpy arrays, on the device of `x`.

    x (N, C, H, W), or grey (N, H, W): uint8 (0 to 255), or float, which becomes float32 and is
    taken as it is. x_test: the same for M test images. y (N,) and y_test (M,): whole numbers
    0..K-1 of any type. names: of the K classes, by default "0" to the largest label. mean, std: C
    numbers each, of uint8 images in units of 0..1; by default those of the training images, where
    the deviation of a constant channel becomes 1. Memory is shared where possible; nothing that
    is given is changed. ValueError, in one line: anything else.

    >>> import torch
    >>> x, y = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8), torch.arange(60) % 3
    >>> data = tensors(x[:40], y[:40], x[40:], y[40:], names=["cat", "dog", "cow"])
    >>> data.classes, data.shape, len(data)
    (3, (3, 8, 8), 40)
    """
    x, x_test = as_images(x, "x"), as_images(x_test, "x_test")
    y, y_test = as_labels(y, len(x), "y"), as_labels(y_test, len(x_test), "y_test")
    check_same("one shape and type for all: test images are", kind(x_test[0]), kind(x[0]))
    mean, std = as_scale(mean, std, x.shape[1], x.split(100))
    y, x_test, y_test = (part.to(x.device) for part in (y, x_test, y_test))
    names = as_names(names, y, y_test)
    return Data("tensors", len(names), tuple(x.shape[1:]), x, y, x_test, y_test, mean, std, names)


def dataset(
    train: Any,
    test: Any,
    names: Iterable[str] | None = None,
    mean: Any = None,
    std: Any = None,
    workers: int = 0,
) -> Stream:
    """A data set of two torch Datasets, read as they are needed.

    Their items are (image, label): a tensor or array (C, H, W) or (H, W) of uint8 or float, or a
    PIL image; a whole number 0..K-1. All images have one shape and type. Labels are read from the
    dataset's `targets`, `labels` or `y` where that holds whole numbers and no `target_transform`
    changes them, else from every item once. mean, std: by default those of up to 2,000 evenly
    spread training images. names, mean, std: as in `tensors`. What a transform draws from torch,
    numpy or `random` is seeded item by item: `workers` processes load, and do not change what comes
    out. ValueError, in one line: anything else. An item whose shape, type or label is another than
    it should be is told when it is read; where workers read, torch puts a traceback around it.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> images = TensorDataset(torch.rand(20, 1, 8, 8), torch.arange(20) % 2)
    >>> data = dataset(images, images)
    >>> data.classes, data.shape, len(data)
    (2, (1, 8, 8), 20)
    """
    x, x_test = items_of(train, "train"), items_of(test, "test")
    check_same("one shape and type for all: test images are", kind(x_test.like), kind(x.like))
    spread = range(0, len(x), len(x) // 2000 + 1)
    mean, std = as_scale(mean, std, len(x.like), map(x.still, spread))
    names = as_names(names, x.y, x_test.y)
    return Stream(
        "dataset",
        len(names),
        tuple(x.like.shape),
        x,
        x.y,
        x_test,
        x_test.y,
        mean,
        std,
        names,
        workers=workers,
    )
