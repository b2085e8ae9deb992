"""How far peers are apart, and how far each moves in an epoch, while the learning rate falls."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ... import metrics
from ..plans import Run
from ..store import Record
from . import tables
from .index import figure
from .style import FAINT_COLOUR, end_labels, kdkit_style, method_style
from .tables import count_text, seeds_text

SCHEDULES = {
    "sgdr": "the learning rate falls along a cosine",
    "step": "the learning rate is divided by 10, twice",
}


def peer_movement(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance, movement), each (E,): the mean Euclidean distance between two peers' answers, and
    between a peer's answer and its own of an epoch before, nan in the first. z: (E, m, N, K)."""
    p = metrics.softmax(z)
    steps = np.sqrt(((p[1:] - p[:-1]) ** 2).sum(-1)).mean((1, 2))  # (E-1,)
    return np.array([metrics.diversity(logits) for logits in z]), np.r_[np.nan, steps]


def movement_table(records: list[Record]) -> pd.DataFrame:
    """A row for each kind of group and epoch (from 1): schedule, rate, distance between the peers
    and movement of each on the probe images that a record keeps; means over the seeds, n of them,
    and `train`, the students' training accuracy in percent."""
    rows = []
    for name, group in tables.grouped(records).items():
        peers = group[0].method.peers()
        found = [peer_movement(r.arrays["probe_logits"][:, :peers].astype(float)) for r in group]
        distance, movement = np.mean(found, 0)
        for epoch, row in enumerate(group[0].history):
            train = np.mean([np.mean(r.history[epoch]["train_top1"]) for r in group])
            values = [distance[epoch], movement[epoch], row["lr"], train, len(group)]
            names = ("distance", "movement", "rate", "train", "n")
            what = {"method": group[0].run.method, "label": name}
            what |= {"schedule": group[0].run.schedule, "epoch": epoch + 1}
            rows.append(what | dict(zip(names, values, strict=True)))
    return tables.frame(rows, records)


@kdkit_style()
def draw_movement(table: pd.DataFrame) -> Figure:
    """A panel for each schedule: distances and, dotted, movements; the rate as a grey area behind,
    from 0 to its highest at the top of the panel. table: of `movement_table`."""
    fig = Figure(figsize=(9.2, 3.6))
    axes = fig.subplots(1, table["schedule"].nunique(), sharey=True, squeeze=False)[0]
    top = 1.08 * table[["distance", "movement"]].max().max()
    for ax, (schedule, panel) in zip(axes, table.groupby("schedule", sort=False), strict=True):
        ends = []
        for name, rows in panel.groupby("label", sort=False):
            look = method_style(rows["method"].iloc[0])
            title, colour = name.split(" (")[0], look["color"]
            every = max(1, len(rows) // 6)
            ax.plot(rows["epoch"], rows["distance"], **look | {"linestyle": "-"}, markevery=every)
            ax.plot(rows["epoch"], rows["movement"], color=colour, ls=":", lw=1.4, marker="")
            ends.append((rows["distance"].iloc[-1], f"{title}: apart", colour))
            ends.append((rows["movement"].iloc[-1], f"{title}: moves", colour))
        rate = rows["rate"] / rows["rate"].max()
        ax.fill_between(rows["epoch"], top * rate, step="mid", color="#ededed", lw=0, zorder=0)
        ax.text(1, 0.97 * top, "learning rate", va="top", fontsize=8, color=FAINT_COLOUR)
        ax.set(
            xlabel=f"epoch ({count_text(table)})", title=f"… {SCHEDULES.get(schedule, schedule)}"
        )
        ax.set(ylim=(0, top))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        end_labels(ax, ends)
    axes[0].set_ylabel("distance of two answers")
    return fig


def say_movement(table: pd.DataFrame) -> list[str]:
    """Apart and moved, half-way and at the end; what becomes of it after a drop of the rate."""
    sentences = [
        "Distance between the peers' answers (lines) and between a peer's answer and its own of an "
        f"epoch before (dotted), {seeds_text(table)}, while the learning rate (grey) falls in two "
        "ways."
    ]
    for name, rows in table.groupby("label", sort=False):
        half, last = rows.iloc[len(rows) // 2 - (len(rows) > 3)], rows.iloc[-1]
        text = (
            f"{name}: half-way the peers are {half['distance']:.3f} apart, and a peer moves "
            f"{half['movement']:.3f} in an epoch; at the end {last['distance']:.3f} and "
            f"{last['movement']:.3f}."
        )
        drops = np.flatnonzero(np.diff(rows["rate"]) < 0)  # the last epochs before one
        if rows["schedule"].iloc[0] == "step" and len(drops):
            before, after = rows.iloc[drops[0]], rows.iloc[drops[0] + 1]
            text += (
                f" Over the first drop of the rate the distance goes from {before['distance']:.3f} "
                f"to {after['distance']:.3f} within an epoch, and from there to the end to "
                f"{last['distance']:.3f}; training accuracy is {after['train']:.1f} % by then."
            )
        sentences.append(text)
    return sentences


def two_schedules(base: Run) -> list[dict]:
    """The groups under the preset's schedule and under the other one."""
    step = base.schedule == "step"
    other = {"schedule": "sgdr", "T_0": 1.0} if step else {"schedule": "step"}
    return [{"method": m} | how for how in ({}, other) for m in ("ind", "one")]


@figure("diversity_schedules", notebook="09", runs=two_schedules, whole=True)
class Movement:
    table = movement_table
    draw = draw_movement
    say = say_movement
