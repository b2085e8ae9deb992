"""ResNets: CIFAR's (basic block, bottleneck), wide ones, and torchvision's; blocks in a row.

Sources: He et al. 2016 (Sec. 4.2 for CIFAR), Zagoruyko and Komodakis 2016 (WRN); the feature
points are RepDistiller's.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Net, family


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut; `forward` gives the sum *before* the last ReLU."""

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

    expansion = 4  # channels out, for each c
    inner = 1  # channels between the 1x1 convolutions, for each c

    def __init__(self, c_in: int, c: int, stride: int = 1):
        super().__init__()
        w = c * self.inner
        self.conv1 = nn.Conv2d(c_in, w, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.conv2 = nn.Conv2d(w, w, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(w)
        self.conv3 = nn.Conv2d(w, 4 * c, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * c)
        self.down = _shortcut(c_in, 4 * c, stride)

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.bn1(self.conv1(x)), inplace=True)
        f = F.relu(self.bn2(self.conv2(f)), inplace=True)
        return self.bn3(self.conv3(f)).add_(self.down(x))


class WideBottleneck(Bottleneck):
    """A bottleneck that is eight times wider inside (OKDDip's "WRN-20-8")."""

    inner = 8


class Preact(nn.Module):
    """WRN's block: batch norm and ReLU before each 3x3 convolution; `forward` gives the raw sum."""

    def __init__(self, c_in: int, c: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.down = nn.Conv2d(c_in, c, 1, stride, bias=False) if c_in != c else None

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.bn1(x))
        x = self.down(f) if self.down else x
        return self.conv2(F.relu(self.bn2(self.conv1(f)), inplace=True)).add_(x)


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


def blocks(block, c_in: int, c: int, n: int, stride: int = 1) -> list[nn.Module]:
    """n times `block(channels in, c, stride)`; the first one changes channels and size."""
    c_out = c * getattr(block, "expansion", 1)
    return [block(c_out if i else c_in, c, 1 if i else stride) for i in range(n)]


class Stage(nn.Module):
    """Blocks in a row, a ReLU after each. Returns the map after the last ReLU and before it."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @property
    def bn(self) -> nn.BatchNorm2d | None:
        """The batch norm that the last block ends in, its shortcut apart; None: it does not."""
        main = [m for k, m in self.blocks[-1].named_modules() if not k.startswith("down")]
        return main[-1] if isinstance(main[-1], nn.BatchNorm2d) else None

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        for i, block in enumerate(self.blocks, 1):
            pre = block(f)
            f = F.relu(pre, inplace=i < len(self.blocks))  # only the last sum is handed out
        return f, pre


class PlainStage(Stage):
    """Blocks in a row and nothing between them; the map is its own pre-activation."""

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            f = block(f)
        return f, f


class PreactStage(PlainStage):
    """The raw map and, as its pre-activation, its batch norm: the first of the next stage in the
    WRN paper, here the last of this one, so that it runs once. A Net with
    `hand_on="preactivation"` gives it to the next stage."""

    def __init__(self, *blocks: nn.Module, c: int):
        super().__init__(*blocks)
        self.norm = nn.BatchNorm2d(c)

    bn = property(lambda self: self.norm)

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        f, _ = super().forward(f)
        return f, self.norm(f)


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


def init(net: Net, fc_std: float | None = None, mode: str = "fan_out") -> Net:
    """He initialisation, bias 0; batch norm 1 and 0; linear layers N(0, fc_std) and bias 0, or
    torch's default."""
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode=mode, nonlinearity="relu")
        elif isinstance(m, nn.Linear) and fc_std is not None:
            nn.init.normal_(m.weight, 0, fc_std)
        else:
            continue
        if m.bias is not None:
            nn.init.zeros_(m.bias)
    return net


def _resnet(block, counts, widths, classes: int, stem: Stem, branch_parts: int = 1) -> Net:
    parts, c = [stem], stem.conv.out_channels
    for i, (n, w) in enumerate(zip(counts, widths, strict=True)):
        parts.append(Stage(*blocks(block, c, w, n, stride=2 if i else 1)))
        c = w * getattr(block, "expansion", 1)
    return init(Net(parts, c, classes, branch_parts))


@family(*(f"resnet{d}" for d in (8, 14, 20, 32, 44, 56, 110)), "resnet8x4", "resnet32x4")
def cifar(name: str, c_in: int, classes: int, width: float = 1) -> Net:
    """CIFAR ResNet-(6n+2), basic blocks, stem 16 and stages 16-32-64 times `width` (x4: stem 32,
    stages 64-128-256); branches share all but the last stage. DCKD's ResNets (He et al. 2016,
    Sec. 4.2; widths as in RepDistiller)."""
    depth, _, x4 = name[6:].partition("x")
    w = [round(c * width) for c in ((32, 64, 128, 256) if x4 else (16, 16, 32, 64))]
    return _resnet(Basic, [(int(depth) - 2) // 6] * 3, w[1:], classes, Stem(c_in, w[0]))


@family("resnet110_bottleneck", "wrn_20_8_bottleneck")
def cifar_bottleneck(name: str, c_in: int, classes: int, width: float = 1) -> Net:
    """OKDDip's "ResNet-110": bottlenecks [12, 12, 12], inner widths 16-32-64 (1,170,868
    parameters at 100 classes); not DCKD's `resnet110`, which has basic blocks. Its "WRN-20-8":
    [2, 2, 2] of them, eight times wider inside (6,871,220); not the WRN of its authors."""
    block, n = (Bottleneck, 12) if name == "resnet110_bottleneck" else (WideBottleneck, 2)
    w = [round(c * width) for c in (16, 16, 32, 64)]
    return _resnet(block, [n] * 3, w[1:], classes, Stem(c_in, w[0]))


@family("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")
def wrn(name: str, c_in: int, classes: int) -> Net:
    """Wide ResNet `wrn_<6n+4>_<k>`: stem 16, stages 16k-32k-64k; features are the raw sums."""
    depth, k = map(int, name[4:].split("_"))
    parts, c = [PlainStage(nn.Conv2d(c_in, 16, 3, 1, 1, bias=False))], 16
    for i, w in enumerate((16 * k, 32 * k, 64 * k)):
        row = blocks(Preact, c, w, (depth - 4) // 6, stride=2 if i else 1)
        if i:
            row[0].bn1 = nn.Identity()  # the stage before it has it
        parts.append(PreactStage(*row, c=w))
        c = w
    net = Net(parts, c, classes, last=nn.ReLU(), hand_on="preactivation")
    nn.init.zeros_(net.fc.bias)
    return init(net)


_COUNTS = {
    "resnet18": (Basic, (2, 2, 2, 2)),
    "resnet34": (Basic, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


@family(*_COUNTS, *(f"{name}_imagenet" for name in _COUNTS))
def torchvisions(name: str, c_in: int, classes: int, width: float = 1) -> Net:
    """torchvision's ResNet-18/34/50. `_imagenet`: as they are, for 224 pixels, and branches share
    all but the last two stages (OKDDip); else for small images: 3x3 stem, stride 1, no
    max-pooling (RepDistiller)."""
    base, _, imagenet = name.partition("_")
    block, counts = _COUNTS[base]
    w = [round(c * width) for c in (64, 64, 128, 256, 512)]
    stem = Stem(c_in, w[0], 7, 2, pool=True) if imagenet else Stem(c_in, w[0])
    return _resnet(block, counts, w[1:], classes, stem, branch_parts=2 if imagenet else 1)
