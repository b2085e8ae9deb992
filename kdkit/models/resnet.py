"""ResNets: CIFAR's (basic block, bottleneck) and torchvision's adapted to small images.

Sources: He et al. 2016 (Sec. 4.2 for CIFAR); the feature points are RepDistiller's.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Net, register


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut; `forward` gives the sum *before* the last ReLU."""

    expansion = 1

    def __init__(self, c_in: int, c: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.down = _shortcut(c_in, c, stride)

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(f)).add_(self.down(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; `forward` gives the sum before the last ReLU."""

    expansion = 4

    def __init__(self, c_in: int, c: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv3 = nn.Conv2d(c, 4 * c, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * c)
        self.down = _shortcut(c_in, 4 * c, stride)

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.bn1(self.conv1(x)), inplace=True)
        f = F.relu(self.bn2(self.conv2(f)), inplace=True)
        return self.bn3(self.conv3(f)).add_(self.down(x))


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class Stage(nn.Module):
    """Blocks in a row. Returns the feature map after the last ReLU and before it."""

    def __init__(self, block, c_in: int, c: int, n: int, stride: int):
        super().__init__()
        c_out = c * block.expansion
        self.blocks = nn.ModuleList(
            block(c_in if i == 0 else c_out, c, stride if i == 0 else 1) for i in range(n)
        )

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        for i, block in enumerate(self.blocks, 1):
            pre = block(f)
            f = F.relu(pre, inplace=i < len(self.blocks))  # only the last sum is handed out
        return f, pre


class Stem(nn.Module):
    """Convolution, batch norm, ReLU; `pool` adds ImageNet's max-pooling. Returns f0 twice."""

    def __init__(self, c_in: int, c: int, kernel: int = 3, stride: int = 1, pool: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c)
        self.pool = nn.MaxPool2d(3, 2, 1) if pool else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.pool(F.relu(self.bn(self.conv(x)), inplace=True))
        return f, f


def _init(net: Net) -> Net:
    """He initialisation (fan-out), batch norm 1 and 0; linear layers keep torch's default."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return net


def _resnet(block, counts, widths, c_in: int, classes: int, stem: Stem, split: int) -> Net:
    parts, c = [stem], stem.conv.out_channels
    for i, (n, w) in enumerate(zip(counts, widths, strict=True)):
        parts.append(Stage(block, c, w, n, stride=1 if i == 0 else 2))
        c = w * block.expansion
    return _init(Net(parts, c, classes, split))


@register(*(f"resnet{d}" for d in (8, 14, 20, 32, 44, 56, 110)))
def cifar(name: str, c_in: int, classes: int, width: float = 1) -> Net:
    """CIFAR ResNet-(6n+2), basic blocks, stages 16-32-64 times `width`; branches share all but
    the last stage. DCKD's ResNets (He et al. 2016, Sec. 4.2; widths as in RepDistiller)."""
    n = (int(name[6:]) - 2) // 6
    w = [round(c * width) for c in (16, 16, 32, 64)]
    return _resnet(Basic, [n] * 3, w[1:], c_in, classes, Stem(c_in, w[0]), split=3)


@register("resnet110_bottleneck")
def cifar_bottleneck(name: str, c_in: int, classes: int, width: float = 1) -> Net:
    """OKDDip's "ResNet-110": bottlenecks [12, 12, 12], inner widths 16-32-64 (1,170,868
    parameters at 100 classes); not DCKD's `resnet110`, which has basic blocks."""
    w = [round(c * width) for c in (16, 16, 32, 64)]
    return _resnet(Bottleneck, [12] * 3, w[1:], c_in, classes, Stem(c_in, w[0]), split=3)


@register("resnet18", "resnet34")
def small(name: str, c_in: int, classes: int, width: float = 1) -> Net:
    """torchvision's ResNet-18/34 for small images: 3x3 stem, stride 1, no max-pooling."""
    counts = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}[name]
    w = [round(c * width) for c in (64, 64, 128, 256, 512)]
    return _resnet(Basic, counts, w[1:], c_in, classes, Stem(c_in, w[0]), split=4)
