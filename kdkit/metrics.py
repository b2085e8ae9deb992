"""Metrics: arrays in, numbers out. Accuracies are fractions of 1 here, percent in records.

z: logits (..., N, K); a group's lead with m. Everything is computed in float64.
"""

import numpy as np

Array = np.ndarray


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
    """How many classes have a probability above 1/K, strictly (DCKD Eq. 15; the threshold was
    lost from the text: 1/K is derived). p: (..., K) -> (...,) int64."""
    p = np.asarray(p, np.float64)
    return (p > (1 / p.shape[-1] if threshold is None else threshold)).sum(-1)


def entropy(p: Array) -> Array:
    """In nats, 0 log 0 = 0. (..., K) -> (...,)."""
    p = np.asarray(p, np.float64)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def calibration_error(p: Array, y: Array, bins: int = 15) -> float:
    """Expected calibration error of the top class over equal bins of confidence (Guo et al.
    2017). p: (N, K), y: (N,)."""
    p = np.asarray(p, np.float64)
    sure, right = p.max(-1), p.argmax(-1) == np.asarray(y)
    at = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(at, sure - right, bins)  # per bin: sum of confidence minus accuracy
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


def summary(values) -> tuple[int, float, float]:
    """(n, mean, standard deviation with n-1; nan for one value)."""
    v = np.asarray(list(values), np.float64)
    return len(v), float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else float("nan")


def paired(ours: Array, control: Array) -> tuple[int, float, float]:
    """(n, mean difference, half width of its 95 % interval by Student's t) over paired seeds."""
    d = np.asarray(ours, np.float64) - np.asarray(control, np.float64)
    n, mean, std = summary(d)
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
    return n, mean, t.get(n, 1.96 + 2.4 / n) * std / np.sqrt(n) if n > 1 else float("nan")
