"""A run's random numbers come from its own generators, whatever other code in the process does.

Layers and dropout draw from torch's global generator, which any thread may move. Inside `own_draws`
their draws come from a generator that is seeded here, in this thread alone; the global one is
neither read nor set. Tensors that are made without a dtype or device are float32 on the CPU there,
whatever default another thread has set.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# For each operator that takes no generator: what fills an empty tensor from the same distribution.
_FILLS = {
    "aten::rand": "uniform_",
    "aten::rand_like": "uniform_",
    "aten::randn": "normal_",
    "aten::randn_like": "normal_",
    "aten::randint": "random_",
    "aten::randint_like": "random_",
}


def seed_of(*keys) -> int:
    """A 63-bit seed from any values: each draw of a run has a generator of its own, so nothing in a
    kernel can disturb it and no generator has a state to save."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def integers(high: int, size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Whole numbers from 0 to high - 1, int64, drawn on the CPU."""
    return torch.randint(high, size, generator=generator, dtype=torch.int64, device="cpu")


def permutation(n: int, generator: torch.Generator) -> torch.Tensor:
    """The numbers from 0 to n - 1 in random order, (n,) int64, drawn on the CPU."""
    return torch.randperm(n, generator=generator, dtype=torch.int64, device="cpu")


class _Draws(TorchDispatchMode):
    """Gives each operator that draws a generator of its device."""

    def __init__(self, seed: int):
        super().__init__()
        self.seed, self.generators = seed, {}

    def generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator"):
            return func(*args, **kwargs)
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        device = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
        generator = self.generator(device)
        name = func._schema.name
        if any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **(kwargs | {"generator": generator}))
        if name == "aten::native_dropout":
            x, p, training = args
            keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
            return (x * keep / (1 - p), keep) if training else (x, torch.ones_like(keep))
        if name == "aten::randperm":
            return torch.randperm(*args, **(kwargs | {"generator": generator}))
        if name in _FILLS:
            if name.endswith("_like"):
                out, bounds = torch.empty_like(args[0], **kwargs), args[1:]
            else:
                *bounds, size = args
                out = torch.empty(size, **kwargs)
            if len(bounds) == 1:  # of randint: the lower bound is 0 if it is not given
                bounds = 0, *bounds
            return getattr(out, _FILLS[name])(*bounds, generator=generator)
        raise ValueError(f"{name} draws from torch's global generator, which a run must not touch")


class _Defaults(TorchFunctionMode):
    """Tensors without a dtype or device are float32 on the CPU."""

    FLOATS = (
        torch.empty,
        torch.zeros,
        torch.ones,
        torch.rand,
        torch.randn,
        torch.eye,
        torch.linspace,
        torch.logspace,
    )
    OTHERS = (
        torch.tensor,
        torch.full,
        torch.arange,
        torch.as_tensor,
        torch.randint,
        torch.randperm,
        torch.scalar_tensor,
    )

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.FLOATS:
            kwargs["dtype"] = kwargs.get("dtype") or torch.float32
        creates_tensor = func in self.FLOATS or func in self.OTHERS
        if creates_tensor and kwargs.get("device") is None and not _has_array(args):
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        untyped = func in self.OTHERS and kwargs.get("dtype") is None and not _has_array(args)
        return result.float() if untyped and result.is_floating_point() else result


def _has_array(args: tuple) -> bool:
    return any(
        isinstance(argument, torch.Tensor) or hasattr(argument, "dtype") for argument in args
    )


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """Inside, whatever draws from torch without a generator draws from one seeded with `seed`."""
    with _Defaults(), _Draws(seed):
        yield


_DRAWING = (
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)


def may_draw(module: nn.Module) -> bool:
    """Can its forward pass draw? True for torch's random layers, and for any module that is neither
    kdkit's nor torch's."""
    return any(
        isinstance(part, _DRAWING) or not type(part).__module__.startswith(("kdkit.", "torch.nn."))
        for part in module.modules()
    )
