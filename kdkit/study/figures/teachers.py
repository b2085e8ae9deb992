"""What a teacher decides: how good students get under teachers of different sizes, who passes the
teacher, here and in the paper's tables, and what other groups make of the same one.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...methods import method_class
from .. import papers
from ..plans import Run, plan
from ..store import Record
from . import tables
from .index import figure
from .style import (
    DASHED,
    FAINT_COLOUR,
    REFERENCE_COLOUR,
    TEXT_COLOUR,
    end_labels,
    kdkit_style,
    margin_text,
    mean_sd_text,
    method_style,
)
from .tables import count_text, seeds_text

BETWEEN = {"resnet14": ("resnet8",)}  # a teacher -> networks between the student and it
OTHER_SEED = 100  # of smaller teachers: one that begins as its student does would be a copy of it


def teachers_runs(base: Run) -> list[dict]:
    """Fields of the runs under a preset: no teacher, and teachers from the student's size on."""
    smaller = (base.student, *BETWEEN.get(base.teacher, ()))
    teachers = [{"teacher": name, "teacher_seed": OTHER_SEED} for name in smaller]
    taught = [{"method": m, **t} for m in ("kd", "dckd") for t in (*teachers, {})]
    return [{"method": "baseline"}, {"method": "okddip"}, *taught]


def teachers_table(records: list[Record]) -> pd.DataFrame:
    """A row for each kind of run: the deployed student's accuracy in percent, its teacher's
    network and accuracy, and the difference between the two, paired by seed; without a teacher
    they are empty."""
    rows = []
    for name, group in tables.grouped(records).items():
        teacher = plan(group[0].run).teacher
        student = {r.run.seed: r.result["top1_deployed"] for r in group}
        theirs = {r.run.seed: r.result["teacher_top1"] for r in group} if teacher else {}
        rows.append(
            {
                "method": group[0].run.method,
                "title": group[0].method.title,
                "label": name,
                "teacher": teacher.run.student if teacher else "",
                "teacher_top1": np.mean(list(theirs.values())) if theirs else np.nan,
                **tables.paired(student, theirs),
                **tables.spread(student),
            }
        )
    return tables.frame(rows, records)


