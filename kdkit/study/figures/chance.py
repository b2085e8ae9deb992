"""What chance does to comparisons: how many seeds show a difference that is there, and how often
one is shown that is not. Nothing is trained; widgets draw both with other numbers.
"""

from math import comb

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import statistics
from ..papers import claims
from . import tables
from .index import figure
from .style import (
    DASHED,
    FAINT_COLOUR,
    LINES,
    PALETTE,
    TEXT_COLOUR,
    end_labels,
    kdkit_style,
    reuse_figure,
)

GAP, USUAL_SPREAD = 0.5, 0.4  # points: a difference that one would not want to miss; its deviation
ENOUGH = 0.8  # share of experiments that should show it
SEEDS = range(2, 61)
WRONG_COLOUR, RIGHT_COLOUR = PALETTE[2], "#999999"


def lesson_spreads() -> list[float]:
    """Quartiles of how far a difference scatters from seed to seed, in points: the deviations of
    the claims ledger's differences of accuracy. `USUAL_SPREAD` alone where there are none yet."""
    found = [
        row["half_width"] / statistics.half_width(1.0, row["n"])
        for row in claims.ledger()
        if row["metric"] == "top1_deployed" and row["n"] > 1
    ]
    return [float(v) for v in np.percentile(found, (25, 50, 75))] if found else [USUAL_SPREAD]


def needed(gap: float, spread: float) -> int:
    """The smallest number of seeds that shows the gap in at least `ENOUGH` of all experiments; 0
    where that takes more than the largest of `SEEDS`."""
    enough = (n for n in SEEDS if statistics.share_shown(gap, spread, n) >= ENOUGH)
    return next(enough, 0)


def seeds_table(records=(), gap: float = GAP, spreads: list[float] | None = None) -> pd.DataFrame:
    """A row for each deviation `spread` of a paired difference and number of seeds n: the share of
    experiments in which a true difference of `gap` points is shown, and how many are `needed`."""
    rows = [
        {
            "gap": gap,
            "spread": spread,
            "n": n,
            "share": statistics.share_shown(gap, spread, n),
            "needed": needed(gap, spread),
        }
        for spread in spreads or lesson_spreads()
        for n in SEEDS
    ]
    return tables.frame(rows, [])


@kdkit_style()
def draw_seeds(table: pd.DataFrame, fig: Figure | None = None) -> Figure:
    """The share of experiments that show the gap against the number of seeds, a curve for each
    spread, and where it reaches `ENOUGH`. table: of `seeds_table`; fig: one returned before."""
    fig, (ax,) = reuse_figure(fig, (7.2, 3.6), 1, 1)
    ax.set_xscale("log")
    ax.set(xlim=(SEEDS[0], SEEDS[-1]), ylim=(0, 1.03), ylabel="experiments that show it")
    ax.set_xlabel(f"seeds n (a true difference of {table['gap'].iloc[0]:g} points)")
    ticks = (2, 3, 5, 10, 20, 30, 60)
    ax.set_xticks(ticks, map(str, ticks), minor=False)
    ax.xaxis.set_minor_formatter("")
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    ax.axhline(ENOUGH, **DASHED, marker="")
    ends = []
    for number, (spread, rows) in enumerate(table.groupby("spread")):
        look = {"color": PALETTE[number], "ls": LINES[number], "marker": ""}
        ax.plot(rows["n"], rows["share"], **look)
        if count := rows["needed"].iloc[0]:
            share = rows.loc[rows["n"] == count, "share"].iloc[0]
            ax.plot(count, share, "o", color=PALETTE[number], markersize=6)
            ax.text(count, share + 0.035, f"{count} ", fontsize=9, ha="right")
        ends.append((rows["share"].iloc[-1], f"deviation {spread:.2f}", PALETTE[number]))
    end_labels(ax, ends)
    return fig


def say_seeds(table: pd.DataFrame) -> list[str]:
    """How many seeds each spread takes, and what three show."""
    gap = table["gap"].iloc[0]
    each = []
    for spread, rows in table.groupby("spread"):
        count = rows["needed"].iloc[0]
        three = rows.loc[rows["n"] == 3, "share"].iloc[0]
        each.append(
            f"with a deviation of {spread:.2f} points three seeds show it in {100 * three:.0f} % "
            f"of experiments, and {f'{count} seeds' if count else f'no number up to {SEEDS[-1]}'} "
            f"in at least {100 * ENOUGH:.0f} %"
        )
    return [
        f"In what share of experiments a true difference of {gap:g} points lies outside its 95 % "
        f"interval, on its own side, by the number of seeds: {'; '.join(each)}.",
        "The deviation is that of a paired difference from seed to seed.",
    ]


