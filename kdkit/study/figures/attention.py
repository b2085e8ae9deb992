"""The attention between peers over training, and what is asymmetric in it."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..store import Record
from . import tables
from .index import figure
from .style import (
    DASHED,
    LINES,
    PALETTE,
    TEXT_COLOUR,
    end_labels,
    kdkit_style,
    mark_redrawn,
    reuse_figure,
)


def attention_table(records: list[Record]) -> pd.DataFrame:
    """A row for each seed, epoch (from 1) and pair of peers (from 1): how much `peer` takes from
    `source`, and how much more than the other way round (`asymmetry`)."""
    rows = []
    for record in records:
        name = tables.label(record.run)
        for epoch, matrix in enumerate(record.arrays["attention"]):
            for (peer, source), value in np.ndenumerate(matrix):
                rows.append(
                    {
                        "label": name,
                        "seed": record.run.seed,
                        "epoch": epoch + 1,
                        "peer": peer + 1,
                        "source": source + 1,
                        "attention": float(value),
                        "asymmetry": float(value - matrix[source, peer]),
                    }
                )
    return tables.frame(rows, records)


@kdkit_style()
def draw_matrices(panels: list[tuple[str, np.ndarray]], fig: Figure | None = None) -> Figure:
    """Attention A (n, n) above and its asymmetry A - A^T below, for each (title, A).

    fig: a figure of as many matrices that this function returned before, to be drawn in again.
    """
    side = max(1.75, 0.42 * len(panels[0][1]))  # inches, so that the values can be read
    size = 1.4 + side * len(panels), 0.8 + 2 * side
    fig, axes = reuse_figure(fig, size, 2, len(panels), sharex=True, sharey=True)
    above, below = np.reshape(axes, (2, -1))
    # Colours are the same in all panels; attention's are centred on half of the largest value, or
    # on the even share 1/n where no value is twice as large.
    half = max(2 / len(panels[0][1]), *(A.max() for _, A in panels)) / 2
    widest = max(0.01, *(np.abs(A - A.T).max() for _, A in panels))
    for column, (title, A) in enumerate(panels):
        draw_matrix(above[column], A, "Blues", half, half)
        draw_matrix(below[column], A - A.T, "PuOr", 0, widest)
        above[column].set_title(title)
    fig.supxlabel("peer $b$ that is learned from", fontsize=9.5)
    above[0].set_ylabel("learning peer $a$: $A_{ab}$")
    below[0].set_ylabel("learning peer $a$: $A_{ab} - A_{ba}$")
    return fig


def draw_matrix(ax, matrix: np.ndarray, cmap: str, middle: float, reach: float) -> None:
    """A matrix (n, n) of peers, its values written in; colours reach from middle - reach to middle
    + reach. A middle of 0 stands for differences, whose sign is written."""
    image = ax.imshow(matrix, cmap=cmap, vmin=middle - reach, vmax=middle + reach)
    ax.grid(False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(len(matrix)), range(1, len(matrix) + 1))
    few = len(matrix) < 5
    digits = 3 if few else 2
    for (row, column), value in np.ndenumerate(matrix):
        value = round(float(value), digits) + 0.0  # no -0.000
        text = format(value, f"{'' if middle else '+'}.{digits}f") if value or middle else "0"
        luminance = np.dot(image.to_rgba(value)[:3], (0.299, 0.587, 0.114))
        ax.text(
            column,
            row,
            text.replace("-", "−"),
            ha="center",
            va="center",
            fontsize=8.5 if few else 6.5,
            color="white" if luminance < 0.5 else TEXT_COLOUR,
        )
    mark_redrawn(ax, except_=(ax.xaxis, ax.yaxis))


@kdkit_style()
def draw_attention_epoch(A: np.ndarray, epoch: int, fig: Figure | None = None) -> Figure:
    """Attention A (E, n, n) after one epoch (from 1), its asymmetry, and how much each peer gives
    to itself over all epochs, with the epoch marked.

    fig: a figure that this function returned before of as many peers, to be drawn in again.
    """
    n, matrix = A.shape[-1], A[epoch - 1]
    widths = {"width_ratios": (1, 1, 1.7)}
    fig, (left, middle, right) = reuse_figure(fig, (9.4, 3.1), 1, 3, **widths)
    gaps = np.abs(A - A.transpose(0, 2, 1)).max()  # colours are the same at all epochs
    half = max(2 / n, A.max()) / 2
    draw_matrix(left, matrix, "Blues", half, half)
    draw_matrix(middle, matrix - matrix.T, "PuOr", 0, max(0.01, gaps))
    left.set(title=f"$A$ after epoch {epoch}", ylabel="learning peer $a$")
    middle.set_title("$A_{ab} - A_{ba}$")
    for ax in (left, middle):
        ax.set_xlabel("peer $b$ that is learned from")
        mark_redrawn(ax, except_=(ax.xaxis, ax.yaxis))
    own, epochs = np.einsum("eaa->ea", A), np.arange(1, len(A) + 1)
    for number, share in enumerate(own.T):
        look = {"color": PALETTE[number % 10], "ls": LINES[number % 5], "marker": ""}
        right.plot(epochs, share, **look)
        right.plot(epoch, share[epoch - 1], "o", color=look["color"], ms=6)
    right.axvline(epoch, **DASHED)
    right.axhline(1 / n, **DASHED)
    right.text(len(A), 1 / n, f"even share 1/{n}", fontsize=9, va="bottom", ha="right")
    right.set(title="Attention to oneself", xlabel="epoch", ylim=(0, 1.03))
    right.set_xlim(0.5, len(A) + 0.5)
    ends = [(share[-1], f"peer {i}", PALETTE[(i - 1) % 10]) for i, share in enumerate(own.T, 1)]
    end_labels(right, ends)
    mark_redrawn(right, except_=(right.xaxis, right.yaxis))
    return fig


def draw_attention(table: pd.DataFrame, epochs: int = 4) -> Figure:
    """Attention matrices of the first seed at `epochs` moments of training, and their asymmetry.
    table: of `attention_table`."""
    first_label, first_seed = table["label"].iloc[0], table["seed"].min()
    rows = table[(table["label"] == first_label) & (table["seed"] == first_seed)]
    panels = []
    for epoch in np.unique(np.linspace(1, rows["epoch"].max(), epochs).round()):
        one = rows[rows["epoch"] == epoch]
        matrix = one.pivot(index="peer", columns="source", values="attention").to_numpy()
        panels.append((f"epoch {int(epoch)}", matrix))
    return draw_matrices(panels)


def say_attention(table: pd.DataFrame) -> list[str]:
    """How far from uniform and from symmetric the attention is at the start and at the end."""
    n, epochs = table["peer"].max(), table["epoch"].max()
    first, last = table[table["epoch"] == 1], table[table["epoch"] == epochs]
    first_asymmetry, last_asymmetry = (t["asymmetry"].abs().max() for t in (first, last))
    unevenness = (last["attention"] - 1 / n).abs().max()
    own_share = last[last["peer"] == last["source"]]["attention"].mean()
    return [
        f"Attention between {n} peers of {table['label'].iloc[0]} over {epochs} epochs; at the end "
        f"its largest asymmetry is {last_asymmetry:.3f} and its largest distance from 1/{n} "
        f"{unevenness:.3f}.",
        f"The largest asymmetry {'grew' if last_asymmetry > first_asymmetry else 'did not grow'} "
        f"over training: {first_asymmetry:.3f} after epoch 1, {last_asymmetry:.3f} after epoch "
        f"{epochs} ({table['seed'].nunique()} seed(s)).",
        f"At the end a peer gives itself {own_share:.3f} on average, "
        f"{'more' if own_share > 1 / n else 'not more'} than the even share of {1 / n:.3f}.",
    ]


@figure("okddip_attention", notebook="06", runs=[{"method": "okddip"}], whole=True)
class Attention:
    table = attention_table
    draw = draw_attention
    say = say_attention


def own_share_table(records: list[Record]) -> pd.DataFrame:
    """How much of its attention a peer gives to itself, the mean over peers after each epoch, and
    the leader's accuracy."""
    rows = []
    for name, group in tables.grouped(records).items():
        shares = {r.run.seed: np.einsum("eaa->ea", r.arrays["attention"]).mean(1) for r in group}
        top1 = np.mean([record.result["top1_deployed"] for record in group])
        for epoch in range(len(next(iter(shares.values())))):
            rows.append(
                {
                    "method": group[0].run.method,
                    "label": name,
                    "peers": group[0].arrays["attention"].shape[-1],
                    "epoch": epoch + 1,
                    "top1_deployed": top1,
                    **tables.spread({seed: float(share[epoch]) for seed, share in shares.items()}),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_own_share(table: pd.DataFrame) -> Figure:
    """Attention to oneself over the epochs, a line for each form. table: of `own_share_table`."""
    fig, ends = Figure(figsize=(9.6, 3.4)), []
    ax = fig.subplots()
    for number, (name, rows) in enumerate(table.groupby("label", sort=False)):
        style = {"color": PALETTE[number], "ls": LINES[number % 5], "marker": ""}
        ax.plot(rows["epoch"], rows["mean"], **style)
        text = f"{name}: leader {rows['top1_deployed'].iloc[0]:.1f} %"
        ends.append((rows["mean"].iloc[-1], text, PALETTE[number]))
    ax.axhline(1 / table["peers"].iloc[0], **DASHED)
    place = table["epoch"].max(), 1 / table["peers"].iloc[0] - 0.015
    ax.text(*place, "the even share", fontsize=9, ha="right", va="top")
    ax.set(xlabel="epoch", ylabel="attention to oneself", ylim=(0, 1.03))
    end_labels(ax, ends)
    return fig


def say_own_share(table: pd.DataFrame) -> list[str]:
    """The share at the end of each form."""
    last = table[table["epoch"] == table["epoch"].max()]
    shares = tables.each_row(last, "{label} {mean:.2f} (leader {top1_deployed:.2f} %)")
    even = 1 / table["peers"].iloc[0]
    above = (last["mean"] > even).sum()
    return [
        f"The share of its attention that a peer gives to itself; at the end: {shares}.",
        f"It is above the even share of {even:.2f} in {above} of {len(last)} forms, and above one "
        f"half in {(last['mean'] > 0.5).sum()}: there, what a peer is taught is mostly its own "
        "softened answer.",
    ]


@figure(
    "okddip_own_share",
    notebook="06",
    runs=[
        {"method": "okddip"},
        {"method": "okddip", "detach": True},
        {"method": "okddip", "aggregate": "probs"},
        {"method": "okddip", "aggregate": "probs", "detach": True},
    ],
    whole=True,
)
class OwnShare:
    table = own_share_table
    draw = draw_own_share
    say = say_own_share
