"""Collaborative learning: one target for the whole group, made from its best predictions."""

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import interleave
from ..fields import Field
from ..losses import ce, kl
from .base import Group, Method, Temperature, Weight
from .online import Ind


def true_class_values(v: Tensor, y: Tensor) -> Tensor:
    """The entries of v (m, B, K) for the true classes y (B,): (m, B)."""
    return v.gather(2, y.expand(v.shape[:2]).unsqueeze(2)).squeeze(2)


def min_quadratic_on_simplex(H: Tensor, g: Tensor) -> Tensor:
    """The a (m,) >= 0 with sum 1 that minimises a'Ha / 2 + g'a, H (m, m) positive semidefinite:
    the best of those stationary points of the 2^m - 1 faces that lie inside the simplex."""
    m, faces = len(g), torch.arange(2 ** len(g), dtype=torch.int64, device=H.device)
    on = (faces[1:].unsqueeze(1) >> faces[:m] & 1).to(H)  # (faces, m): 0 or 1
    ridge = torch.finfo(H.dtype).eps * H.trace()  # for members that are equal
    H = H + torch.diag_embed(ridge.expand(m))
    A, b = H.new_zeros(len(on), m + 1, m + 1), H.new_ones(len(on), m + 1)
    A[:, :m, :m] = torch.diag_embed(1 - on) + on.unsqueeze(2) * on.unsqueeze(1) * H
    A[:, m, :m] = A[:, :m, m] = on  # the sum is 1; its multiplier
    b[:, :m] = -g * on  # off the face: a_i = 0
    a = torch.linalg.solve_ex(A, b)[0][:, :m]
    value = ((a @ H) * a).sum(1) / 2 + a @ g
    return a[value.masked_fill(~(a >= 0).all(1), torch.inf).argmin()]


def best_mix(z: Tensor, y: Tensor, rounds: int = 12) -> Tensor:
    """The weights (m,) on the simplex whose mix of the logits z (m, B, K) has the least CE, by
    Newton's method with a line search, in float64: the problem is convex."""
    z = z.double()
    a = z.new_full((len(z),), 1 / len(z))
    sizes = z.new_tensor([*(0.5**k for k in range(10)), 0.0])
    for _ in range(rounds):
        p = F.softmax(torch.einsum("i,ibk->bk", a, z), -1)
        d = z - (p * z).sum(-1, keepdim=True)  # (m, B, K)
        g, H = -true_class_values(d, y).mean(1), torch.einsum("bk,ibk,jbk->ij", p, d, d) / len(y)
        tries = a + sizes.unsqueeze(1) * (min_quadratic_on_simplex(H, g - H @ a) - a)  # (11, m)
        a = tries[ce(torch.einsum("ti,ibk->tbk", tries, z), y).argmin()]
    return a


def group_target(z: Tensor, y: Tensor, form: str) -> Tensor:
    """KDCL's target logits (B, K) from the group's z (m, B, K) and labels y (B,)."""
    if form == "minlogit":
        return (z - true_class_values(z, y).unsqueeze(2)).amin(0)
    if form == "naive":
        best = true_class_values(F.log_softmax(z, -1), y).argmax(0)  # (B,)
        return z[best, torch.arange(len(y), dtype=torch.int64, device=z.device)]
    return torch.einsum("i,ibk->bk", best_mix(z, y).to(z.dtype), z)


def error_covariance(z: Tensor, y: Tensor) -> Tensor:
    """C_ij, the mean over images of (f_i - 1)(f_j - 1), f the true class's probability. z: logits
    (m, n, K), y: (n,) -> (m, m) float64"""
    f = true_class_values(F.softmax(z.double(), -1), y) - 1
    return f @ f.T / len(y)


class KDCL(Method):
    """Online Knowledge Distillation via Collaborative Learning: Guo, Wang, Wu, Yu, Liang, Hu, Luo;
    CVPR 2020.

    L = sum_i [ CE(z_i, y) + lambda T^2 KL(q || softmax(z_i/T)) ], q = softmax(z_t/T), and z_t,
    minlogit: min_i (z_i - z_i[y]) for each class; naive: for each image the z_i of least CE;
    linear: sum_i a_i z_i, a >= 0 of sum 1 with the batch's least CE; general: q = sum_i w_i
    softmax(z_i/T), w the minimum of w'Cw over sum w = 1 on held-out images, C `error_covariance`

    | symbol | code       | shape     |
    |--------|------------|-----------|
    | z_i    | s.logits   | (m, B, K); each student's own view of the images |
    | q      | q          | (B, K)    |
    | w      | w          | (m,): 1/m in the first epoch, new before each other one |
    | lambda | lam        |           |

    Gradient stops at q, made from constants; a teacher is frozen.

    Differences from the paper:
    1. `linear` is the true optimum in each batch, `general` has w >= 0, a choice: without it
       (`signed`, w = C^-1 1 / (1' C^-1 1)) q can have negative entries.
    2. `general` mixes predictions softened by T: a choice. It is the paper's best on CIFAR-100,
       minlogit its choice for ImageNet.
    3. `with_teacher`: a teacher is a member of the group, in the mix and in w, as in DCKD's
       Table 5; that it is frozen and sees the first student's view is a choice. A plain teacher
       was trained on the held-out images too, so that `general` mostly trusts it.
    """

    name, title = "kdcl", "KDCL"
    views = True

    m: Group = 4
    form: Annotated[Literal["minlogit", "naive", "linear", "general"], "how the target is made"] = (
        "minlogit"
    )
    T: Temperature = 2.0
    lam: Annotated[Weight, "weight of the distillation"] = 1.0
    held: Annotated[
        float, Field(1e-6, 0.9, 0.05, "of the training images"), "kept out for w, by general alone"
    ] = 0.1
    signed: Annotated[bool, "may w be negative?"] = False
    with_teacher: Annotated[bool, "a teacher is a member of the group"] = False

    @property
    def needs_teacher(self) -> bool:
        return self.with_teacher

    def control(self):
        return Ind, {"m": self.m, "based": "network"}

    def build(self, probe) -> None:
        n = self.m + self.with_teacher
        self.register_buffer("w", torch.full((n,), 1 / n, dtype=torch.float64, device="cpu"))

    def held_out(self, labels: Tensor) -> Tensor | None:
        K = len(labels.unique())
        n = K * max(1, round(self.held * len(labels) / K))
        return interleave(labels)[:n].to(labels.device) if self.form == "general" else None

    def refresh(self, z: Tensor, y: Tensor, t: Tensor | None) -> None:
        C = error_covariance(self.members(z, t), y)
        w = (
            torch.linalg.pinv(C).sum(1)
            if self.signed
            else min_quadratic_on_simplex(C, torch.zeros_like(C[0]))
        )
        self.w.copy_(w / w.sum())

    def members(self, z: Tensor, t: Tensor | None) -> Tensor:
        """The group's logits (m or m+1, B, K), the teacher's (B, K) last."""
        return torch.cat([z, t.unsqueeze(0)]) if self.with_teacher else z

    def weights(self) -> dict[str, float]:
        return {"ce": 1.0, "target": self.lam}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        z = s.logits
        group = self.members(z, t and t.logits).detach()
        if self.form == "general":
            q = torch.einsum("i,ibk->bk", self.w.to(z.dtype), F.softmax(group / self.T, -1))
        else:
            q = F.softmax(group_target(group, y, self.form) / self.T, -1)
        kd = self.T**2 * kl(q, F.log_softmax(z / self.T, -1)).sum()
        return {"ce": step.ce(z, y).sum(), "target": kd}