@figure("seeds_needed", notebook="08")
class SeedsNeeded:
    table = seeds_table
    draw = draw_seeds

    def say(table):
        text = "The deviations are quartiles of those in the claims ledger (notebook 10)."
        return [*say_seeds(table), text]


# What comes out of nothing


def chance_table(
    records=(),
    questions: int = 20,
    n: int = 3,
    draw: int = 0,
    corrected: bool = False,
    spread: float = USUAL_SPREAD,
) -> pd.DataFrame:
    """Comparisons whose true difference is 0, a row each: mean of n drawn differences of deviation
    `spread`, half width of the interval, and whether it leaves 0 outside.

    draw: number of the drawing. corrected: intervals of 100 - 5/questions % in place of 95 %
    (Bonferroni), so that all are right in at least 95 % of tables.
    """
    level = 0.05 / questions if corrected else 0.05
    values = np.random.default_rng(draw).normal(0, spread, (questions, n))
    rows = []
    for number, each in enumerate(values, 1):
        _, mean, deviation = statistics.summary(each)
        half = statistics.half_width(deviation, n, level)
        row = {"question": number, "n": n, "draw": draw, "mean": mean, "half_width": half}
        rows.append(row | {"shown": abs(mean) > half, "level": level})
    return tables.frame(rows, [])


def counts_by_chance(questions: int, level: float) -> np.ndarray:
    """The share of tables in which 0, 1, ... of the questions are shown by chance alone:
    (questions + 1,)."""
    ways = ((k, comb(questions, k)) for k in range(questions + 1))
    return np.array([n * level**k * (1 - level) ** (questions - k) for k, n in ways])


@kdkit_style()
def draw_chance(table: pd.DataFrame, fig: Figure | None = None) -> Figure:
    """The intervals of one table of comparisons, those that leave 0 outside in red; on the right
    how many do so in all such tables. table: of `chance_table`; fig: one returned before."""
    fig, (left, right) = reuse_figure(fig, (8.8, 3.8), 1, 2, width_ratios=(1.5, 1))
    for shown, colour in ((False, RIGHT_COLOUR), (True, WRONG_COLOUR)):
        rows = table[table["shown"] == shown]
        x, low, high = rows["question"], rows["mean"], rows["half_width"]
        left.vlines(x, low - high, low + high, color=colour, lw=2)
        left.plot(x, low, "o", color=colour, markersize=4)
    left.axhline(0, color=TEXT_COLOUR, lw=0.9, marker="", ls="-")
    reach = 1.05 * (table["mean"].abs() + table["half_width"]).max()
    title = f"Differences that are 0, {len(table)} comparisons"
    left.set(xlim=(0, len(table) + 1), ylim=(-reach, reach), title=title)
    left.set(xlabel="comparison", ylabel=f"points, n = {table['n'].iloc[0]}")
    left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    counts = counts_by_chance(len(table), table["level"].iloc[0])[: 7 if len(table) > 6 else None]
    here = int(table["shown"].sum())
    colours = [WRONG_COLOUR if count == here else RIGHT_COLOUR for count in range(len(counts))]
    right.vlines(range(len(counts)), 0, counts, color=colours, lw=14)
    for count, share in enumerate(counts):
        right.text(count, share + 0.015, f"{100 * share:.0f} %", fontsize=9, ha="center")
    right.set(xlim=(-0.6, len(counts) - 0.4), ylim=(0, 1.15 * max(counts)), yticks=[])
    right.set(xlabel="of them shown by chance", title="Share of such tables")
    right.set_xticks(range(len(counts)))
    right.grid(False)
    right.tick_params(colors=FAINT_COLOUR)
    return fig


def say_chance(table: pd.DataFrame) -> list[str]:
    """How many were shown here, and how many are to be expected."""
    questions, level = len(table), table["level"].iloc[0]
    counts = counts_by_chance(questions, level)
    n, draw, shown = table["n"].iloc[0], table["draw"].iloc[0], int(table["shown"].sum())
    return [
        f"{questions} comparisons of {n} seeds each between things that do not differ (drawing "
        f"{draw}): {shown} of them lie outside their {100 * (1 - level):.4g} % interval.",
        f"On average {level * questions:.3g} do, and in {100 * (1 - counts[0]):.0f} % of such "
        "tables at least one.",
    ]


@figure("by_chance", notebook="08")
class ByChance:
    table = chance_table
    draw = draw_chance
    say = say_chance
