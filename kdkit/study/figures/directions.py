"""The two directions of KL: what each asks of a student that cannot match its target."""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ... import metrics
from . import tables
from .index import figure
from .style import BARS, PALETTE, kdkit_style

CLASSES = np.arange(12)
TARGET = metrics.softmax(np.logaddexp(-((CLASSES - 2) ** 2), -((CLASSES - 9) ** 2)))  # two peaks
DIRECTIONS = {"forward": "KL(target ‖ student)", "reverse": "KL(student ‖ target)"}


def one_peak(centre: float, width: float) -> np.ndarray:
    """A student of one peak, however it is placed and however wide: (12,) probabilities."""
    return metrics.softmax(-((CLASSES - centre) ** 2) / (2 * width**2))


def directions_table(records=(), target: np.ndarray = TARGET) -> pd.DataFrame:
    """The one-peaked student nearest to the target in each direction of KL: a row for each
    direction and class, with both probabilities, the divergence and the student's entropy."""
    students = [
        one_peak(c, w) for c, w in product(np.arange(0, 11.1, 0.25), np.arange(0.5, 8, 0.1))
    ]
    rows = []
    for direction in DIRECTIONS:
        pairs = [(target, p) if direction == "forward" else (p, target) for p in students]
        best = int(np.argmin([metrics.kl_divergence(a, b) for a, b in pairs]))
        for number in CLASSES:
            rows.append(
                {
                    "direction": direction,
                    "class": number,
                    "target": target[number],
                    "student": students[best][number],
                    "divergence": metrics.kl_divergence(*pairs[best]),
                    "entropy": float(metrics.entropy(students[best])),
                }
            )
    return tables.frame(rows, [])


@kdkit_style()
def draw_directions(table: pd.DataFrame) -> Figure:
    """A target with two peaks, and the one-peaked student that each direction of KL prefers.
    table: of `directions_table`."""
    fig = Figure(figsize=(8.2, 2.9))
    axes = fig.subplots(1, len(DIRECTIONS), sharey=True)
    for ax, (direction, rows) in zip(axes, table.groupby("direction", sort=False), strict=True):
        ax.bar(rows["class"], rows["target"], color=BARS[2], width=0.75, alpha=0.75)
        ax.plot(rows["class"], rows["student"], "o-", color=PALETTE[0], lw=2, markersize=5)
        ax.set(xlabel="class", xticks=rows["class"])
        ax.set_title(f"{direction}: {DIRECTIONS[direction]}")
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("probability")
    for text, y, colour in (("target", 0.92, "#8a5a00"), ("nearest student", 0.82, PALETTE[0])):
        axes[-1].text(0.98, y, text, transform=axes[-1].transAxes, ha="right", color=colour)
    return fig


def say_directions(table: pd.DataFrame) -> list[str]:
    """The entropies, and how many peaks of the target each student is at."""
    target = table["target"].to_numpy()[: len(CLASSES)]
    entropy = float(metrics.entropy(target))
    each, found = [], {}
    for direction, rows in table.groupby("direction", sort=False):
        half = np.where(CLASSES < len(CLASSES) / 2, "lower", "upper")
        share = max(rows["student"].to_numpy()[half == side].sum() for side in ("lower", "upper"))
        found[direction] = rows["entropy"].iloc[0]
        each.append(
            f"{direction}: {100 * share:.0f} % of its weight on one of the two halves, entropy "
            f"{found[direction]:.2f} nats"
        )
    order = "higher" if found["reverse"] > found["forward"] else "lower"
    return [
        f"A target with two peaks, entropy {entropy:.2f} nats, and the student of one peak that is "
        f"nearest to it in each direction of KL; {'; '.join(each)}.",
        f"The reverse direction leads this student to the {order} entropy.",
    ]


@figure("kl_directions", notebook="07")
class KLDirections:
    table = directions_table
    draw = draw_directions
    say = say_directions
