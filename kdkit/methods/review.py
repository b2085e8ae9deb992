"""Distilling Knowledge via Knowledge Review."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Epochs
from .hints import Hinted, stages


def hcl(f: Tensor, g: Tensor) -> Tensor:
    """Hierarchical context loss: mean squared difference of two maps (B, C, H, W), as they are and
    pooled to 4x4, 2x2 and 1x1 (those smaller than H), each with half the weight of the one
    before; the weights are divided by their sum."""
    sizes = [f.shape[2:], *(n for n in (4, 2, 1) if n < f.shape[2])]
    w = [0.5**i for i in range(len(sizes))]
    pooled = ((F.adaptive_avg_pool2d(v, n) for v in (f, g)) for n in sizes)
    return sum(w_i * F.mse_loss(*both) for w_i, both in zip(w, pooled, strict=True)) / sum(w)


class ABF(nn.Module):
    """Attention-based fusion of a student's map with what comes from the coarser stages."""

    def __init__(self, c_in: int, mid: int, c_out: int, fuse: bool):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(c_in, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.conv2 = nn.Sequential(
            nn.Conv2d(mid, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        )
        self.attention = nn.Conv2d(2 * mid, 2, 1) if fuse else None
        for conv in (self.conv1[0], self.conv2[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, f: Tensor, x: Tensor | None, size: tuple) -> tuple[Tensor, Tensor]:
        """f: (B, c_in, h, w); x: (B, mid, ., .) of the coarser stage, None for the coarsest.

        Returns (B, c_out, *size), to compare with the teacher's map, and (B, mid, *size).
        """
        fused = self.conv1(f)
        if x is not None:
            x = F.interpolate(x, f.shape[2:])
            a = self.attention(torch.cat([fused, x], 1)).sigmoid()  # (B, 2, h, w)
            fused = fused * a[:, :1] + x * a[:, 1:]
        fused = F.interpolate(fused, size)
        return self.conv2(fused), fused


class ReviewKD(Hinted):
    """Distilling Knowledge via Knowledge Review: Chen, Liu, Zhao, Jia; CVPR 2021; arXiv 2104.09044.

    L = r CE(z, y) + beta w(e) sum_i HCL(o_i, f_t^i), (o_i, x_i) = ABF_i(f_s^i, x_{i+1}),
    from the coarsest level, the pooled feature, to the finest; w(e) = min(1, e / warm-up)

    | symbol | code                | shape            |
    |--------|---------------------|------------------|
    | z      | s.logits            | (B, K)           |
    | f_s^i  | s.feats[i], s.pooled | (B, C_s, h, w)  |
    | f_t^i  | t.preacts[i], t.pooled | (B, C_t, H, W) |
    | ABF_i  | abfs, coarsest first | o: (B, C_t, H, W), x: (B, mid, H, W) |
    | w(e)   | ramp                |                  |

    Gradient stops at f_t: the teacher is frozen.

    Differences from the paper:
    1. The warm-up is 20/240 of the epochs (20 of them in DCKD's preset) and counts from 0, as in
       the authors' code: the first epoch has weight 0.
    2. The authors' script gives no beta for ResNet110/ResNet20, VGG13/VGG8, VGG13/MobileNetV2,
       ResNet50/MobileNetV2 and ResNet50/VGG8: those below are choices, 30 what a user found to
       reproduce ResNet50/MobileNetV2 at learning rate .01 (mdistiller, issue 39).
    """

    name, title = "reviewkd", "ReviewKD"
    ramped = ("review",)
    teacher_needs = ("preacts", "pooled")
    presets = {"dckd_paper": dict(warmup=20 / 930)}
    pairs = {
        ("resnet34_imagenet", "resnet18_imagenet"): dict(beta=1.0, warmup=1 / 210, preact=True),
        **{
            tuple(pair.split("/")): dict(beta=beta)
            for beta, together in {
                0.6: "resnet56/resnet20 resnet110/resnet20",
                1.0: "resnet110/resnet32",
                5.0: "wrn_40_2/wrn_16_2 wrn_40_2/wrn_40_1 wrn_40_2/shufflenetv1 vgg13/vgg8 "
                "resnet32x4/resnet8x4 resnet32x4/shufflenetv1 resnet50/vgg8",
                8.0: "resnet32x4/shufflenetv2",
                30.0: "vgg13/mobilenetv2 resnet50/mobilenetv2",
            }.items()
            for pair in together.split()
        },
    }

    warmup: Annotated[Epochs, "length of the warm-up"] = 20 / 240
    preact: Annotated[bool, "take the student's maps before the ReLU"] = False

    @property
    def student_needs(self) -> tuple[str, ...]:
        return ("preacts" if self.preact else "feats", "pooled")

    def levels(self, s, t) -> list[tuple[Tensor, Tensor]]:
        """(student's, teacher's) maps from the pooled features (B, D, 1, 1) to the finest."""
        maps_s = s.preacts if self.preact else s.feats
        return stages(
            (*maps_s, s.pooled[..., None, None]), (*t.preacts, t.pooled[..., None, None]), s.logits
        )[::-1]

    def build(self, probe) -> None:
        mid, levels = min(512, probe.s.pooled.shape[1]), self.levels(probe.s, probe.t)
        self.abfs = nn.ModuleList(
            ABF(f_s.shape[1], mid, f_t.shape[1], fuse=i > 0) for i, (f_s, f_t) in enumerate(levels)
        )

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "review": self.beta}

    def ramp(self, epoch: int, epochs: int) -> float:
        return min(1.0, epoch / (self.warmup * epochs)) if self.warmup else 1.0

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        review, x = 0.0, None
        for abf, (f_s, f_t) in zip(self.abfs, self.levels(s, t), strict=True):
            o, x = abf(f_s, x, f_t.shape[2:])
            review = review + hcl(o, f_t)
        return {"ce": step.ce(s.logits, y), "review": review}
