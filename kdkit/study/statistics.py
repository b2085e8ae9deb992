"""Means, deviations and paired differences over seeds."""

import numpy as np

Array = np.ndarray


def summary(values) -> tuple[int, float, float]:
    """(n, mean, standard deviation with n-1; nan for one value)."""
    v = np.asarray(list(values), np.float64)
    return len(v), float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else float("nan")


def paired(ours: Array, control: Array) -> tuple[int, float, float]:
    """(n, mean difference, half width of its 95 % interval by Student's t) over paired seeds."""
    n, mean, std = summary(np.asarray(ours, np.float64) - np.asarray(control, np.float64))
    return n, mean, half_width(std, n)


def half_width(std: float, n: int) -> float:
    """Half of the 95 % interval, by Student's t, of the mean of n values with deviation std."""
    if n < 2:
        return float("nan")
    from scipy.special import stdtrit  # slow to import, and only this needs it

    t = round(float(stdtrit(n - 1, 0.975)), 3)  # as tables print it
    return t * std / np.sqrt(n)
