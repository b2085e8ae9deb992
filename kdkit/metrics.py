"""Metrics: arrays in, numbers out. `top` gives fractions of 1, `report` and METRICS percent.

z: logits (..., N, K); a group's lead with m. Everything is computed in float64.
"""

import numpy as np

from .fields import Registry

Array = np.ndarray
# A record computes these from its stored logits: functions (z (m, N, K), y (N,)) -> number or (m,).
METRICS = Registry("metric")
metric = METRICS.decorator


def list_metrics() -> list[str]:
    """Names of the metrics that a record computes from its stored logits."""
    return list(METRICS)


def softmax(z: Array, T: float = 1.0) -> Array:
    """softmax(z/T) over the last axis, float64, of the same shape."""
    z = np.asarray(z, np.float64) / T
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def top(z: Array, y: Array, k: int = 1) -> Array:
    """Top-k accuracy. z: (..., N, K), y: (N,) -> (...,). Ties go to the lower class index."""
    best = np.argsort(-np.asarray(z, np.float64), axis=-1, kind="stable")[..., :k]  # (..., N, k)
    return (best == np.asarray(y)[:, None]).any(-1).mean(-1)


def ensemble(z: Array, of: str = "logits") -> Array:
    """Scores of the group: mean logits, or mean probabilities ("probs"). (m, N, K) -> (N, K)."""
    if of not in ("logits", "probs"):
        raise ValueError(f"of={of!r}: must be logits or probs")
    return (np.asarray(z, np.float64) if of == "logits" else softmax(z)).mean(0)


def pair_distance(z: Array) -> Array:
    """Mean Euclidean distance between the predictions (T = 1) of each pair: (m, N, K) -> (m, m)."""
    p = softmax(z)
    d = np.zeros((len(p), len(p)))
    for a in range(len(p)):
        for b in range(a):
            d[a, b] = d[b, a] = np.sqrt(((p[a] - p[b]) ** 2).sum(-1)).mean()
    return d


def diversity(z: Array) -> float:
    """Mean of `pair_distance` over the pairs (OKDDip, "Diversity analysis"); nan if m = 1."""
    d = pair_distance(z)
    return float(d[np.triu_indices(len(d), 1)].mean()) if len(d) > 1 else float("nan")


def correlation_number(p: Array, threshold: float | None = None) -> Array:
    """How many classes have a probability above 1/K, strictly. p: (..., K) -> (...,) int64.

    DCKD Eq. 15. The paper does not say which threshold; 1/K, the uniform probability, is a choice.
    """
    p = np.asarray(p, np.float64)
    return (p > (1 / p.shape[-1] if threshold is None else threshold)).sum(-1)


def entropy(p: Array) -> Array:
    """In nats, 0 log 0 = 0. (..., K) -> (...,)."""
    p = np.asarray(p, np.float64)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def kl_divergence(p: Array, q: Array) -> float:
    """KL(p||q) in nats, of two distributions (K,) without zeros."""
    return float((p * (np.log(p) - np.log(q))).sum())


def confidence_bins(confidence: Array, bins: int) -> Array:
    """The number, from 0, of each confidence's bin among `bins` equal ones, (low, high] each; 0
    goes to the first. (...,) -> (...,) int64."""
    return np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)


def calibration_error(p: Array, y: Array, bins: int = 15) -> float:
    """Expected calibration error of the top class over equal bins of confidence (Guo et al.
    2017). p: (N, K), y: (N,)."""
    p = np.asarray(p, np.float64)
    sure, right = p.max(-1), p.argmax(-1) == np.asarray(y)
    # For each bin the sum of confidence minus accuracy.
    gap = np.bincount(confidence_bins(sure, bins), sure - right, bins)
    return float(np.abs(gap).sum() / len(p))


def report(z: Array, y: Array, peers: int, deployed: int | None, teacher: Array | None) -> dict:
    """A run's numbers, accuracies in percent, from its test logits.

    z: (m, N, K) students; y: (N,); the first `peers` count for diversity and ensemble; deployed:
    the student whose accuracy is `top1_deployed`, None for their mean; teacher: (N, K) or None.
    """
    p, top1 = softmax(z), 100 * top(z, y)
    out = {
        "top1": top1.tolist(),
        "top5": (100 * top(z, y, 5)).tolist(),
        "deployed": deployed,
        "top1_deployed": float(top1.mean() if deployed is None else top1[deployed]),
        "ensemble": 100 * float(top(ensemble(z[:peers]), y)),
        "ensemble_probs": 100 * float(top(ensemble(z[:peers], "probs"), y)),
        "diversity": diversity(z[:peers]) if peers > 1 else None,
        "correlation_number": float(correlation_number(p).mean()),
        "correlation_number_T4": float(correlation_number(softmax(z, 4)).mean()),
        "entropy": float(entropy(p).mean()),
        "calibration_error": [calibration_error(q, y) for q in p],
    }
    return out if teacher is None else out | {"teacher_top1": 100 * float(top(teacher, y))}


def nll(z: Array, y: Array) -> Array:
    """Mean negative log-likelihood of the true class, in nats. (..., N, K), (N,) -> (...,)."""
    log_p = np.log(np.maximum(softmax(z), 1e-300))
    return -log_p[..., np.arange(len(y)), y].mean(-1)


METRICS.update(
    nll=nll,
    top1=lambda z, y: 100 * top(z, y),
    top5=lambda z, y: 100 * top(z, y, 5),
    brier=lambda z, y: ((softmax(z) - np.eye(z.shape[-1])[y]) ** 2).sum(-1).mean(-1),
    entropy=lambda z, y: entropy(softmax(z)).mean(-1),
    correlation_number=lambda z, y: correlation_number(softmax(z)).mean(-1),
    calibration_error=lambda z, y: np.array([calibration_error(p, y) for p in softmax(z)]),
)
