"""A Comprehensive Overhaul of Feature Distillation."""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Weight
from .hints import Hinted, stages


def margin(bn: nn.BatchNorm2d) -> Tensor:
    """E[x | x < 0] of each channel, x ~ N(beta, gamma^2) as the batch norm says: (C,), below 0.

    -3 |gamma| where P(x < 0) is at most .001, and in single precision, as in the authors' code.
    """
    mu, sigma = bn.bias.detach(), bn.weight.detach().abs()
    a = mu / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)
    below = torch.special.ndtr(-a)  # P(x < 0)
    mean = mu - sigma * torch.exp(-a.square() / 2) / math.sqrt(2 * math.pi) / below
    return torch.where(below > 0.001, mean, -3 * sigma).float()


def partial_l2(f_s: Tensor, f_t: Tensor, m: Tensor) -> Tensor:
    """Squared distance to max(f_t, m), summed over (C, H, W) and averaged over the batch; nothing
    where the target is not above 0 and the student is already below it.

    f_s, f_t: (B, C, H, W), m: (C, 1, 1).
    """
    target = torch.maximum(f_t, m)
    counts = (f_s > target) | (target > 0)
    return ((f_s - target).square() * counts).flatten(1).sum(1).mean()


def connector(c_s: int, bn: nn.BatchNorm2d) -> nn.Sequential:
    """1x1 convolution and BN from the student's width to that of the teacher's batch norm `bn`,
    whose margin it keeps."""
    c_t = bn.num_features
    layers = nn.Sequential(nn.Conv2d(c_s, c_t, 1, bias=False), nn.BatchNorm2d(c_t))
    nn.init.normal_(layers[0].weight, 0, math.sqrt(2 / c_t))
    layers.register_buffer("margin", margin(bn).view(-1, 1, 1))  # (C_t, 1, 1)
    return layers


class OFD(Hinted):
    """A Comprehensive Overhaul of Feature Distillation: Heo, Kim, Yun, Park, Kwak, Choi; ICCV 2019;
    arXiv 1904.01866.

    L = r CE(z, y) + beta sum_i 2^(i-n) d(C_i(f_s^i), max(f_t^i, m_i)),
    d(s, t) = sum (s - t)^2 over the elements with s > t or t > 0, a mean over the batch;
    m = E[x | x < 0], x ~ N(beta, gamma^2) of the teacher's batch norm before the ReLU

    | symbol | code         | shape          |
    |--------|--------------|----------------|
    | z      | s.logits     | (B, K)         |
    | f_s^i  | s.preacts[i] | (B, C_s, H, W) |
    | f_t^i  | t.preacts[i] | (B, C_t, H, W) |
    | C_i    | connectors   | (B, C_s, H, W) -> (B, C_t, H, W) |
    | m_i    | margin       | (C_t, 1, 1)    |

    Gradient stops at f_t and m: the teacher is frozen.

    Differences from the paper:
    1. The teacher is in eval mode; the authors' code runs it with the batch's statistics.
    2. Where the two maps' sizes differ, the teacher's is average-pooled, as in mdistiller.
    3. The optimiser keeps its momentum when the learning rate drops.
    """

    name, title = "ofd", "OFD"
    pairs = {("resnet34_imagenet", "resnet18_imagenet"): dict(beta=1e-4)}  # the authors' ImageNet

    student_needs = teacher_needs = ("preacts",)

    beta: Annotated[Weight, "weight of the maps"] = 1e-3

    def build(self, probe) -> None:
        maps = stages(probe.s.preacts, probe.t.preacts, probe.s.logits)
        if not hasattr(probe.teacher, "stage_bns"):
            raise ValueError(
                "OFD derives its margins from the teacher's batch norms: the teacher "
                "must be a kdkit network, or wrapped with its batch norms as preacts, not a "
                f"{type(probe.teacher).__name__}"
            )
        bns = probe.teacher.stage_bns()
        self.connectors = nn.ModuleList(
            connector(f_s.shape[1], bn) for (f_s, _), bn in zip(maps, bns, strict=True)
        )

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "maps": self.beta}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        loss = 0.0
        for C, (f_s, f_t) in zip(
            self.connectors, stages(s.preacts, t.preacts, s.logits), strict=True
        ):
            f_t = F.adaptive_avg_pool2d(f_t, f_s.shape[2:])
            loss = loss / 2 + partial_l2(C(f_s), f_t, C.margin)  # each stage halves the earlier
        return {"ce": step.ce(s.logits, y), "maps": loss}
