"""MobileNetV2 (half width) and ShuffleNets for small images, as in RepDistiller.

Sources: Sandler et al. 2018, Zhang et al. 2018 (V1), Ma et al. 2018 (V2).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Net, family
from .resnet import PlainStage, Stage, Stem, blocks, init


def _conv(c_in: int, c: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution and batch norm."""
    conv = nn.Conv2d(c_in, c, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c)]


class Inverted(nn.Sequential):
    """1x1 to t c_in channels, 3x3 of each channel, linear 1x1; a shortcut where sizes agree."""

    def __init__(self, c_in: int, c: int, stride: int, t: int = 6):
        w = t * c_in
        super().__init__(
            *_conv(c_in, w),
            nn.ReLU(inplace=True),
            *_conv(w, w, 3, stride, w),
            nn.ReLU(inplace=True),
            *_conv(w, c),
        )
        self.shortcut = stride == 1 and c_in == c

    def forward(self, x: Tensor) -> Tensor:
        f = super().forward(x)
        return f + x if self.shortcut else f


_MOBILE_STAGES = [  # of f1 to f4: (channels, blocks, stride of the first block), ...
    [(12, 2, 1)],
    [(16, 3, 2)],
    [(32, 4, 2), (48, 3, 1)],
    [(80, 3, 2), (160, 1, 1)],
]


@family("mobilenetv2")
def mobilenetv2(name: str, c_in: int, classes: int) -> Net:
    """MobileNetV2 of width .5, expansion 6. Features are linear bottlenecks, thus their own
    pre-activations; before the pooling a 1x1 convolution makes 1280 channels."""
    parts, c, row = [Stem(c_in, 16, stride=2)], 8, [Inverted(16, 8, 1, t=1)]
    for stage in _MOBILE_STAGES:
        for w, n, stride in stage:
            row += blocks(Inverted, c, w, n, stride)
            c = w
        parts.append(PlainStage(*row))
        row = []
    last = nn.Sequential(*_conv(c, 1280), nn.ReLU(inplace=True))
    return init(Net(parts, 1280, classes, last=last), fc_std=0.01)


class ShuffleV1(nn.Module):
    """1x1 in 3 groups, shuffle, 3x3 of each channel, 1x1 in 3 groups; added to its input, or, at
    stride 2, put next to its average."""

    def __init__(self, c_in: int, c: int, stride: int):
        super().__init__()
        c = c - c_in if stride == 2 else c
        w, g = c // 4, 1 if c_in == 24 else 3  # the stem's 24 channels are not grouped
        self.down = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.main = nn.Sequential(
            *_conv(c_in, w, groups=g),
            nn.ReLU(inplace=True),
            nn.ChannelShuffle(g),
            *_conv(w, w, 3, stride, w),
            nn.ReLU(inplace=True),
            *_conv(w, c, groups=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        f = self.main(x)
        return torch.cat([f, self.down(x)], 1) if self.down else f + x  # (B, c, H, W)


class ShuffleV2(nn.Module):
    """Half of the channels go through 1x1, 3x3 of each channel, 1x1; at stride 2 all of them do,
    and besides through 3x3 of each, 1x1."""

    def __init__(self, c_in: int, c: int, stride: int):
        super().__init__()
        w, self.left = c // 2, None
        if stride == 2:
            self.left = nn.Sequential(*_conv(c_in, c_in, 3, 2, c_in), *_conv(c_in, w))
        self.right = nn.Sequential(
            *_conv(c_in if self.left else w, w),
            nn.ReLU(inplace=True),
            *_conv(w, w, 3, stride, w),
            *_conv(w, w),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.left(x), x) if self.left else x.chunk(2, 1)  # (B, c/2, H, W) each
        return torch.cat([a, self.right(b)], 1)  # (B, c, H, W)


class Shuffled(Stage):
    """A `Stage` that shuffles the two halves of the channels after each ReLU."""

    bn = None  # only half of a map comes out of the last batch norm

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            pre = block(f)
            f = F.channel_shuffle(F.relu(pre), 2)
        return f, pre


@family("shufflenetv1", "shufflenetv2")
def shufflenet(name: str, c_in: int, classes: int) -> Net:
    """ShuffleNetV1 (3 groups) and V2 (width 1), each with a 1x1 stem; torch's initialisation."""
    v1 = name == "shufflenetv1"
    unit, stage = (ShuffleV1, Stage) if v1 else (ShuffleV2, Shuffled)
    parts, c = [Stem(c_in, 24, 1)], 24
    for w, n in zip((240, 480, 960) if v1 else (116, 232, 464), (4, 8, 4), strict=True):
        parts.append(stage(*blocks(unit, c, w, n, stride=2)))
        c = w
    last = None if v1 else nn.Sequential(*_conv(c, 1024), nn.ReLU(inplace=True))
    return Net(parts, c if v1 else 1024, classes, last=last)
