"""The one contract of all networks: `forward(x) -> Out`, and the registry that builds them."""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import choose


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


class Net(nn.Module):
    """A network as a row of `parts`, each `f -> (feature, pre-activation)`, and a classifier.

    parts: stem and stages in order.  width: D of the pooled feature h.  own: how many of the last
    parts each of a group of branches has for itself; `split` are those that it shares
    (`Branches`).  last: layers between the last part and the pooling.  passes: which of its two
    results a part hands on to the next one, 0 the feature or 1 the pre-activation.
    """

    def __init__(
        self,
        parts: list[nn.Module],
        width: int,
        classes: int,
        own: int = 1,
        last: nn.Module | None = None,
        passes: int = 0,
    ):
        super().__init__()
        self.parts, self.split = nn.ModuleList(parts), len(parts) - own
        self.last, self.passes = last or nn.Identity(), passes
        self.fc = nn.Linear(width, classes)

    def run_parts(
        self, f: Tensor, start: int = 0, stop: int | None = None
    ) -> tuple[tuple, tuple, Tensor]:
        """Features and pre-activations of `parts[start:stop]`, and what the next part takes."""
        pairs = []
        for part in self.parts[start:stop]:
            pairs.append(part(f))
            f = pairs[-1][self.passes]
        return *zip(*pairs, strict=True), f

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
        bns = [part.bn for part in self.parts[1:]]
        if None in bns:
            raise ValueError(
                f"stage {bns.index(None) + 1} of this network does not end in a batch "
                "norm; ResNets, WRN, VGG, MobileNetV2 and ShuffleNetV1 do"
            )
        return bns


_REGISTRY: dict[str, Callable[..., Net]] = {}
_FIXED: set[str] = set()  # networks of one width


def register(*names: str, widths: bool = True):
    """Decorator: `builder(name, c_in, classes, width) -> Net` builds the networks `names`; with
    `widths=False` it is `builder(name, c_in, classes)`, and a width is refused."""

    def add(builder):
        _REGISTRY.update(dict.fromkeys(names, builder))
        _FIXED.update(() if widths else names)
        return builder

    return add


def models() -> list[str]:
    """Names that `build` knows; those of ResNets also take a width, as in `resnet14_w2`."""
    return list(_REGISTRY)


def build(name: str, c_in: int = 3, classes: int = 100) -> Net:
    """Build one network. `name_w2` doubles every width of a ResNet; 1/16 is the least.

    Raises ValueError, with the nearest names, for a name that is not in `models()`, and for a
    width of a network that has only one (WRN, VGG, DenseNet, MobileNetV2, ShuffleNets).
    """
    base, _, width = (name, "", "1") if name in _REGISTRY else name.partition("_w")
    if not re.fullmatch(r"\d+(\.\d+)?", width) or float(width) < 1 / 16:
        base = name
    builder = _REGISTRY[choose(base, models(), "network")]
    if base not in _FIXED:
        return builder(base, c_in, classes, float(width))
    if base != name:
        raise ValueError(f"network {name!r}: {base} takes no width; ResNets do, as in resnet14_w2")
    return builder(base, c_in, classes)


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


def memory_format(net: nn.Module) -> torch.memory_format:
    """channels_last, which is faster, where each convolution's width is a multiple of 8: with
    others oneDNN's kernels for it have been seen to write out of bounds (4 channels, AVX2)."""
    widths = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    odd = any(c % 8 for c in widths)
    return torch.contiguous_format if odd else torch.channels_last
