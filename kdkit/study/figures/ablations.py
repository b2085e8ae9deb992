"""Ablations: what each part of OKDDip and DCKD is worth, alone and together, and how many students
it takes."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..reference import ReferenceRecord
from ..store import Record
from . import tables
from .accuracy import ABLATION, Sweep
from .index import figure
from .style import (
    FAINT_COLOUR,
    PALETTE,
    REFERENCE_COLOUR,
    TEXT_COLOUR,
    end_labels,
    kdkit_style,
    margin_text,
    mean_sd_text,
    method_style,
)
from .tables import count_text, label, seed_columns, seeds_text

figure(
    "okddip_ablations",
    notebook="08",
    runs=[
        {"method": "okddip"},
        *({"method": "okddip", "attention": a} for a in ("random", "entropy", "mean", "symmetric")),
        {"method": "okddip", "two_level": False},
    ],
    kind=ABLATION,
)

# Two parts of DCKD, each with and without: four kinds of run

DIRECTIONS = {True: "reverse KL", False: "forward KL"}
COLLECTIONS = {"lmax": "maximum", "avg": "average"}
EFFECTS = {  # what a change is worth -> weights of (reverse, maximum), (forward, maximum),
    # (reverse, average) and (forward, average)
    "reverse KL, with the maximum": (1, -1, 0, 0),
    "reverse KL, with the average": (0, 0, 1, -1),
    "reverse KL, mean of both": (0.5, -0.5, 0.5, -0.5),
    "maximum, mean of both": (0.5, 0.5, -0.5, -0.5),
    "interaction, first less second": (1, -1, -1, 1),
}


def square_table(records: list[Record]) -> pd.DataFrame:
    """Accuracies in percent of the four combinations of direction and collection, a row each, and
    then what each part is worth, by the other and on average, and their interaction: by how many
    points reverse KL is worth more by the maximum than by the average. Paired by seed."""
    accuracies = {}
    for record in records:
        cell = record.method.reverse, record.method.collection
        accuracies.setdefault(cell, {})[record.run.seed] = record.result["top1_deployed"]
    cells = [(r, c) for c in COLLECTIONS for r in DIRECTIONS]
    rows = [
        {
            "part": "accuracy",
            "method": records[0].run.method,
            "label": f"{DIRECTIONS[reverse]}, {COLLECTIONS[collection]}",
            "reverse": reverse,
            "collection": collection,
            **tables.spread(accuracies[reverse, collection]),
        }
        for reverse, collection in cells
    ]
    for name, weights in EFFECTS.items():
        used = [accuracies[cell] for cell, weight in zip(cells, weights, strict=True) if weight]
        weights = [weight for weight in weights if weight]
        worth = {
            seed: sum(w * values[seed] for w, values in zip(weights, used, strict=True))
            for seed in sorted(set.intersection(*map(set, used)))
        }
        paired = tables.paired(worth, dict.fromkeys(worth, 0.0))
        rows.append({"part": "worth", "label": name, **paired, **tables.spread(worth)})
    return tables.frame(rows, records)


@kdkit_style()
def draw_square(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """All four combinations: were the lines parallel, each part would be worth the same with and
    without the other. On the right what each is worth, with its 95 % interval. table, reference:
    of `square_table`."""
    fig = Figure(figsize=(9.6, 3.6))
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.1))
    runs, ends = table[table["part"] == "accuracy"], []
    for number, (reverse, rows) in enumerate(runs.groupby("reverse", sort=False)):
        colour, marker = PALETTE[number], "os"[number]
        x = np.arange(len(rows)) + 0.03 * number
        for column in seed_columns(rows):
            left.plot(x, rows[column], marker, color=colour, markersize=3.5, alpha=0.45, mew=0)
        left.plot(x, rows["mean"], color=colour, marker=marker, ls=("-", "--")[number], lw=1.8)
        ends.append((rows["mean"].iloc[-1], DIRECTIONS[reverse], colour))
    left.set_xticks(range(len(COLLECTIONS)), COLLECTIONS.values())
    left.set(xlim=(-0.2, 1.2), ylabel="test accuracy (%)", title=f"All four, {count_text(runs)}")
    end_labels(left, ends)
    worth = table[table["part"] == "worth"].reset_index(drop=True)
    for y, row in worth.iterrows():
        if (grey := tables.row_of(reference, row["label"])) is not None:
            ends = grey["difference"] + np.array([-1, 1]) * np.nan_to_num(grey["half_width"])
            style = {"color": REFERENCE_COLOUR, "lw": 7, "solid_capstyle": "butt", "marker": ""}
            right.plot(ends, [y, y], **style)
        values = row[seed_columns(worth)].dropna().astype(float)
        right.plot(values, [y] * len(values), ".", color=FAINT_COLOUR, markersize=5)
        half = np.nan_to_num(row["half_width"])
        right.errorbar(row["difference"], y, xerr=half, fmt="D", color=TEXT_COLOUR, capsize=3)
        margin_text(right, y, mean_sd_text(row["difference"], row["half_width"], "+"))
    right.axvline(0, color=TEXT_COLOUR, lw=0.9, zorder=0)
    right.set_yticks(range(len(worth)), [text.replace(", ", ",\n") for text in worth["label"]])
    right.set(ylim=(len(worth) - 0.5, -0.5), xlabel="points, paired by seed", title="Worth")
    return fig


def say_square(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """The four, whether the parts add up, and what is shown. table, reference: of
    `square_table`."""
    runs = table[table["part"] == "accuracy"].set_index(["reverse", "collection"])
    cost = {cell: runs.loc[cell, "mean"] - runs.loc[(True, "lmax"), "mean"] for cell in runs.index}
    both, each = cost[False, "avg"], cost[False, "lmax"] + cost[True, "avg"]
    accuracies = tables.each_row(runs.reset_index(), "{label} {mean:.2f}")
    sentences = [
        f"Test accuracy in percent of DCKD with two parts, each with and without the other, "
        f"{seeds_text(runs)}: {accuracies}.",
        f"Taking away reverse KL alone changes it by {cost[False, 'lmax']:+.2f} points, the "
        f"maximum alone by {cost[True, 'avg']:+.2f}: {each:+.2f} if they added up. Taking away "
        f"both changes it by {both:+.2f}.",
    ]
    judged = table if table["n"].max() > 1 else reference
    if judged is not None:
        for _, row in judged[judged["part"] == "worth"].iterrows():
            worth = mean_sd_text(row["difference"], row["half_width"], "+")
            end = f": {'' if row['shown'] else 'not '}shown" if row["pairs"] > 1 else ""
            sentences.append(f"{row['label'][0].upper()}{row['label'][1:]}: {worth} points{end}.")
    return sentences


@figure(
    "dckd_ablations",
    notebook="08",
    runs=[
        {"method": "dckd"},
        {"method": "dckd", "reverse": False},
        {"method": "dckd", "collection": "avg"},
        {"method": "dckd", "collection": "avg", "reverse": False},
    ],
)
class Square:
    table = square_table
    draw = draw_square
    say = say_square


figure(
    "group_size",
    notebook="08",
    runs=[{"method": k, "m": m} for k in ("okddip", "one") for m in (3, 4, 6, 8)],
    kind=Sweep("m", "group size m"),
)

# Sorting alone makes the best of many look good

PLACES = {"best": "best of m (Net1)", "mean": "mean of m", "worst": "worst of m"}


def students_table(records: list[Record]) -> pd.DataFrame:
    """Test accuracy in percent of the best, the mean and the worst student of each run, against
    the number of students m: a row for each m and place; one for a network alone, with m = 1."""
    rows = []
    for group in tables.grouped(records).values():
        tops = {r.run.seed: np.array(r.result["top1"]) for r in group}
        places = {"best": np.max, "mean": np.mean, "worst": np.min}
        m = len(next(iter(tops.values())))
        for place, of in places.items() if m > 1 else [("mean", np.mean)]:
            rows.append(
                {
                    "method": group[0].run.method,
                    "title": group[0].method.title,
                    "m": m,
                    "place": place,
                    **tables.spread({seed: float(of(top)) for seed, top in tops.items()}),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_students(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Best, mean and worst student of a group against its size; every seed a dot. table,
    reference: of `students_table`."""
    fig, ends = Figure(figsize=(7.4, 3.7)), []
    ax = fig.subplots()
    for _, row in table[table["m"] == 1].iterrows():
        look = method_style(row["method"])
        ax.axhline(row["mean"], color=look["color"], ls=look["linestyle"], lw=1.2)
        ends.append((row["mean"], f"{row['title']}, one network", look["color"]))
    groups = table[table["m"] > 1]
    look = method_style(groups["method"].iloc[0])
    for number, (place, rows) in enumerate(groups.groupby("place", sort=False)):
        rows = rows.sort_values("m")
        if reference is not None and place == "mean":
            grey = reference[(reference["place"] == place) & (reference["m"] > 1)]
            bars = {"fmt": "none", "ecolor": REFERENCE_COLOUR, "elinewidth": 7, "zorder": 1}
            ax.errorbar(grey["m"], grey["mean"], tables.half_widths(grey), **bars)
        style = {"color": look["color"], "ls": ("--", "-", ":")[number]}
        marker = {"marker": ("^", "o", "v")[number], "lw": 2.2 if place == "mean" else 1.1}
        ax.plot(rows["m"], rows["mean"], **style, **marker)
        for column in seed_columns(rows) if place == "mean" else ():
            ax.plot(rows["m"], rows[column], "o", color=look["color"], ms=3.5, alpha=0.4, mew=0)
        ends.append((rows["mean"].iloc[-1], PLACES[place], look["color"]))
    ax.set_xticks(sorted(groups["m"].unique()))
    ax.set(xlabel=f"students m ({count_text(groups)})", ylabel="test accuracy (%)")
    end_labels(ax, ends)
    return fig


