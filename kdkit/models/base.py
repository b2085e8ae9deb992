"""The one contract of all networks: `forward(x) -> Out`, and the registry that builds them."""

import re
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..fields import choose


class Out(NamedTuple):
    """What a network, or a group of m of them, answers to a batch.

    | field   | one network                          | group                              |
    |---------|--------------------------------------|------------------------------------|
    | logits  | z (B, K)                             | (m, B, K)                          |
    | feats   | f0 stem, f1..fn stages, (B, C, H, W) | Branches: the trunk's; Peers: m tuples |
    | preacts | the same before the last ReLU        | likewise                           |
    | pooled  | h (B, D)                             | (m, B, D), a tuple where D differs |

    The stem's pre-activation is its feature itself, as in RepDistiller.
    """

    logits: Tensor
    feats: tuple
    preacts: tuple
    pooled: Tensor | tuple


def as_out(result: Out | Tensor) -> Out:
    """What a network returned, as an Out: logits (B, K) alone have no features.

    ValueError, which names what was returned, for anything else.
    """
    if isinstance(result, Out):
        return result
    if isinstance(result, Tensor) and result.ndim == 2:
        return Out(result, (), (), None)
    what = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
    raise ValueError(f"a network must return logits (B, K) or an Out, not {what}")


class Net(nn.Module):
    """A network as a row of `parts` and a classifier, so that `Branches` can split it.

    parts: stem and stages in order; each takes a map and returns its feature, or the pair
    (feature, pre-activation); a feature alone is its own pre-activation. A part must not change
    its input in place.  width: D, the channels that the pooling averages to h.  branch_parts: how
    many of the last parts each of a group of branches has for itself; `split` are those that it
    shares.  last: layers between the last part and the pooling.  hand_on: which of its two results
    a part hands on to the next one.

        >>> def student():
        ...     stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        ...     stage = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        ...     return Net([stem, stage], width=16, classes=10)
        >>> out = student()(torch.zeros(4, 3, 32, 32))
        >>> [tuple(f.shape) for f in out.feats], tuple(out.pooled.shape)
        ([(4, 8, 32, 32), (4, 16, 16, 16)], (4, 16))
        >>> from kdkit.models import Branches
        >>> Branches([student(), student()])(torch.zeros(4, 3, 32, 32)).logits.shape
        torch.Size([2, 4, 10])
    """

    def __init__(
        self,
        parts: list[nn.Module],
        width: int,
        classes: int,
        branch_parts: int = 1,
        last: nn.Module | None = None,
        hand_on: Literal["feature", "preactivation"] = "feature",
    ):
        super().__init__()
        self.parts, self.split = nn.ModuleList(parts), len(parts) - branch_parts
        self.last = last or nn.Identity()
        self.hand_on = choose(hand_on, ("feature", "preactivation"), "hand_on")
        self.fc = nn.Linear(width, classes)

    def run_parts(
        self, f: Tensor, start: int = 0, stop: int | None = None
    ) -> tuple[tuple, tuple, Tensor]:
        """Features and pre-activations of `parts[start:stop]`, and what the next part takes."""
        feats, preacts = [], []
        for part in self.parts[start:stop]:
            result = part(f)
            feature, preact = result if isinstance(result, tuple) else (result, result)
            feats.append(feature)
            preacts.append(preact)
            f = preact if self.hand_on == "preactivation" else feature
        return tuple(feats), tuple(preacts), f

    def head(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """What the last part hands on (B, C, H, W) -> logits (B, K), pooled h (B, D)."""
        h = self.last(f).mean((2, 3))
        return self.fc(h), h

    def forward(self, x: Tensor) -> Out:
        feats, preacts, f = self.run_parts(x)
        logits, h = self.head(f)
        return Out(logits, feats, preacts, h)

    def stage_bns(self) -> list[nn.BatchNorm2d]:
        """For f1..fn the batch norm that gives the stage's pre-activation (where a block has a
        shortcut: the last one before the sum), from which OFD derives its margins.

        ValueError where a stage has none: ShuffleNetV2, DenseNet, OKDDip's VGG-16.
        """
        bns = [getattr(part, "bn", None) for part in self.parts[1:]]
        if None in bns:
            raise ValueError(
                f"stage {bns.index(None) + 1} of this network does not end in a batch "
                "norm; ResNets, WRN, VGG, MobileNetV2 and ShuffleNetV1 do"
            )
        return bns


_REGISTRY: dict[str, Callable[..., nn.Module]] = {}  # (channels, classes) -> a network


def network(*names: str):
    """Decorator: registers `(channels, classes) -> nn.Module` under one or several names.

    channels: of the images.  The function is returned as it is. A name that is known already is
    replaced, so that a notebook's cell can be run again. Its module returns logits (B, K) or an
    Out (`wrap`, `Net`).

        >>> @network("mlp")
        ... def mlp(channels, classes):
        ...     return nn.Sequential(nn.Flatten(), nn.Linear(channels * 32 * 32, classes))
        >>> build("mlp", 3, 10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    ValueError for a name of other than letters, digits, "_", "." and "-", and for none.
    """
    for name in names or [""]:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f'network name {name!r}: letters, digits, "_", ".", "-", as in "mlp"')

    def add(function):
        _REGISTRY.update(dict.fromkeys(names, function))
        return function

    return add


