"""What a caller gives, as tensors: every refusal is one line that says what was seen and what is
allowed. Nothing that is given is changed, and it is copied only where torch or its type needs it.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_same(what: str, seen: Any, allowed: Any) -> None:
    """ValueError unless what is seen is what is allowed."""
    if seen != allowed:
        raise ValueError(f"{what} {seen}, allowed is {allowed}")


def kind(x: Any) -> str:
    """Shape and type of a tensor, to be compared and told; of anything else its type."""
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__


def as_tensor(given: Any, what: str) -> Tensor:
    """The tensor of a tensor, array or list of numbers; it shares the memory where it can."""
    if isinstance(given, Tensor):
        return given.detach()
    try:
        return torch.from_numpy(np.require(given, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: allowed are tensors and arrays of numbers ({error})") from None


def as_images(given: Any, what: str) -> Tensor:
    """Images as (N, C, H, W) uint8 or finite float32, from (N, C, H, W) or grey (N, H, W)."""
    x = as_tensor(given, what)
    x = x[:, None] if x.ndim == 3 else x
    if x.dtype != torch.uint8 and not x.is_floating_point() or x.ndim != 4 or not x.numel():
        raise ValueError(
            f"{what} is {kind(x)}, allowed are uint8 or float (N, C, H, W) or (N, H, W), not empty"
        )
    _, second, third, last = x.shape
    if last in (1, 3, 4) and last < min(second, third):
        raise ValueError(
            f"{what} is {kind(x)}, allowed is (N, C, H, W): perhaps permute(0, 3, 1, 2)"
        )
    x = x if x.dtype == torch.uint8 else x.float()
    if not x.isfinite().all():
        raise ValueError(f"{what} is not finite, allowed are finite numbers")
    return x


def as_labels(given: Any, count: int, what: str) -> Tensor:
    """The labels of `count` images as (count,) int64, whole and not negative."""
    y = as_tensor(given, what)
    check_same(f"{what} has the shape", tuple(y.shape), (count,))
    whole = y.long()
    wrong = (whole < 0) | (whole.to(y.dtype) != y)  # the second also where it is not finite
    if wrong.any():
        raise ValueError(f"{what} holds {y[wrong][0].item()}, allowed are whole numbers from 0")
    return whole


def as_names(given: Iterable[str] | None, y: Tensor, y_test: Tensor) -> tuple[str, ...]:
    """The names of the K classes; without any, "0" to the largest label of either set."""
    top = int(max(y.max(), y_test.max()))
    names = tuple(map(str, range(min(top + 1, 10**6)) if given is None else given))
    if isinstance(given, str) or len(set(names)) < len(names):
        raise ValueError(f"names={given!r}: allowed are different names, one per class")
    if top >= len(names):
        raise ValueError(f"there is a label {top}, {len(names)} names allow 0 to {len(names) - 1}")
    return names


def as_scale(
    mean: Any, std: Any, channels: int, parts: Iterable[Tensor]
) -> list[tuple[float, ...]]:
    """Mean and deviation of each channel: as given and checked, else those of the images.

    parts: images (B, C, H, W), read only where something is not given; uint8 counts in units of
    0..1. The deviation of a constant channel becomes 1.
    """
    if mean is None or std is None:
        moments = []
        for part in parts:
            pixels = part.cpu().double().flatten(2) / (255 if part.dtype == torch.uint8 else 1)
            moments.append(torch.stack([pixels.mean(2), pixels.square().mean(2)]))  # (2, B, C)
        own, squares = torch.cat(moments, 1).mean(1)
        spread = (squares - own.square()).clamp(0).sqrt()
        spread = spread.where(spread > 1e-6 * own.abs(), 1)  # what is closer to 0 is rounding
        mean = own if mean is None else mean
        std = spread if std is None else std
    scale = []
    for what, given, low in (("mean", mean, -torch.inf), ("std", std, 0)):
        numbers = as_tensor(given, what).double().flatten().tolist()
        if len(numbers) != channels or not all(low < number < torch.inf for number in numbers):
            raise ValueError(f"{what}={given}: allowed are {channels} numbers above {low}")
        scale.append(tuple(numbers))
    return scale