def say_students(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """How the mean and the best change from the smallest group to the largest; over several seeds
    whether the mean does, and whether it is above the network alone. table, reference: of
    `students_table`."""
    groups = table[table["m"] > 1]
    first, last = groups["m"].min(), groups["m"].max()

    def row(place: str, m: int, of: pd.DataFrame = table) -> pd.Series:
        return of[(of["place"] == place) & (of["m"] == m)].iloc[0]

    changes = ", ".join(
        f"the {place} by {row(place, last)['mean'] - row(place, first)['mean']:+.2f}"
        for place in PLACES
    )
    gaps = ", ".join(
        f"{row('best', m)['mean'] - row('mean', m)['mean']:.2f} (m = {m})"
        for m in sorted(groups["m"].unique())
    )
    each = tables.each_row(groups[groups["place"] == "mean"], "m = {m} {mean:.2f}")
    sentences = [
        f"Test accuracy in percent of DCKD's students against their number, "
        f"{seeds_text(groups)}; means of each group: {each}.",
        f"From m = {first} to m = {last} {changes} points.",
        f"The best of a group is above its mean by {gaps} points: that much sorting gives without "
        "anybody having learned more.",
    ]
    judged = table if table["n"].max() > 1 else reference
    if judged is not None:
        for m in sorted(set(groups["m"]) - {first}):
            pair = row("mean", m, judged), row("mean", first, judged)
            subject = f"The mean of m = {m}"
            sentences.append(tables.verdict(subject, f"m = {first}", tables.paired_rows(*pair)))
    return sentences


@figure(
    "dckd_students",
    notebook="08",
    runs=[{"method": "kd"}, *({"method": "dckd", "m": m} for m in (2, 3, 4, 5))],
)
class Students:
    table = students_table
    draw = draw_students
    say = say_students


def tried_table(
    tried: dict[str, tuple[Record, Record | None]], whole: Record | None
) -> pd.DataFrame:
    """A row for each run that was tried, best first: its accuracy in percent, and what it is above
    the whole method and above its control in percentage points, nan where that is not finished.

    tried: the fields that were changed -> the run, and its control.
    """

    def gap(record: Record, other: Record | None) -> float:
        top1 = record.result["top1_deployed"]
        return top1 - other.result["top1_deployed"] if other else np.nan

    rows = [
        {
            "changed": name,
            "top1": record.result["top1_deployed"],
            "against_whole": gap(record, whole) if whole and whole.id != record.id else np.nan,
            "control": label(control.run) if control else "",
            "against_control": gap(record, control),
            "whose": "reference" if isinstance(record, ReferenceRecord) else "store",
        }
        for name, (record, control) in tried.items()
    ]
    return pd.DataFrame(sorted(rows, key=lambda row: -row["top1"]))
