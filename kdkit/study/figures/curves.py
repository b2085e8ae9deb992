"""Quantities over the epochs: accuracies, losses, diversity, learning rates; one run's progress."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from ..store import Record
from . import tables
from .index import figure
from .style import (
    FAINT_COLOUR,
    LINES,
    MARKERS,
    PALETTE,
    REFERENCE_COLOUR,
    TEXT_COLOUR,
    end_labels,
    kdkit_style,
    mark_redrawn,
    mean_sd_text,
    method_style,
    reuse_figure,
)
from .tables import count_text, each_row, seeds_text, verdict

TRAINING, PROBE, RATE = "training accuracy (%)", "probe accuracy (%)", "learning rate"
TEST = "test accuracy (%)"  # at the last epoch alone
# Name -> its value from one epoch's row of a record's history; None where there is none.
QUANTITIES: dict[str, Callable[[dict], float | None]] = {
    TRAINING: lambda row: float(np.mean(row["train_top1"])),
    PROBE: lambda row: float(np.mean(row["probe_top1"])),
    "training loss": lambda row: sum(row["terms"].values()),
    "diversity": lambda row: row["diversity"],
    RATE: lambda row: row["lr"],
}


def curves_table(records: list[Record], *quantities: str) -> pd.DataFrame:
    """A row for each kind of run, quantity (of `QUANTITIES`) and epoch (from 1)."""
    rows = []
    for name, group in tables.grouped(records).items():
        for quantity in quantities:
            read = QUANTITIES[quantity]
            curves = {record.run.seed: [read(row) for row in record.history] for record in group}
            for epoch in range(max(map(len, curves.values()))):
                values = {
                    seed: curve[epoch]
                    for seed, curve in curves.items()
                    if epoch < len(curve) and curve[epoch] is not None
                }
                if values:
                    rows.append(
                        {
                            "method": group[0].run.method,
                            "label": name,
                            "quantity": quantity,
                            "epoch": epoch + 1,
                            **tables.spread(values),
                        }
                    )
    return tables.frame(rows, records)


@kdkit_style()
def draw_curves(
    table: pd.DataFrame, panels: dict[str, list[str]], reference: pd.DataFrame | None = None
) -> Figure:
    """Quantities over epochs: mean, a band of one deviation over the seeds, labels at the ends.

    table: of `curves_table`; panels: title of a panel -> its quantities; reference: as table, its
    means and 95 % intervals in grey beneath.
    """
    fig = Figure(figsize=(8.4 if len(panels) > 1 else 6.6, 3.4))
    axes = np.ravel(fig.subplots(1, len(panels)))
    for ax, (title, quantities) in zip(axes, panels.items(), strict=True):
        if reference is not None:
            _draw_reference(ax, reference[reference["quantity"].isin(quantities)])
        _draw_panel(ax, title, quantities, table[table["quantity"].isin(quantities)])
    return fig


def _draw_reference(ax, table: pd.DataFrame) -> None:
    """The curves of the reference, beneath."""
    for _, rows in table.groupby(["label", "quantity"], sort=False):
        half = tables.half_widths(rows)
        low, high = rows["mean"] - half, rows["mean"] + half
        ax.fill_between(rows["epoch"], low, high, color=REFERENCE_COLOUR, alpha=0.6, lw=0)
        ax.plot(rows["epoch"], rows["mean"], color=REFERENCE_COLOUR, marker="", ls="-", lw=1.2)


def _draw_panel(ax, title: str, quantities: list[str], table: pd.DataFrame) -> None:
    """The curves of one panel."""
    several = len(quantities) > 1
    shared_colours = several or table["method"].nunique() < table["label"].nunique()
    ends = []
    groups = table.groupby(["label", "quantity"], sort=False)
    for number, ((label, quantity), rows) in enumerate(groups):
        look = method_style(rows["method"].iloc[0])
        if shared_colours:  # then line and marker tell the curves apart
            look |= {"linestyle": LINES[number % 5], "marker": MARKERS[number]}
        epochs, mean, sd = rows["epoch"], rows["mean"], rows["sd"].fillna(0)
        ax.plot(epochs, mean, **look, markevery=max(1, len(rows) // 8), markersize=4.5)
        ax.fill_between(epochs, mean - sd, mean + sd, color=look["color"], alpha=0.18, lw=0)
        text = quantity.split(" (")[0] if several else label
        ends.append((mean.iloc[-1], text, look["color"]))
    ax.set(xlabel=f"epoch ({count_text(table)})", title=title)
    # A curve that falls far would be flat at its end on a linear scale.
    if 0 < table["mean"].min() and table["mean"].max() > 4 * max(ends)[0]:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    end_labels(ax, ends)


def say_curves(table: pd.DataFrame) -> list[str]:
    """The last value of each curve, what training accuracy is above the probe's, and where the
    probe's is highest. table: of `curves_table`."""
    epochs = table["epoch"].max()
    last = table[table["epoch"] == epochs]
    values = each_row(last, "{label} {quantity} {mean:.4g}").replace(" (%)", "")
    sentences = [f"Curves over {epochs} epochs, {seeds_text(table)}; at the end: {values}."]
    for name, rows in last.groupby("label", sort=False):
        by_quantity = {row["quantity"]: row for _, row in rows.iterrows()}
        several = rows["n"].max() > 1
        if several and TRAINING in by_quantity and PROBE in by_quantity:
            difference = tables.paired_rows(by_quantity[TRAINING], by_quantity[PROBE])
            subject = f"{name}'s training accuracy"
            sentences.append(verdict(subject, "that on the probe", difference))
    for (name, quantity), rows in table.groupby(["label", "quantity"], sort=False):
        if quantity == PROBE:
            highest = rows.loc[rows["mean"].idxmax()]
            sentences.append(
                f"{name}'s probe accuracy is highest after epoch {highest['epoch']:.0f} with "
                f"{highest['mean']:.2f} %; the result is the last epoch's, not that one."
            )
    return sentences


