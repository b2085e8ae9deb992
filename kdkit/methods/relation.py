"""Relations between the images of a batch: RKD (distances and angles), CC (correlation)."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import LabelWeight, Method, Size, Weight
from .logit import Baseline


def require_two_images(B: int, title: str) -> None:
    """ValueError for a batch of one image, which has no relation to another."""
    if B < 2:
        raise ValueError(f"{title} compares the images of a batch: batch={B}, allowed: 2 and more")


def relations(h: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the rows of h (B, D) over the mean of those of two rows: (B, B); and the cosines
    (B, B, B) of the angles that the rows i and j make at row k."""
    d = h.unsqueeze(0) - h.unsqueeze(1)  # (B, B, D)
    norm = d.norm(dim=-1)  # (B, B)
    e = d / norm.clamp_min(1e-12).unsqueeze(-1)  # (B, B, D), unit vectors
    mean = norm.sum() / (len(h) * (len(h) - 1))  # of all pairs of two different rows
    return norm / mean.clamp_min(1e-12), torch.einsum("kid,kjd->kij", e, e)


class RKD(Method):
    """Relational Knowledge Distillation: Park, Kim, Lu, Cho; CVPR 2019; arXiv 1904.05068.

    L = r CE(z, y) + w_d mean_ij l(D_ij(h), D_ij(h_T)) + w_a mean_kij l(A_kij(h), A_kij(h_T)),
    D_ij(h) = |h_i - h_j| / mean |h_i - h_j|, A_kij(h) = <e_ki, e_kj>, e_ki the unit vector of
    h_k - h_i, l = smooth L1

    | symbol | code                | shape     |
    |--------|---------------------|-----------|
    | h, h_T | s.pooled, t.pooled  | (B, D), (B, D_T) |
    | D      | d_s, d_t            | (B, B)    |
    | A      | a_s, a_t            | (B, B, B) |

    Gradient stops at h_T; it passes through the student's mean distance.

    Differences from the paper:
    1. The weights 25 and 50 are those of the authors' code and RepDistiller, and both means run
       over all B^2 and B^3 entries, those that are 0 included.
    """

    name, title = "rkd", "RKD"
    needs_teacher = True
    student_needs = teacher_needs = ("pooled",)

    r: LabelWeight = 1.0
    w_d: Annotated[Weight, "weight of the distances"] = 25.0
    w_a: Annotated[Weight, "weight of the angles"] = 50.0

    def control(self):
        return Baseline, {}

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "distance": self.w_d, "angle": self.w_a}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        require_two_images(len(y), self.title)
        (d_s, a_s), (d_t, a_t) = relations(s.pooled), relations(t.pooled)
        return {
            "ce": step.ce(s.logits, y),
            "distance": F.smooth_l1_loss(d_s, d_t),
            "angle": F.smooth_l1_loss(a_s, a_t),
        }


class CC(Method):
    """Correlation Congruence for Knowledge Distillation: Peng, Jin, Liu et al.; ICCV 2019;
    arXiv 1904.01802.

    L = r CE(z, y) + beta mean_i <delta_i, delta_i+1>, delta_i = |E_s h_i - E_t h_T,i|,
    i = 1..B-1 in the order of the batch

    | symbol | code                | shape  |
    |--------|---------------------|--------|
    | h, h_T | s.pooled, t.pooled  | (B, D), (B, D_T) |
    | E_s, E_t | E_s, E_t          | D -> dim, D_T -> dim |
    | delta  | delta               | (B, dim) |

    Gradient stops at h_T; both embeddings are trained.

    Differences from the paper:
    1. Products of *neighbours* in the batch, as RepDistiller has it (DCKD's CC rows follow it); the
       paper compares correlation matrices through a Gaussian kernel.
    """

    name, title = "cc", "CC"
    needs_teacher = True
    student_needs = teacher_needs = ("pooled",)

    r: LabelWeight = 1.0
    beta: Annotated[Weight, "weight of the correlation"] = 0.02
    dim: Annotated[Size, "width of both embeddings"] = 128

    def control(self):
        return Baseline, {}

    def build(self, probe) -> None:
        self.E_s, self.E_t = (nn.Linear(o.pooled.shape[-1], self.dim) for o in (probe.s, probe.t))

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "correlation": self.beta}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        require_two_images(len(y), self.title)
        delta = (self.E_s(s.pooled) - self.E_t(t.pooled)).abs()  # (B, dim)
        return {"ce": step.ce(s.logits, y), "correlation": (delta[:-1] * delta[1:]).sum(-1).mean()}
