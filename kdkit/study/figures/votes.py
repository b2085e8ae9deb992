"""Why a vote is better than those who vote: squared errors drawn as distances, and measured."""

from itertools import pairwise
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ... import metrics
from ..store import Record
from . import tables
from .index import figure
from .style import DASHED, PALETTE, TEXT_COLOUR, kdkit_style, margin_text, method_style
from .tables import count_text, each_row, seeds_text

TOY_PEERS = np.array(  # what four peers say of one image of three classes; the first is true
    [[0.75, 0.10, 0.15], [0.30, 0.50, 0.20], [0.45, 0.10, 0.45], [0.70, 0.30, 0.00]]
)
ALIKE = 0.3  # how far the peers that are alike lie from their mean, of what the others do
CORNERS = np.array([[0.0, np.sqrt(1.5)], [-np.sqrt(0.5), 0.0], [np.sqrt(0.5), 0.0]])  # of classes
CLASSES, PARTS = "eco", ("error of the vote", "diversity")
PEER_COLOUR, VOTE_COLOUR = PALETTE[0], PALETTE[2]


def squared_parts(p: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """(mean squared error of the peers, their diversity, squared error of their vote): the first
    less the second is the third.

    p: probabilities (m, N, K), y: (N,). An error is the squared distance of an answer from the
    label's one-hot answer, the diversity that of a peer from the mean of all peers, the vote their
    mean; each is a mean over the images.
    """
    target = np.eye(p.shape[-1])[y]  # (N, K)
    vote = p.mean(0)
    sides = (p, target), (p, vote), (vote, target)
    return tuple(float(((a - b) ** 2).sum(-1).mean()) for a, b in sides)


# Drawn: distances to the truth, of two groups with the same mean error


def toy_groups() -> dict[str, np.ndarray]:
    """Two groups of peers (m, K) with one mean squared error, the second closer together."""
    label = np.zeros(1, int)
    mean_error, diversity, vote_error = squared_parts(TOY_PEERS[:, None], label)
    truth, vote = np.eye(len(CLASSES))[0], TOY_PEERS.mean(0)
    away = np.sqrt((mean_error - ALIKE**2 * diversity) / vote_error)
    alike = truth + away * (vote - truth) + ALIKE * (TOY_PEERS - vote)
    return {"Peers that differ": TOY_PEERS, "Peers that are alike": alike}


def toy_table(records: list[Record] = ()) -> pd.DataFrame:
    """Each peer's answer in the two groups, and the group's three numbers. Computed from no run."""
    rows = []
    for name, peers in toy_groups().items():
        numbers = squared_parts(peers[:, None], np.zeros(1, int))
        shared = dict(zip(("error", *PARTS[::-1]), numbers, strict=True))
        for number, p in enumerate(peers, 1):
            answer = {f"p({c})": round(float(v), 4) for c, v in zip(CLASSES, p, strict=True)}
            rows.append({"group": name, "peer": number} | answer | shared)
    return tables.frame(rows, records)


@kdkit_style()
def draw_toy(table: pd.DataFrame) -> Figure:
    """Answers as points of a triangle whose corners are the classes, so that a squared error is a
    squared length; below, what is left of the mean error. table: of `toy_table`."""
    fig = Figure(figsize=(8.4, 5.0))
    axes = fig.subplots(2, 2, height_ratios=(4.2, 1))
    for (triangle, bar), (name, rows) in zip(
        axes.T, table.groupby("group", sort=False), strict=True
    ):
        _draw_answers(triangle, rows[[f"p({c})" for c in CLASSES]].to_numpy(float))
        triangle.set_title(name)
        _draw_parts(bar, 0, rows.iloc[0], VOTE_COLOUR, PEER_COLOUR)
        bar.set(
            xlim=(0, 0.45), ylim=(-0.9, 0.6), yticks=[], xlabel="mean squared error of the peers"
        )
        bar.spines["left"].set_visible(False)
        middle = rows["error of the vote"].iloc[0] / 2
        bar.text(middle, -0.72, PARTS[0], ha="center", va="center", fontsize=9)
        bar.text(rows["error"].iloc[0], -0.72, PARTS[1], ha="right", va="center", fontsize=9)
    return fig


def _draw_answers(ax, p: np.ndarray) -> None:
    """One group's answers (m, K), their mean, and their ways to it and to the truth."""
    points, vote, truth = p @ CORNERS, p.mean(0) @ CORNERS, CORNERS[0]
    for start, end in pairwise([*CORNERS, CORNERS[0]]):
        ax.plot(*zip(start, end, strict=True), color="#aaaaaa", marker="", ls="-", lw=1)
    for point in points:
        ax.plot(*zip(point, truth, strict=True), **DASHED | {"marker": ""})
        ax.plot(*zip(point, vote, strict=True), color=PEER_COLOUR, marker="", ls="-", lw=1.6)
    ax.plot(*zip(vote, truth, strict=True), color=VOTE_COLOUR, marker="", ls="-", lw=2.6)
    ax.plot(*points.T, "o", color=PEER_COLOUR, ms=7, ls="none")
    ax.plot(*vote, "*", color=VOTE_COLOUR, ms=15, ls="none")
    for corner, name, (dx, dy) in zip(
        CORNERS, CLASSES, ((0, 0.1), (-0.1, 0), (0.1, 0)), strict=True
    ):
        ax.text(corner[0] + dx, corner[1] + dy, name, ha="center", va="center", fontsize=13)
    ax.text(0.09, CORNERS[0][1] + 0.1, "the truth", va="center", fontsize=9)
    ax.set(xlim=(-1.0, 1.0), ylim=(-0.12, CORNERS[0][1] + 0.22), aspect="equal")
    ax.set_axis_off()


def _draw_parts(ax, y: float, row: pd.Series, colour: str, pale: str) -> None:
    """A bar as long as the peers' mean error: what is left of it, and what the vote takes off."""
    left, off = row[PARTS[0]], row[PARTS[1]]
    ax.barh(y, left, color=colour, height=0.62)
    ax.barh(y, off, left=left, color="white", edgecolor=pale, hatch="////", height=0.62, lw=1)
    ax.grid(axis="y", visible=False)


def say_toy(table: pd.DataFrame) -> list[str]:
    """The three numbers of each group."""
    first = table.drop_duplicates("group")
    return [
        "Two groups of four peers as points in a triangle whose corners are three classes. Dashed: "
        "from each peer to the truth; thin: from each peer to their mean, a star; thick: from the "
        "mean to the truth. The mean of the squared dashed lengths is the same in both groups.",
        *(
            f"{row['group']}: mean error {row['error']:.4f}, less diversity {row[PARTS[1]]:.4f}, "
            f"leaves {row[PARTS[0]]:.4f} for the vote."
            for _, row in first.iterrows()
        ),
    ]


@figure("diagram_vote", notebook="09")
class Toy:
    table = toy_table
    draw = draw_toy
    say = say_toy


# Measured: the same three numbers of groups of students


def parts_table(records: list[Record]) -> pd.DataFrame:
    """For each group of students: the peers' mean squared error, their diversity and the error of
    their vote on the test images (`squared_parts`); n, mean and sd are of the diversity."""
    rows = []
    for name, group in tables.grouped(records).items():
        found = {}
        for record in group:
            peers = record.logits()[0][: record.method.peers()]
            found[record.run.seed] = squared_parts(metrics.softmax(peers), record.labels)
        error, diversity, vote = zip(*found.values(), strict=True)
        rows.append(
            {
                "method": group[0].run.method,
                "label": name,
                "error": np.mean(error),
                PARTS[1]: np.mean(diversity),
                PARTS[0]: np.mean(vote),
                "peers": group[0].method.peers(),
                **tables.spread(dict(zip(found, diversity, strict=True))),
            }
        )
    return tables.frame(rows, records)


@kdkit_style()
def draw_measured(table: pd.DataFrame) -> Figure:
    """What a vote leaves of its peers' mean error, a bar a group. table: of `parts_table`."""
    fig = Figure(figsize=(8.4, max(2.6, 1.1 + 0.42 * len(table))))
    ax = fig.subplots()
    for y, (_, row) in enumerate(table.iterrows()):
        colour = method_style(row["method"])["color"]
        _draw_parts(ax, y, row, colour, colour)
        text = f"{row['error']:.4f} − {row[PARTS[1]]:.4f} = {row[PARTS[0]]:.4f}"
        margin_text(ax, y, text, TEXT_COLOUR)
    ax.set_yticks(range(len(table)), [fill(text, 30) for text in table["label"]])
    ax.set(
        ylim=(len(table) - 0.4, -0.6),
        xlim=(0, 1.02 * table["error"].max()),
        xlabel=f"mean squared error of the peers, {count_text(table)}; hatched: their diversity, "
        "which the vote takes off",
    )
    return fig


def say_measured(table: pd.DataFrame) -> list[str]:
    """Who has the smallest error alone, the largest diversity and the best vote."""
    best = {
        what: table.loc[table[column].agg(pick), "label"]
        for what, column, pick in (
            ("peers", "error", "idxmin"),
            ("spread", PARTS[1], "idxmax"),
            ("vote", PARTS[0], "idxmin"),
        )
    }
    share = 100 * (table[PARTS[1]] / table["error"])
    return [
        f"Mean squared error of the peers, diversity and error of the vote, {seeds_text(table)}: "
        + each_row(table, "{label} {error:.4f} − {diversity:.4f} = {error of the vote:.4f}")
        + ".",
        f"A vote takes {share.min():.1f} to {share.max():.1f} % off its peers' error.",
        f"The best peers alone are {best['peers']}'s, the most diverse {best['spread']}'s, and the "
        f"best vote is {best['vote']}'s.",
    ]


@figure(
    "vote_parts",
    notebook="09",
    runs=[{"method": m} for m in ("ind", "cl_ilr", "one", "okddip", "dml", "dckd")],
    whole=True,
)
class Measured:
    table = parts_table
    draw = draw_measured
    say = say_measured