def say_diversity(table: pd.DataFrame) -> list[str]:
    """The order at the end of training, and each against the first kind of run, the upper bound.
    table: of `curves_table`, with diversities."""
    last = table[table["epoch"] == table["epoch"].max()]
    order = last.sort_values("mean", ascending=False)
    values = ", ".join(
        f"{row['label']} {mean_sd_text(row['mean'], row['sd'], digits=4)}"
        for _, row in order.iterrows()
    )
    bound = last.iloc[0]
    has = "has" if order["label"].iloc[0] == bound["label"] else "has not"
    sentences = [
        f"Mean distance between peers' predictions over the epochs, {seeds_text(table)}; at the "
        f"end, from the most diverse: {values}.",
        f"{bound['label']}, whose students do not teach each other, {has} the most diverse "
        "peers at the end.",
    ]
    for _, row in last.iloc[1:].iterrows() if last["n"].max() > 1 else ():
        difference = tables.paired_rows(row, bound)
        sentences.append(
            verdict(f"{row['label']}'s diversity", f"{bound['label']}'s", difference, "", 4)
        )
    return sentences


@kdkit_style()
def draw_progress(history: list[dict], title: str, fig: Figure | None = None) -> Figure:
    """The curves of one run, finished or not: unweighted loss terms, training and probe accuracy.

    history: of a record, a row for each epoch; may be empty. fig: a figure that this function
    returned before, to be drawn in again.
    """
    margins = {"left": 0.08, "right": 0.93, "bottom": 0.16, "top": 0.88, "wspace": 0.62}
    fig, axes = reuse_figure(fig, (8.4, 2.9), 1, 2, gridspec_kw=margins)
    fig.set_layout_engine("none")  # placed by hand, as labels come and go
    terms, accuracies = {}, {}
    if history:
        terms = {name: [row["terms"][name] for row in history] for name in history[0]["terms"]}
        for name in ("train", "probe"):
            accuracies[name] = [np.mean(row[f"{name}_top1"]) for row in history]
    for ax, curves, ylabel in (
        (axes[0], terms, "loss terms, without weights"),
        (axes[1], accuracies, "accuracy (%)"),
    ):
        for number, values in enumerate(curves.values()):
            ax.plot(
                range(1, len(values) + 1),
                values,
                ls=LINES[number % 5],
                marker=MARKERS[number],
                ms=3.5,
                color=PALETTE[number],
            )
        ax.set(xlabel="epoch", ylabel=ylabel, xlim=(0, 1), ylim=(0, 1))  # where nothing is shown
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.relim()
        ax.autoscale()
        ends = [(v[-1], name, PALETTE[i]) for i, (name, v) in enumerate(curves.items())]
        end_labels(ax, ends)
        mark_redrawn(ax)
    axes[0].set_title(title)
    return fig