class _Member(partial):
    """A function of a family of networks, for one of its names."""


def family(*names: str):
    """As `network`, for a function that takes its name first; where it has a parameter `width`,
    `name_w2` is a network as well."""

    def add(function):
        for name in names:
            network(name)(_Member(function, name))
        return function

    return add


def list_models() -> list[str]:
    """Names that `build` knows; those of ResNets also take a width, as in `resnet14_w2`."""
    return list(_REGISTRY)


def _find(name: str) -> tuple[Callable, dict[str, float]]:
    """The registered function of a network, and the width in its name."""
    base, _, width = (name, "", "") if name in _REGISTRY else name.partition("_w")
    if not re.fullmatch(r"\d+(\.\d+)?", width) or float(width) < 1 / 16:
        return _REGISTRY[choose(name, _REGISTRY, "network")], {}
    function = _REGISTRY[choose(base, _REGISTRY, "network")]
    if "width" not in signature(function).parameters:
        raise ValueError(f"network {name!r}: {base} takes no width; ResNets do, as in resnet14_w2")
    return function, {"width": float(width)}


def build(name: str, c_in: int = 3, classes: int = 100) -> nn.Module:
    """Build one network. `name_w2` doubles every width of a ResNet; 1/16 is the least.

    Raises ValueError, with the nearest names, for a name that is not in `list_models()`, for a
    width of a network that has only one (WRN, VGG, DenseNet, MobileNetV2, ShuffleNets), and for
    a registered function that returns no module.
    """
    function, width = _find(name)
    net = function(c_in, classes, **width)
    if not isinstance(net, nn.Module):
        raise ValueError(f"network {name!r}: its function returned {type(net).__name__}, no module")
    return net


def builder_of(name: str) -> Callable:
    """The function that builds the network, as it was written; its source can be hashed."""
    function, _ = _find(name)
    return function.func if isinstance(function, _Member) else function


def count(net: nn.Module, x: Tensor) -> tuple[int, int]:
    """(parameters, multiply-adds of convolutions and linear layers for one image) of `net(x)`.

    x: (B, C, H, W). Biases, batch norm, ReLU and pooling are not counted.
    """
    macs = 0

    def add(layer, args, out):
        nonlocal macs
        fan_in = layer.weight[0].numel()  # multiply-adds for each output element
        macs += fan_in * out.numel() // len(x)

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(add) for m in net.modules() if isinstance(m, kinds)]
    training = net.training
    with torch.no_grad():
        net.eval()(x)
    net.train(training)
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in net.parameters()), macs


def memory_format(net: nn.Module, size: int) -> torch.memory_format:
    """channels_last, which is faster, unless oneDNN's kernels for it write out of bounds.

    size: the longer side of an image. They have been seen to do so where a convolution's width is
    no multiple of 8 (4 channels, AVX2), and where a strided 1x1 convolution has fewer than 16
    channels coming in and a map of 56 pixels or more (AVX-512); half of that is kept away from.
    """
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    odd = any(m.out_channels % 8 for m in convolutions)
    narrow = any(
        m.in_channels < 16 and max(m.kernel_size) == 1 and max(m.stride) > 1 for m in convolutions
    )
    unsafe = odd or narrow and size > 32
    return torch.contiguous_format if unsafe else torch.channels_last
