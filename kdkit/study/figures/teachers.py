"""How good a student gets under teachers of different sizes, and who passes the teacher."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..plans import Run, plan
from ..store import Record
from . import tables
from .index import figure
from .style import (
    DASHED,
    FAINT_COLOUR,
    REFERENCE_COLOUR,
    end_labels,
    kdkit_style,
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