@kdkit_style()
def draw_overlay(
    curves: dict[str, list[dict]], epochs: int, fig: Figure | None = None
) -> Figure | None:
    """The curves of one run over those of another: accuracies, and unweighted loss terms.

    curves: name of a run -> its history so far, which may be empty; the first is drawn solid, the
    others are dashed and grey, with such loss terms alone as the first has. epochs: of the axis.
    fig: a figure that this function returned before, to be drawn in again. None where no run has
    a history.
    """
    if not any(curves.values()):
        return None
    margins = {"left": 0.1, "right": 0.72, "bottom": 0.11, "top": 0.94, "hspace": 0.24}
    grid = {"gridspec_kw": margins, "height_ratios": (1.4, 1), "sharex": True}
    fig, (above, below) = reuse_figure(fig, (5.8, 4.7), 2, 1, **grid)
    fig.set_layout_engine("none")  # placed by hand, as labels come and go
    ends, term_ends = [], {}
    names = next(list(history[0]["terms"]) for history in curves.values() if history)
    for number, (name, history) in enumerate(curves.items()):
        if not history:
            continue
        x = range(1, len(history) + 1)
        colour = FAINT_COLOUR if number else PALETTE[0]
        look = {"color": colour, "marker": "" if len(history) > 1 else "o", "zorder": 3 - number}
        dashes = "--" if number else "-"
        probe, training = ([QUANTITIES[q](row) for row in history] for q in (PROBE, TRAINING))
        above.plot(x, probe, ls=dashes, **look)
        above.plot(x, training, ls=":", lw=1.2, **look)
        ends.append(((probe[-1], f"{name} {probe[-1]:.1f}", colour), x[-1]))
        for place, term in enumerate(names):
            if term in history[0]["terms"]:
                values = [row["terms"][term] for row in history]
                below.plot(x, values, ls=dashes, **look | {"color": PALETTE[place % 10]})
                term_ends.setdefault(term, ((values[-1], term, PALETTE[place % 10]), x[-1]))
    highest = max(max(line.get_ydata()) for line in above.lines)
    above.set_title("Accuracy on the probe (%); on training images dotted")
    above.set_ylim(0, min(100, 10 * np.ceil(highest / 9)))
    below.set_title("Loss terms, without weights")
    values = np.concatenate([line.get_ydata() for line in below.lines])
    below.set_yscale("log" if values.min() > 0 else "linear")
    below.relim()
    below.autoscale(axis="y")
    below.set_xlabel("epoch")
    for ax, labels in ((above, ends), (below, term_ends.values())):
        ax.set(xlim=(0.5, epochs + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        end_labels(ax, *map(list, zip(*labels, strict=True)))
        mark_redrawn(ax)
    return fig


@dataclass(frozen=True)
class Curves:
    """A kind of figure: quantities over the epochs. panels: title -> quantities of `QUANTITIES`."""

    panels: dict[str, list[str]]

    def table(self, records: list[Record]) -> pd.DataFrame:
        names = [name for quantities in self.panels.values() for name in quantities]
        return curves_table(records, *names)

    def draw(self, table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
        return draw_curves(table, self.panels, reference)

    say = staticmethod(say_curves)


def gaps(table: pd.DataFrame) -> pd.Series:
    """Epoch -> mean training accuracy less the probe's, in points. table: of `curves_table`, of one
    kind of run."""
    mean = table.pivot(index="epoch", columns="quantity", values="mean")
    return mean[TRAINING] - mean[PROBE]


def parting(gap: pd.Series) -> int:
    """The first epoch from which training accuracy stays above the probe's; 0 where it does not
    end above it. gap: of `gaps`."""
    level = gap.index[gap <= 0]
    first = int(level.max()) + 1 if len(level) else int(gap.index[0])
    return first if first <= gap.index[-1] else 0


class Parting(Curves):
    """A kind of figure: training and probe accuracy of one kind of run, and where they part."""

    @kdkit_style()
    def draw(self, table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
        fig, gap = super().draw(table, reference), gaps(table)
        if first := parting(gap):
            ax, after = fig.axes[0], gap.index >= first
            mean = table.pivot(index="epoch", columns="quantity", values="mean")[after]
            ax.fill_between(mean.index, mean[PROBE], mean[TRAINING], color="#f5d76e", alpha=0.35)
            ax.axvline(first, color=TEXT_COLOUR, lw=0.9, ls=":")
            below = {"transform": ax.get_xaxis_transform(), "fontsize": 9}
            ax.text(first, 0.04, f"  apart from\n  epoch {first} on", **below)
            end = (mean[PROBE].iloc[-1] + mean[TRAINING].iloc[-1]) / 2
            ax.text(
                gap.index[-1],
                end,
                f"{gap.iloc[-1]:.1f} points ",
                fontsize=9,
                ha="right",
                va="center",
            )
        return fig

    @staticmethod
    def say(table: pd.DataFrame) -> list[str]:
        first, *sentences = say_curves(table)
        gap = gaps(table)
        apart = parting(gap)
        where = (
            f"Training accuracy stays above the probe's from epoch {apart} on"
            if apart
            else "Training accuracy does not end above the probe's"
        )
        sentence = (
            f"{where}; it is furthest above it after epoch {gap.idxmax()}, by {gap.max():.1f} "
            f"points, and at the end by {gap.iloc[-1]:.1f}."
        )
        return [first, sentence, *sentences]


class Diversity(Curves):
    """A kind of figure: the peers' diversity over the epochs; the first run is the upper bound."""

    def __init__(self):
        super().__init__({"Mean distance between peers' predictions": ["diversity"]})

    say = staticmethod(say_diversity)


figure(
    "baseline_curves",
    notebook="01",
    runs=[{"method": "baseline"}],
    kind=Parting({"Accuracy (%)": [TRAINING, PROBE], "Loss": ["training loss"]}),
)
figure(
    "online_diversity",
    notebook="05",
    runs=[{"method": m} for m in ("ind", "cl_ilr", "one", "okddip")],
    kind=Diversity(),
)
figure(
    "okddip_diversity",
    notebook="06",
    runs=[
        {"method": "ind", "based": "network"},
        {"method": "okddip", "based": "network"},
        {"method": "dml"},
    ],
    kind=Diversity(),
)


def cycles_text(rates: np.ndarray) -> str:
    """A learning rate over the epochs, in words: how often it restarts, and how training ends."""
    restarts = np.flatnonzero(np.diff(rates) > 0) + 1  # epochs, from 0, that begin a cycle
    if not len(restarts):
        return "one cycle"
    low = rates[-1] < 0.05 * rates.max()
    last = f"{len(rates) - restarts[-1]} epochs into a cycle"
    return f"{len(restarts)} restarts, ends {'with a cycle' if low else last}"


def schedules_table(records: list[Record]) -> pd.DataFrame:
    """`curves_table` of learning rates and probe accuracies, and at the last epoch the accuracy of
    the deployed student on all test images."""
    curves, ends = curves_table(records, RATE, PROBE), []
    for name, group in tables.grouped(records).items():
        first = curves[curves["label"] == name].iloc[-1]
        values = {record.run.seed: record.result["top1_deployed"] for record in group}
        row = {name: first[name] for name in ("method", "label", "epoch")}
        ends.append(row | {"quantity": TEST} | tables.spread(values))
    return tables.frame([*curves.to_dict("records"), *ends], records)


def _by_schedule(table: pd.DataFrame) -> list[tuple[str, dict[str, pd.DataFrame]]]:
    """Of each schedule what it is in words, and its rows by quantity."""
    found = []
    for _, rows in table.groupby("label", sort=False):
        parts = {quantity: part for quantity, part in rows.groupby("quantity", sort=False)}
        found.append((cycles_text(parts[RATE]["mean"].to_numpy()), parts))
    return found


@kdkit_style()
def draw_schedules(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Learning rates above, on a linear axis, and below them the accuracy under each; a vertical
    line at each restart. table, reference: of `schedules_table`."""
    fig = Figure(figsize=(9.2, 4.8))
    axes = fig.subplots(2, 1, sharex=True, height_ratios=(1, 1.6))
    if reference is not None:
        _draw_reference(axes[1], reference[reference["quantity"] == PROBE])
    ends = [], []
    for number, (text, parts) in enumerate(_by_schedule(table)):
        look = {"color": PALETTE[number], "ls": LINES[number], "marker": "", "lw": 1.7}
        accuracy = f"{text}: {parts[TEST]['mean'].iloc[0]:.2f} %"
        for ax, end, quantity, words in zip(
            axes, ends, (RATE, PROBE), (text, accuracy), strict=True
        ):
            curve = parts[quantity]
            ax.plot(curve["epoch"], curve["mean"], **look)
            end.append((curve["mean"].iloc[-1], words, PALETTE[number]))
            for epoch in curve["epoch"][:-1][np.diff(parts[RATE]["mean"]) > 0]:
                ax.axvline(epoch + 0.5, color=PALETTE[number], ls=":", lw=0.8, zorder=0)
    titles = "Learning rate", "Accuracy on the probe (%), and at the end on all test images"
    for ax, end, title in zip(axes, ends, titles, strict=True):
        ax.set_title(title)
        end_labels(ax, end)
    axes[1].set_xlabel(f"epoch ({count_text(table)})")
    axes[1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return fig


def say_schedules(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """What accuracy each schedule ends with, and where that was higher before; over several seeds
    the difference to the first. table, reference: of `schedules_table`."""
    sentences = [
        f"Learning rates and accuracies over {table['epoch'].max()} epochs of one method, under "
        f"{table['label'].nunique()} schedules, {seeds_text(table)}."
    ]
    for text, parts in _by_schedule(table):
        probe, test = parts[PROBE], parts[TEST]["mean"].iloc[0]
        highest = probe.loc[probe["mean"].idxmax()]
        sentences.append(
            f"{text[0].upper()}{text[1:]}: {test:.2f} % of the test images at the end; of the "
            f"probe {probe['mean'].iloc[-1]:.2f} %, at most {highest['mean']:.2f} %, after epoch "
            f"{highest['epoch']:.0f}."
        )
    judged = table if table["n"].max() > 1 or reference is None else reference
    (first, base), *others = _by_schedule(judged)
    for text, parts in others if judged["n"].min() > 1 else ():
        difference = tables.paired_rows(parts[TEST].iloc[0], base[TEST].iloc[0])
        sentences.append(verdict(f"{text[0].upper()}{text[1:]},", first, difference))
    return sentences


@figure(
    "schedules",
    notebook="07",
    runs=[
        {"method": "baseline", "schedule": "sgdr", "T_0": T_0}
        for T_0 in (1.0, 1 / 15, 1 / 7)  # 1/15: cycles of 2, 4, 8 and 16 epochs are all of thirty
    ],
)
class Schedules:
    table = schedules_table
    draw = draw_schedules
    say = say_schedules
