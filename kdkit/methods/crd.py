"""Contrastive representation distillation, alone and with KD."""

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..fields import Field
from ..losses import kl_T
from ..randomness import integers
from .base import LabelWeight, Method, Size, Temperature, Weight
from .logit import KD, Baseline


def contrast(x: Tensor, N: int) -> Tensor:
    """Noise-contrastive loss of the ratios x (B, 1+K), the positive first, against K draws from N.

    -(1/B) sum [log(x_0 / (x_0 + c)) + sum_k log(c / (x_k + c))], c = K/N; 1e-7 in the denominators
    """
    c = (x.shape[1] - 1) / N
    p = torch.cat([x[:, :1], x.new_full((len(x), x.shape[1] - 1), c)], 1) / (x + (c + 1e-7))
    return -p.log().sum() / len(x)


def others(labels: Tensor, y: Tensor, K: int, draw: torch.Generator) -> Tensor:
    """For each label in y (B,): K different positions in labels (N,) of other classes. (B, K)"""
    own = torch.Generator(labels.device)  # so that B x N numbers need not cross to the device
    own.manual_seed(int(integers(2**62, (), draw)))
    keys = torch.rand(len(y), len(labels), generator=own, dtype=torch.float32, device=labels.device)
    keys.masked_fill_(labels == y.unsqueeze(1), 2.0)
    return keys.topk(K, largest=False, sorted=False).indices


class CRD(Method):
    """Contrastive Representation Distillation: Tian, Krishnan, Isola; ICLR 2020; arXiv 1910.10699.

    L = r CE(z, y) + beta [ C(<e_s, M_t> / tau) + C(<e_t, M_s> / tau) ],
    C(u) = -(1/B) sum [ log(P_0 / (P_0 + K/N)) + sum_k log((K/N) / (P_k + K/N)) ], P = exp(u) / Z;
    0 is the image's own row of the bank M, k = 1..K rows of other classes.
    Then M[index] <- unit(mu M[index] + (1 - mu) e), mu the bank_momentum.

    | symbol   | code             | shape     |
    |----------|------------------|-----------|
    | e_s, e_t | e                | (2, B, dim): unit(E_s h), unit(E_t h_T) |
    | M_t, M_s | M                | (2, N, dim): N training images |
    | Z        | Z                | (2,), set by the first batch to the mean of exp(u), times N |
    | 0, 1..K  | rows             | (B, 1+K)  |

    Gradient stops at h_T, at both banks and at Z; both embeddings are trained.

    Differences from the paper:
    1. As in the authors' code: Z is never set again, 1e-7 stands in the denominators, and the banks
       start uniform, not of unit length.
    2. K is 16384, or the other-class images of the largest class where they are fewer: so
       negatives are drawn without replacement always.
    """

    name, title = "crd", "CRD"
    needs_teacher = True
    student_needs = teacher_needs = ("pooled",)
    scratch = ("M",)

    r: LabelWeight = 1.0
    beta: Annotated[Weight, "weight of the contrast"] = 0.8
    dim: Annotated[Size, "width of both embeddings"] = 128
    K: Annotated[Size, "negatives of each image, at most"] = 16384
    tau: Annotated[float, Field(1e-3, 1000, step=0.01), "temperature of the contrast"] = 0.07
    bank_momentum: Annotated[float, Field(0, 1, step=0.05), "share of a bank's row that stays"] = (
        0.5
    )

    def control(self):
        return Baseline, {}

    def build(self, probe) -> None:
        N, fewest = len(probe.labels), len(probe.labels) - int(probe.labels.bincount().max())
        if not fewest:
            raise ValueError(f"{self.title} needs images of other classes: all {N} are of one")
        self.negatives = min(self.K, fewest)
        self.E_s, self.E_t = (nn.Linear(o.pooled.shape[-1], self.dim) for o in (probe.s, probe.t))
        side = (3 / self.dim) ** 0.5
        self.register_buffer(
            "M",
            torch.empty(2, N, self.dim, dtype=torch.float32, device="cpu").uniform_(-side, side),
        )
        self.register_buffer("Z", torch.zeros(2, dtype=torch.float32, device="cpu"))
        self.register_buffer("labels", probe.labels, persistent=False)

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "contrast": self.beta}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        i, N = step.index, len(self.labels)
        rows = others(self.labels, y, self.negatives, step.generator)  # (B, K)
        rows = torch.cat([i.unsqueeze(1), rows], 1)  # (B, 1+K)
        e = torch.stack([self.E_s(s.pooled), self.E_t(t.pooled)])  # (2, B, dim)
        e = F.normalize(e, dim=-1)
        u = e @ self.M.clone().mT  # (2, B, N), e_s with M_t; backward needs the banks as they were
        x = (u.gather(2, rows.expand(2, -1, -1)) / self.tau).exp()  # (2, B, 1+K)
        self.Z = torch.where(self.Z > 0, self.Z, x.detach().mean((1, 2)) * N)
        new = self.bank_momentum * self.M[:, i] + (1 - self.bank_momentum) * e.detach().flip(0)
        self.M[:, i] = F.normalize(new, dim=-1)
        both = sum(contrast(v, N) for v in x / self.Z.view(2, 1, 1))
        return {"ce": step.ce(s.logits, y), "contrast": both}


class CRDKD(CRD):
    """CRD with KD ("CRD+KD": the same paper; DCKD's Tables 1 to 3).

    L = L_CRD + alpha T^2 KL(softmax(z_T/T) || softmax(z/T))

    | symbol | code     | shape  |
    |--------|----------|--------|
    | z      | s.logits | (B, K) |
    | z_T    | t.logits | (B, K) |

    Gradient stops at z_T, and where CRD's does.

    Differences from the paper: none beyond CRD's.
    """

    name, title = "crd_kd", "CRD+KD"

    alpha: Annotated[Weight, "weight of the teacher's prediction"] = 1.0
    T: Temperature = 4.0

    def control(self):
        return KD, {}

    def weights(self) -> dict[str, float]:
        return super().weights() | {"teacher": self.alpha}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        return super().terms(s, y, t, step) | {"teacher": kl_T(s.logits, t.logits, self.T)}
