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


def half_width(std: float, n: int, level: float = 0.05) -> float:
    """Half of the interval, by Student's t, of the mean of n values with deviation std.

    level: the share of such intervals that miss the true mean: 0.05 for those of 95 %.
    """
    if n < 2:
        return float("nan")
    return student_t(n, level) * std / np.sqrt(n)


def student_t(n: int, level: float = 0.05) -> float:
    """Student's two-sided factor for n values, at least two, to three digits as tables print it."""
    from scipy.special import stdtrit  # slow to import, and only this needs it

    return round(float(stdtrit(n - 1, 1 - level / 2)), 3)


def share_shown(gap: float, spread: float, n: int) -> float:
    """The share of experiments with n seeds in which a true difference `gap` lies outside its 95 %
    interval, on its own side, when differences scatter from seed to seed with deviation `spread`
    (normally distributed; the power of the paired t test)."""
    from scipy.special import nctdtr

    return 1 - float(nctdtr(n - 1, abs(gap) * np.sqrt(n) / spread, student_t(n)))
