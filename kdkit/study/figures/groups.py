"""Groups student by student: unequal partners, each alone and with the other, and what a group's
peers, their vote and its leader reach."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import statistics
from ..plans import student_names
from ..store import Record
from . import tables
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
from .tables import count_text, seed_columns, seeds_text, verdict

ALONE, TOGETHER = "alone", "together"
PEERS, VOTE, LEADER = "peers", "vote", "leader"
MARKS = {PEERS: ("o", 6), VOTE: ("D", 7), LEADER: ("*", 13)}  # marker and its size


def partners_table(records: list[Record]) -> pd.DataFrame:
    """A row for each student of the group, alone (the first kind of run) and together (the
    second): its network, its accuracy in percent, and by how much it is above itself alone, paired
    by seed."""
    rows, alone = [], {}
    for way, (name, group) in zip((ALONE, TOGETHER), tables.grouped(records).items(), strict=False):
        networks = student_names(group[0].run, group[0].method)
        for place in range(group[0].method.m):
            of_seed = {r.run.seed: r.result["top1"][place] for r in group}
            rows.append(
                {
                    "method": group[0].run.method,
                    "title": group[0].method.title,
                    "label": name,
                    "way": way,
                    "student": place + 1,
                    "network": networks[place % len(networks)],
                    **tables.paired(of_seed, alone.get(place, {})),
                    **tables.spread(of_seed),
                }
            )
            alone.setdefault(place, of_seed)
    return tables.frame(rows, records)


@kdkit_style()
def draw_partners(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """A line for each network, from its accuracy alone to that beside the other; every seed a thin
    one. table: of `partners_table`; reference: likewise, its means in grey beneath."""
    fig, ends = Figure(figsize=(7.2, 3.6)), []
    ax = fig.subplots()
    for number, (_, rows) in enumerate(table.groupby("student", sort=False)):
        colour, marker = PALETTE[number], "os^D"[number % 4]
        if reference is not None:
            grey = reference[reference["student"] == rows["student"].iloc[0]]
            ax.plot(range(len(grey)), grey["mean"], color=REFERENCE_COLOUR, marker="", lw=5)
        for column in seed_columns(rows) if rows["n"].max() > 1 else ():
            thin = {"lw": 0.8, "alpha": 0.4, "marker": ""}
            ax.plot(range(len(rows)), rows[column], color=colour, **thin)
        ax.plot(range(len(rows)), rows["mean"], color=colour, marker=marker, ls="-", lw=2.2)
        last = rows.iloc[-1]
        gain = mean_sd_text(last["difference"], last["half_width"], "+")
        ends.append((last["mean"], f"{last['network']}: {gain} points", colour))
    title = table["title"].iloc[-1]
    ax.set_xticks((0, 1), (ALONE, f"{TOGETHER} ({title})"))
    ax.set(xlim=(-0.2, 1.2), ylabel=f"test accuracy (%), {count_text(table)}")
    ax.grid(axis="x", visible=False)
    end_labels(ax, ends, [1.0] * len(ends))
    return fig


def say_partners(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """What each network gains, and which gains more. table, reference: of `partners_table`."""
    together = table[table["way"] == TOGETHER]
    each = "; ".join(
        f"{row['network']} {mean_sd_text(alone['mean'], alone['sd'])} alone, "
        f"{mean_sd_text(row['mean'], row['sd'])} together"
        for (_, alone), (_, row) in zip(
            table[table["way"] == ALONE].iterrows(), together.iterrows(), strict=True
        )
    )
    judged = together if together["pairs"].max() > 1 or reference is None else reference
    judged = judged[judged["way"] == TOGETHER]
    most = together.loc[together["difference"].idxmax()]
    return [
        f"Test accuracy in percent of each network of a group, {seeds_text(table)}: {each}.",
        f"{most['network']} gains most, {most['difference']:+.2f} points.",
        *(
            verdict(f"{row['network']} together", "the same network alone", row)
            for _, row in judged.iterrows()
        ),
    ]


@figure(
    "mixed_groups",
    notebook="05",
    runs=[
        {"student": "resnet8_w0.5,resnet8", "m": 2, "method": "ind", "based": "network"},
        {"student": "resnet8_w0.5,resnet8", "m": 2, "method": "dml"},
    ],
)
class Partners:
    table = partners_table
    draw = draw_partners
    say = say_partners


def levels_table(records: list[Record]) -> pd.DataFrame:
    """A row for each kind of run and each of peers (the mean of those that are no leader), vote
    (their ensemble) and leader: accuracy in percent, and how diverse the peers are at the end."""
    rows = []
    for name, group in tables.grouped(records).items():
        method = group[0].method
        n = method.peers()
        found = {
            PEERS: {r.run.seed: float(np.mean(r.result["top1"][:n])) for r in group},
            VOTE: {r.run.seed: r.result["ensemble"] for r in group},
        }
        if n < method.m:
            found[LEADER] = {r.run.seed: r.result["top1"][n] for r in group}
        for who, of_seed in found.items():
            rows.append(
                {
                    "method": group[0].run.method,
                    "label": name,
                    "who": who,
                    "diversity": float(np.mean([r.result["diversity"] for r in group])),
                    **tables.paired(of_seed, found[PEERS] if who != PEERS else {}),
                    **tables.spread(of_seed),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_levels(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """A row for each kind of run: the mean of its peers, their vote and its leader on one axis, the
    peers' diversity in the margin. table: of `levels_table`; reference: likewise, the 95 %
    intervals of its means in grey beneath."""
    labels = list(table["label"].unique())
    fig = Figure(figsize=(8.8, 1.5 + 0.46 * len(labels)))
    ax = fig.subplots()
    for y, label in enumerate(labels):
        rows, drop = table[table["label"] == label], {PEERS: -0.2, VOTE: 0.0, LEADER: 0.2}
        look = method_style(rows["method"].iloc[0])
        for _, row in rows.iterrows():
            height, (marker, size) = y + drop[row["who"]], MARKS[row["who"]]
            if reference is not None:
                grey = reference[(reference["label"] == label) & (reference["who"] == row["who"])]
                for _, below in grey.iterrows():
                    half = np.nan_to_num(statistics.half_width(below["sd"], int(below["n"])))
                    ends = [below["mean"] - half, below["mean"] + half]
                    ax.plot(ends, [height] * 2, color=REFERENCE_COLOUR, lw=5, marker="", zorder=1)
            full = {} if row["who"] != PEERS else {"markerfacecolor": "white"}
            ax.errorbar(
                row["mean"],
                height,
                xerr=np.nan_to_num(row["sd"]),
                color=look["color"],
                marker=marker,
                markersize=size,
                **full,
            )
        margin_text(ax, y, f"{rows['diversity'].iloc[0]:.3f}")
    for who, (marker, size) in MARKS.items():
        face = "white" if who == PEERS else TEXT_COLOUR
        ax.plot([], [], marker, ms=size, color=TEXT_COLOUR, markerfacecolor=face, label=who)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, handletextpad=0.2)
    place = {"transform": ax.transAxes, "fontsize": 9, "color": FAINT_COLOUR, "va": "bottom"}
    ax.text(1.03, 1.03, "diversity", **place)
    ax.set_yticks(range(len(labels)), labels)
    ax.set(ylim=(len(labels) - 0.5, -0.5), xlabel=f"test accuracy (%), {count_text(table)}")
    return fig


def say_levels(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """What each group's peers, vote and leader reach, and whether a leader is above its peers.
    table, reference: of `levels_table`."""
    each = []
    for label, rows in table.groupby("label", sort=False):
        numbers = tables.each_row(rows, "{who} {mean:.2f} %")
        each.append(f"{label}: {numbers}, diversity {rows['diversity'].iloc[0]:.3f}")
    judged = table if table["n"].max() > 1 or reference is None else reference
    return [
        "Test accuracy of a group's peers on average, of their vote, and of its leader where it "
        f"has one, {seeds_text(table)}. {'; '.join(each)}.",
        *(
            verdict(f"The leader of {row['label']}", "the mean of its peers", row)
            for _, row in judged[judged["who"] == LEADER].iterrows()
        ),
    ]


@figure(
    "okddip_levels",
    notebook="06",
    runs=[
        {"method": "ind"},
        {"method": "okddip"},
        {"method": "okddip", "detach": True},
        {"method": "okddip", "attention": "mean"},
        {"method": "one"},
    ],
)
class Levels:
    table = levels_table
    draw = draw_levels
    say = say_levels
