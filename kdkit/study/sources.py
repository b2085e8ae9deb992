"""The data sets that come with kdkit: each is one function, registered as anybody's would be.

The printed characters are in the package; the others are read from files, which `download`
fetches.
"""

import hashlib
import inspect
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Data, Stream, dataset, loader_of, register_dataset, tensors
from ..data import load as load_registered
from ..fields import choose
from . import files
from .files import GLYPHS, find, read_cifar, read_fashion

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
MissingData = files.MissingData  # what `place_of` and the functions below raise
Root = str | os.PathLike | None  # where to look for files alone; None: see `files.find`


class _Set(NamedTuple):
    family: str  # the files it is read from
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_GREY, _INK = ((0.2860,), (0.3530,)), ((0.0711,), (0.2186,))
ALIASES = {"lesson": "glyphs"}  # another name of a data set -> its own, which stands in ids
SETS = {
    "glyphs": _Set("glyphs", 100, *_INK),
    "glyphs_val": _Set("glyphs", 100, *_INK),
    "glyphs_few": _Set("glyphs", 100, *_INK),
    "fashion_mnist": _Set("fashion_mnist", 10, *_GREY),
    "fashion_mnist32": _Set("fashion_mnist", 10, _GREY[0] * 3, _GREY[1] * 3),
    "cifar10": _Set("cifar10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _Set("cifar100", 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": _Set("imagenet", 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def _made(name: str, images: tuple[Tensor, ...], names: tuple[str, ...] = FASHION) -> Data:
    """The data of x, y, x_test, y_test, with the published mean and deviation."""
    return tensors(*images, names=names, mean=SETS[name].mean, std=SETS[name].std)


def _glyphs(test: str) -> Data:
    """The training images, and those of a test set: "test" or "val"."""
    with np.load(GLYPHS, allow_pickle=False) as z:
        x, y, x_test, y_test = (
            torch.from_numpy(z[name]) for name in ("x", "y", f"x_{test}", f"y_{test}")
        )
        names = tuple(z["characters"].tolist())
    images = x[:, None], y.long(), x_test[:, None], y_test.long()
    return _made("glyphs", images, names)


@register_dataset("glyphs", "lesson")
def glyphs() -> Data:
    """100 printed characters, 20 x 20 pixels, grey: 100 training images each, from typefaces that
    look like none of the 100 test typefaces, of which there is every character."""
    return _glyphs("test")


@register_dataset("glyphs_val")
def glyphs_val() -> Data:
    """The characters with 60 other typefaces as test set: recipes are chosen on it."""
    return _glyphs("val")


@register_dataset("glyphs_few")
def glyphs_few() -> Data:
    """The characters of five test typefaces alone, for quick trials."""
    data = _glyphs("test")
    return replace(data, x_test=data.x_test[:500], y_test=data.y_test[:500])


@cache
def glyph_faces(test: str = "test") -> tuple[np.ndarray, tuple[str, ...]]:
    """(which typeface each image of a test set shows (M,) int64, from 0; their names).

    test: "test" or "val"; ValueError for another.
    """
    choose(test, ("test", "val"), "test set")
    with np.load(GLYPHS, allow_pickle=False) as z:
        rows, names = z[f"face_{test}"], z["faces"]
    order, number = np.unique(rows, return_inverse=True)
    appear = np.argsort([np.argmax(rows == row) for row in order])  # in the order of the images
    number = np.argsort(appear)[number].astype(np.int64)
    number.flags.writeable = False
    return number, tuple(names[order[appear]].tolist())


@register_dataset("fashion_mnist")
def fashion_mnist(root: Root = None) -> Data:
    """Fashion-MNIST, 28 x 28 pixels, grey."""
    return _made("fashion_mnist", read_fashion(find("fashion_mnist", root)))


@register_dataset("fashion_mnist32")
def fashion_mnist32(root: Root = None) -> Data:
    """Fashion-MNIST with 2 black pixels on each side and repeated to 3 channels, as CIFAR's are."""
    x, y, x_test, y_test = read_fashion(find("fashion_mnist", root))
    x, x_test = (F.pad(v, [2] * 4).expand(-1, 3, -1, -1).contiguous() for v in (x, x_test))
    return _made("fashion_mnist32", (x, y, x_test, y_test))


@register_dataset("cifar10")
def cifar10(root: Root = None) -> Data:
    """CIFAR-10, 32 x 32 pixels in colour."""
    *images, names = read_cifar("cifar10", find("cifar10", root), SETS["cifar10"].classes)
    return _made("cifar10", images, names)


@register_dataset("cifar100")
def cifar100(root: Root = None) -> Data:
    """CIFAR-100, 32 x 32 pixels in colour, its 100 fine classes."""
    *images, names = read_cifar("cifar100", find("cifar100", root), SETS["cifar100"].classes)
    return _made("cifar100", images, names)


@register_dataset("imagenet")
def imagenet(root: Root = None, workers: int | None = None) -> Stream:
    """ImageNet, or any JPEG files in its layout, a folder per class in train/ and val/; 224 x 224.

    Training images are cut and flipped by torchvision's transforms, whatever `augment` says.
    workers: processes that decode images, by default one per core, at most 8.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    folder = find("imagenet", root)
    crop = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage()]
    whole = [v2.Resize(256), v2.CenterCrop(224), v2.ToImage()]
    try:
        train = ImageFolder(folder / "train", v2.Compose(crop))
        test = ImageFolder(folder / "val", v2.Compose(whole))
    except FileNotFoundError as e:  # no class folder, or one without images
        raise ValueError(f"{folder}: not one folder per class: {e}") from None
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{folder}: train and val must hold the same classes, only one has {odd}")
    *_, mean, std = SETS["imagenet"]
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    data = dataset(train, test, train.classes, mean, std, workers)
    return replace(
        data,
        name="imagenet",
        own_augment=True,
        identity=lambda: files.identity("imagenet", folder)[0],
    )


def load(
    name: str,
    device: str | torch.device = "cpu",
    n_train: int = 0,
    root: Root = None,
    workers: int | None = None,
) -> Data | Stream:
    """`kdkit.data.load` with the files under `root` alone, and `workers` for what is streamed.

    Both are for the data sets whose functions take them; others leave them out.
    """
    given: dict[str, Any] = {"root": root, "workers": workers}
    taken = inspect.signature(loader_of(name)).parameters
    return load_registered(name, device, n_train, **{k: given[k] for k in given if k in taken})


def place_of(name: str) -> Path:
    """Where the files of a data set are. ValueError for a name that is not read from files;
    MissingData, which says how to get them."""
    return find(
        SETS[choose(ALIASES.get(name, name), SETS, "data set read from files")].family, None
    ).absolute()


def download(name: str, root: Root = None, progress: bool = True) -> Path:
    """Fetch a data set through torchvision, which checks its MD5; returns where it is.

    root: where to put it, by default $KDKIT_DATA or the project's `data`. What is already there is
    left alone. progress: show torchvision's bar. Errors: ValueError for an unknown name;
    MissingData for ImageNet, which nobody may pass on; OSError or RuntimeError if the transfer
    fails.
    """
    return files.fetch(
        SETS[choose(ALIASES.get(name, name), SETS, "data set")].family, root, progress
    )


@cache
def _package_digest() -> str:
    """SHA-256 of the images in the package, however their file is packed."""
    digest = hashlib.sha256()
    with np.load(GLYPHS, allow_pickle=False) as z:
        for name in sorted(z.files):
            digest.update(repr((name, z[name].shape, z[name].dtype.str)).encode())
            digest.update(z[name].tobytes())
    return digest.hexdigest()


def identity(name: str, root: Root = None) -> tuple[str, str]:
    """(digest, what it is of) for the files that a data set of this module is read from.

    A SHA-256 of "contents" or of "names and sizes": see `files.identity`; of the images in the
    package, those. Errors: ValueError for another name (`Data.content_digest` tells
    those apart) or a damaged file; MissingData.
    """
    family = SETS[choose(ALIASES.get(name, name), SETS, "data set read from files")].family
    if family == "glyphs":
        return _package_digest(), "package"
    return files.identity(family, find(family, root))
