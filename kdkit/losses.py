"""Losses as pure functions. z: logits, p: probabilities; a group's tensors lead with m.

`ce`, `kl` and `kl_T` take (..., B, K) and average over the batch B only: for a group (m, B, K) they
return one value for each student, shape (m,). The other functions say their own shapes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def ce(z: Tensor, y: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy. z: (..., B, K), y: (B,) int64 -> (...,), in nats.

    class_weights: (K,): the mean over the batch is then weighted by the weight of each image's
    class, as in torch's cross_entropy.
    """
    picked = F.log_softmax(z, -1).gather(-1, y.expand(z.shape[:-1]).unsqueeze(-1))  # (..., B, 1)
    picked = picked.squeeze(-1)  # (..., B)
    if class_weights is None:
        return -picked.mean(-1)
    weights = class_weights[y]  # (B,)
    return -(picked * weights).sum(-1) / weights.sum()


def _plogp(p: Tensor) -> Tensor:
    """p log p, 0 at 0, with a finite gradient there (xlogy's is infinite: softmax makes it nan)."""
    return p * p.clamp_min(torch.finfo(p.dtype).tiny).log()


def kl(p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q), p as probabilities: (..., B, K) -> (...,); 0 log 0 = 0; p may pass gradient."""
    return (_plogp(p) - p * log_q).sum(-1).mean(-1)


def kl_T(z_s: Tensor, z_t: Tensor, T: float, eps: float = 0.0) -> Tensor:
    """T^2 KL(softmax(z_t/T) || softmax(z_s/T)): Hinton et al. 2015; OKDDip Eq. 3 and 4.

    z_s, z_t: (..., B, K) logits -> (...,). eps is added to the target, which is not renormalised
    (OKDDip's code adds 1e-7). Gradient flows into both arguments: detach what is a constant.
    """
    return T**2 * kl(F.softmax(z_t / T, -1) + eps, F.log_softmax(z_s / T, -1))


def entropy(p: Tensor) -> Tensor:
    """H(p) in nats, 0 log 0 = 0. (..., K) -> (...,)."""
    return -_plogp(p).sum(-1)


def others_mean(z: Tensor) -> Tensor:
    """For each of m: the mean of the others. (m, B, K) -> (m, B, K). Needs m >= 2."""
    return (z.sum(0, keepdim=True) - z) / (len(z) - 1)


def others_max(z: Tensor) -> Tensor:
    """For each of m: the class-wise maximum over the others (DCKD Eq. 10). (m, B, K) likewise."""
    m = len(z)
    rivals = z.unsqueeze(0).expand(m, *z.shape)  # (m, m, B, K)
    self_ = torch.eye(m, dtype=torch.bool, device=z.device).view(m, m, 1, 1)
    return rivals.masked_fill(self_, -math.inf).amax(1)  # (m, B, K)


def attention_map(f: Tensor) -> Tensor:
    """The mean over channels of f^2, of norm 1 over H and W (AT). (B, C, H, W) -> (B, HW)."""
    return F.normalize(f.square().mean(1).flatten(1))


def map_difference(f: Tensor, g: Tensor) -> Tensor:
    """The difference of two maps' attention maps, the larger average-pooled to the smaller's size
    first (RepDistiller). (B, C, H, W), (B, C', H', W') -> (B, min HW)."""
    size = min(f.shape[2:], g.shape[2:])
    q_f, q_g = (attention_map(F.adaptive_avg_pool2d(v, size)) for v in (f, g))
    return q_f - q_g


def rampup(epoch: float, length: float) -> float:
    """exp(-5 (1 - e/L)^2) up to epoch L, then 1 (Laine and Aila 2017); 1 where L is 0."""
    if length <= 0:
        return 1.0
    return math.exp(-5 * (1 - min(max(epoch, 0), length) / length) ** 2)


class _ScaleGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def scale_grad(x: Tensor, factor: float) -> Tensor:
    """x itself; its gradient is multiplied by `factor` on the way back."""
    return _ScaleGrad.apply(x, factor)