@kdkit_style()
def draw_teachers(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Students against their teachers: above the diagonal a student is better than its teacher;
    level lines are groups and networks without one. table, reference: of `teachers_table`."""
    fig = Figure(figsize=(7.4, 4.0))
    ax, ends = fig.subplots(), []
    taught, alone = table[table["teacher"] != ""], table[table["teacher"] == ""]
    for _, row in alone.iterrows():
        look = method_style(row["method"])
        ax.axhline(row["mean"], color=look["color"], ls=look["linestyle"], lw=1.2)
        ends.append((row["mean"], f"{row['title']}, no teacher", look["color"]))
    for method, rows in taught.groupby("method", sort=False):
        look, rows = method_style(method), rows.sort_values("teacher_top1")
        if reference is not None:
            grey = reference[reference["method"] == method]
            bars = {"yerr": tables.half_widths(grey), "fmt": "none", "elinewidth": 7}
            ax.errorbar(grey["teacher_top1"], grey["mean"], ecolor=REFERENCE_COLOUR, **bars)
        ax.errorbar(rows["teacher_top1"], rows["mean"], rows["sd"].fillna(0), capsize=3, **look)
        ends.append((rows["mean"].iloc[-1], rows["title"].iloc[0], look["color"]))
    low, high = taught["teacher_top1"].min(), taught["teacher_top1"].max()
    margin = 0.1 * (high - low) + 0.3
    ax.set_xlim(low - margin, high + margin)
    ax.plot(ax.get_xlim(), ax.get_xlim(), **DASHED, marker="", zorder=0)
    for name, rows in taught.groupby("teacher", sort=False):
        ax.axvline(rows["teacher_top1"].mean(), color=FAINT_COLOUR, lw=0.5, zorder=0)
        place = rows["teacher_top1"].mean(), 1.01
        ax.text(*place, name, transform=ax.get_xaxis_transform(), fontsize=9, ha="center")
    ax.text(high, high, "as good as its teacher  ", fontsize=8.5, ha="right", va="bottom")
    ax.set(xlabel=f"teacher's accuracy (%), {count_text(table)}", ylabel="student's accuracy (%)")
    end_labels(ax, ends)
    return fig


def say_teachers(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """Each student beside its teacher, and those without."""
    sentences = []
    for title, rows in table[table["teacher"] != ""].groupby("title", sort=False):
        each = "; ".join(
            f"by {row['teacher']} ({row['teacher_top1']:.2f} %) {row['mean']:.2f} %, "
            f"{mean_sd_text(row['difference'], row['half_width'], '+')} from its teacher"
            for _, row in rows.iterrows()
        )
        sentences.append(f"{title}, taught {each}.")
    alone = tables.each_row(table[table["teacher"] == ""], "{title} {mean:.2f} %")
    return [
        "A student's test accuracy against its teacher's, for teachers from the student's own "
        f"network on; {seeds_text(table)}. Without a teacher: {alone}.",
        *sentences,
    ]


@figure("teacher_size", notebook="07", runs=teachers_runs)
class Teachers:
    table = teachers_table
    draw = draw_teachers
    say = say_teachers


def lead_runs(base: Run) -> list[dict]:
    """Fields of the runs under a preset: as of `teachers_runs`, without groups that have none."""
    return [fields for fields in teachers_runs(base) if fields["method"] != "okddip"]


def lead_table(records: list[Record]) -> pd.DataFrame:
    """By how many points a teacher is above the student trained alone (`lead`), and by how many
    the student that it taught is (`gain`); `passed`: is that student above its teacher?

    A row for each method and pair of networks: of these records, means over the seeds that both
    have, and of DCKD's Tables 2 to 4 as published, of DCKD the mean of its three nets.
    """
    alone = {r.run.seed: r.result["top1_deployed"] for r in records if not plan(r.run).teacher}
    rows = []
    for group in tables.grouped(r for r in records if plan(r.run).teacher).values():
        of_seed = [r for r in group if r.run.seed in alone]
        if not of_seed:
            continue
        lead, gain = (
            np.mean([r.result[name] - alone[r.run.seed] for r in of_seed])
            for name in ("teacher_top1", "top1_deployed")
        )
        pair = f"{plan(group[0].run).teacher.run.student}/{group[0].run.student}"
        rows.append(_lead_row("lesson", group[0].run.method, pair, len(of_seed), lead, gain))
    for cells in (papers.cells(f"dckd:{number}") for number in (2, 3, 4)):
        methods = "row" if "KD" in set(cells["row"]) else "column"
        names = cells[methods].str.replace(r" Net\d", "", regex=True)
        by = cells.groupby([names, cells["column" if methods == "row" else "row"]], sort=False)
        mean = by["published"].mean().unstack(0)
        for pair, row in mean.iterrows():
            for title in ("KD", "DCKD"):
                lead, gain = row["Teacher"] - row["Student"], row[title] - row["Student"]
                rows.append(_lead_row("DCKD's paper", title.lower(), pair, 3, lead, gain))
    return tables.frame(rows, records)


def _lead_row(source: str, method: str, networks: str, n: int, lead: float, gain: float) -> dict:
    """A row of `lead_table`."""
    row = {"source": source, "method": method, "networks": networks, "n": n}
    return row | {"lead": lead, "gain": gain, "passed": bool(gain > lead)}


@kdkit_style()
def draw_lead(table: pd.DataFrame) -> Figure:
    """Gains of students against the lead of their teachers: above the diagonal a student has
    passed its teacher. Filled: these runs; hollow: as published. table: of `lead_table`."""
    fig = Figure(figsize=(6.6, 4.4))
    ax = fig.subplots()
    for (source, method), rows in table.groupby(["source", "method"], sort=False):
        look = method_style(method) | {"linestyle": "none", "markersize": 7}
        if source != "lesson":
            look |= {"markerfacecolor": "white", "alpha": 0.8, "markersize": 5}
        label = f"{method_class(method).title}, {source}"
        ax.plot(rows["lead"], rows["gain"], label=label, **look)
    low, high = min(0, table["lead"].min(), table["gain"].min()) - 0.6, table["gain"].max() + 1.5
    ax.fill_between([low, high], [low, high], high, color="#eeeeee", lw=0, zorder=0)
    ax.text(low + 0.3, high - 0.3, "better than its teacher", fontsize=9, va="top")
    ax.axhline(0, color=FAINT_COLOUR, lw=0.6, zorder=0)
    ax.set(
        xlim=(low, max(high, table["lead"].max() + 0.8)),
        ylim=(low, high),
        xlabel="teacher above the student trained alone (points)",
        ylabel="taught student above it (points)",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)
    return fig


def say_lead(table: pd.DataFrame) -> list[str]:
    """How many students pass a teacher with a small lead, and how many one with a large lead."""
    sentences = [
        "By how many points a taught student is above the same network trained alone, against by "
        "how many its teacher is: runs of the lesson, and DCKD's Tables 2 to 4 as published."
    ]
    for (source, method), rows in table.groupby(["source", "method"], sort=False):
        who, passed = f"{method_class(method).title}, {source}", rows["passed"]
        if len(rows) < 6:
            leads = [", ".join(f"{v:+.1f}" for v in rows.loc[p, "lead"]) for p in (passed, ~passed)]
            sentences.append(
                f"{who}: teachers with leads of {leads[0] or 'no size'} points are passed by their "
                f"student, those of {leads[1] or 'no size'} are not."
            )
            continue
        near = rows["lead"] < rows["lead"].median()
        sentences.append(
            f"{who}: of {near.sum()} teachers with a lead below the middle one "
            f"({rows['lead'].median():.1f} points) {passed[near].sum()} are passed by their "
            f"student, of the {(~near).sum()} others {passed[~near].sum()}."
        )
    return sentences


@figure("teacher_lead", notebook="07", runs=lead_runs)
class Lead:
    table = lead_table
    draw = draw_lead
    say = say_lead


# Groups that have a teacher, too


def rivals_table(records: list[Record]) -> pd.DataFrame:
    """Accuracies of groups with one teacher, in percent, and how far each is above the first kind
    of run and above the last, paired by seed: a row for each kind of run and each of these two."""
    groups = list(tables.grouped(records).values())
    accuracies = [{r.run.seed: r.result["top1_deployed"] for r in group} for group in groups]
    rows = []
    for control in (0, len(groups) - 1):
        for number, (group, values) in enumerate(zip(groups, accuracies, strict=True)):
            rows.append(
                {
                    "method": group[0].run.method,
                    "title": group[0].method.title,
                    "label": tables.label(group[0].run),
                    "control": groups[control][0].method.title,
                    **tables.paired(values, accuracies[control] if number != control else {}),
                    **tables.spread(values),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_rivals(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Each group's difference to the one, and on the right to the other: every seed a dot, the mean
    and its 95 % interval. table, reference: of `rivals_table`."""
    controls = list(dict.fromkeys(table["control"]))
    first = table[table["control"] == controls[0]]
    fig = Figure(figsize=(9.2, 1.2 + 0.5 * len(first)))
    axes = fig.subplots(1, len(controls), sharey=True)
    for ax, control in zip(axes, controls, strict=True):
        rows = table[table["control"] == control].reset_index(drop=True)
        theirs = rows[rows["title"] == control].iloc[0]
        grey = reference[reference["control"] == control] if reference is not None else None
        for y, row in rows.iterrows():
            if row["title"] == control:
                margin_text(ax, y, "the control", FAINT_COLOUR)
                continue
            if (under := tables.row_of(grey, row["label"])) is not None:
                ends = under["difference"] + np.array([-1, 1]) * np.nan_to_num(under["half_width"])
                ax.plot(
                    ends, [y, y], color=REFERENCE_COLOUR, lw=7, solid_capstyle="butt", marker=""
                )
            look = method_style(row["method"]) | {"linestyle": "none"}
            both = tables.seed_values(row).keys() & tables.seed_values(theirs).keys()
            apart = [tables.seed_values(row)[s] - tables.seed_values(theirs)[s] for s in both]
            ax.plot(apart, [y] * len(apart), **look, markersize=4, alpha=0.5, mew=0)
            half = np.nan_to_num(row["half_width"])
            ax.errorbar(row["difference"], y, xerr=half, **look, capsize=3, lw=1.4)
            margin_text(ax, y, mean_sd_text(row["difference"], row["half_width"], "+"))
        ax.axvline(0, color=TEXT_COLOUR, lw=0.9, zorder=0)
        ax.set(title=f"Above {control}", xlabel=f"points, {count_text(table)}, paired by seed")
    axes[0].set_yticks(
        range(len(first)), [f"{row['title']}\n{row['mean']:.2f} %" for _, row in first.iterrows()]
    )
    axes[0].set_ylim(len(first) - 0.5, -0.5)
    return fig


def say_rivals(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """Every group against the two, by several seeds where there are several."""
    first = table.drop_duplicates("label")
    each = tables.each_row(first, "{title} {mean:.2f} % ({label})")
    sentences = [f"Test accuracy of students that have one teacher, {seeds_text(table)}: {each}."]
    judged = table if table["n"].max() > 1 or reference is None else reference
    for _, row in judged[judged["pairs"] > 0].iterrows():
        if row["pairs"] > 1:
            sentences.append(tables.verdict(row["title"], row["control"], row))
        else:
            points = mean_sd_text(row["difference"], np.nan, "+")
            sentences.append(f"{row['title']} minus {row['control']}: {points} points.")
    return sentences


@figure(
    "teacher_variants",
    notebook="07",
    runs=[
        {"method": "kd"},
        {"method": "dml", "m": 3, "teacher_weight": 1.0},
        {"method": "okddip_kd", "m": 3, "based": "network"},
        {"method": "kdcl", "m": 3, "form": "general", "with_teacher": True},
        {"method": "dckd"},
    ],
)
class Rivals:
    table = rivals_table
    draw = draw_rivals
    say = say_rivals
