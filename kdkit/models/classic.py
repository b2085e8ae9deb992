"""VGG (RepDistiller's and OKDDip's) and OKDDip's DenseNet, for small images.

Sources: Simonyan and Zisserman 2015, Huang et al. 2017; feature points of VGG are RepDistiller's.
"""

import torch
from torch import Tensor, nn

from .base import Net, family
from .resnet import PlainStage, PreactStage, Stage, blocks, init

_CONVS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _conv(c_in: int, c: int, stride: int) -> nn.Sequential:
    pool = [nn.MaxPool2d(2)] if stride == 2 else []
    return nn.Sequential(*pool, nn.Conv2d(c_in, c, 3, padding=1), nn.BatchNorm2d(c))


@family(*_CONVS, "vgg16_okddip")
def vgg(name: str, c_in: int, classes: int) -> Net:
    """VGG with batch norm; the stem is its first stage, branches have the last one and the
    classifier for themselves.

    RepDistiller's: stages 2 to 4 begin with max-pooling, then average pooling and one linear
    layer. OKDDip's (15,299,748 parameters at 100 classes): each of the five stages ends with
    max-pooling, so that h is the flattened map (512), then three linear layers with dropout
    between them, of 0 and, in `Branches`, of .5. Weights of linear layers start as N(0, .01); in
    OKDDip's branches those of the method (Wq, Wk) do as well: that is the method's matter.
    """
    okddip = name == "vgg16_okddip"
    parts = []
    for i, (n, c) in enumerate(
        zip(_CONVS[name[:5].rstrip("_")], (64, 128, 256, 512, 512), strict=True)
    ):
        convs = blocks(_conv, c_in, c, n, stride=2 if 0 < i < 4 and not okddip else 1)
        if okddip:
            convs[-1].append(nn.MaxPool2d(2, ceil_mode=True))  # 28 pixels: 14, 7, 4, 2, 1
        if i == 0:
            convs = [conv.append(nn.ReLU(inplace=True)) for conv in convs]
        parts.append(Stage(*convs) if i else PlainStage(*convs))
        c_in = c
    net = Net(parts, 512, classes)
    if okddip:
        hidden = []
        for _ in range(2):
            hidden += [nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Dropout(0.0)]
        net.fc = nn.Sequential(*hidden, net.fc)
    return init(net, fc_std=0.01)


def _bn_conv(c_in: int, c: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(c_in), nn.ReLU(inplace=True), conv]


class Dense(nn.Sequential):
    """k new channels, through a 1x1 convolution of 4k (the B of BC), next to those that came."""

    def __init__(self, c: int, k: int):
        super().__init__(*_bn_conv(c, 4 * k, 1), *_bn_conv(4 * k, k, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)  # (B, c + k, H, W)


@family("densenet_40_12")
def densenet(name: str, c_in: int, classes: int) -> Net:
    """OKDDip's "DenseNet-40-12": DenseNet-BC, k = 12, three blocks of 6 layers (188,092 parameters
    at 100 classes). Features are the maps after each transition and the last block's.

    Branches have their last block for themselves; in OKDDip's code they share one object.
    """
    parts, c, k = [PlainStage(nn.Conv2d(c_in, 24, 3, padding=1, bias=False))], 24, 12
    for i in range(3):
        layers = [Dense(c + j * k, k) for j in range(6)]
        c += 6 * k
        if i < 2:
            half = nn.Sequential(*_bn_conv(c, c // 2, 1), nn.AvgPool2d(2))
            parts.append(PlainStage(*layers, half))
            c //= 2
    net = Net(
        [*parts, PreactStage(*layers, c=c)], c, classes, last=nn.ReLU(), hand_on="preactivation"
    )
    nn.init.zeros_(net.fc.bias)
    return init(net, mode="fan_in")
