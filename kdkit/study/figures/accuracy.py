"""Test accuracy: kinds of run side by side, and against a field of the method."""

from dataclasses import dataclass
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...methods import method_class
from .. import statistics
from ..store import Record
from . import index, tables
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
    text_colour,
)
from .tables import count_text, seed_columns, verdict


def accuracy_table(
    records: list[Record], against: str = "control", field: str = ""
) -> pd.DataFrame:
    """Test accuracy in percent of the deployed student, a row for each kind of run.

    against: "control", or "first" for differences to the first row (ablations). field: a field of
    the method to stand in a column of its own. Teachers come last, with no method.
    """
    groups = tables.grouped(records)
    accuracies = {
        name: {record.run.seed: record.result["top1_deployed"] for record in group}
        for name, group in groups.items()
    }
    rows = []
    for name, group in groups.items():
        control = tables.control_label(group[0]) if against == "control" else next(iter(groups))
        if control not in groups or control == name:
            control = ""
        column = {field: getattr(group[0].method, field, np.nan)} if field else {}
        rows.append(
            {
                "method": group[0].run.method,
                "label": name,
                **column,
                "control": control,
                **tables.paired(accuracies[name], accuracies.get(control, {})),
                **tables.spread(accuracies[name]),
            }
        )
    for number, of_seed in enumerate(tables.teacher_accuracies(records)):
        rows.append(
            {
                "method": "",
                "label": f"Teacher {number + 1}" if number else "Teacher",
                "control": "",
                **tables.paired({}, {}),
                **tables.spread(of_seed),
            }
        )
    return tables.frame(rows, records)


@kdkit_style()
def draw_accuracy(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Side by side: every seed a dot, the mean a bar, its deviation a line; on the right the
    difference to the control, paired by seed, with its 95 % interval: hollow where not shown.

    table: of `accuracy_table`; reference: likewise, of the reference: its means and their 95 %
    intervals lie beneath in grey.
    """
    fig = Figure(figsize=(9.2, 1.15 + 0.36 * len(table)))
    left, right = fig.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    for y, (_, row) in enumerate(table.iterrows()):
        look = method_style(row["method"]) | {"linestyle": "none"}
        if (grey := tables.row_of(reference, row["label"])) is not None:
            half = statistics.half_width(grey["sd"], int(grey["n"]))
            _draw_reference(left, y, grey["mean"], half)
            _draw_reference(right, y, grey["difference"], grey["half_width"])
        _draw_values(left, y, row, row[seed_columns(table)].dropna().astype(float), look)
        if row["control"]:
            _draw_difference(right, y, row, look)
    right.axvline(0, color=TEXT_COLOUR, lw=0.9, zorder=0)
    left.set_yticks(range(len(table)), [fill(text, 30) for text in table["label"]])
    left.set(
        ylim=(len(table) - 0.4, -0.6),
        xlabel=f"test accuracy (%), {count_text(table[table['method'] != ''])}",
        title="Every seed, mean ± deviation" if table["n"].max() > 1 else "One seed",
    )
    several = table["pairs"].max() > 1
    right.set(
        xlabel="points, paired by seed; hollow: not shown" if several else "points, of one seed",
        title="Difference, 95 % interval" if several else "Difference",
    )
    return fig


def _draw_reference(ax, y: int, mean: float, half_width: float) -> None:
    """A mean of the reference and its 95 % interval, beneath."""
    style = {"color": REFERENCE_COLOUR, "zorder": 1}
    ax.plot([mean - half_width, mean + half_width], [y, y], lw=7, solid_capstyle="butt", **style)
    ax.plot(mean, y, "|", markersize=13, mew=1.5, color="white", zorder=1)


def _draw_values(ax, y: int, row: pd.Series, values: pd.Series, look: dict) -> None:
    """The seeds' values of one row, their mean and deviation; a teacher's line runs through all."""
    several = row["n"] > 1
    ax.plot(values, [y] * len(values), **look, alpha=0.6 if several else 1, markersize=5, mew=0)
    if several:
        ax.errorbar(row["mean"], y, xerr=row["sd"], color=look["color"], lw=1.6)
        ax.plot(row["mean"], y, "|", color=text_colour(look["color"]), markersize=15, mew=2.2)
    if not row["method"]:
        ax.axvline(row["mean"], **DASHED, zorder=0)
    margin_text(ax, y, mean_sd_text(row["mean"], row["sd"]))


def _draw_difference(ax, y: int, row: pd.Series, look: dict) -> None:
    """One row's difference to its control with its interval."""
    difference, half = row["difference"], row["half_width"]
    hollow = {} if row["shown"] else {"markerfacecolor": "white", "alpha": 0.55}
    if row["pairs"] == 1:
        hollow = {"markerfacecolor": "white"}
    ax.errorbar(difference, y, xerr=np.nan_to_num(half), **look | hollow, capsize=3, lw=1.4)
    text = fill(f"{mean_sd_text(difference, half, '+')} vs {row['control']}", 36)
    margin_text(ax, y, text, TEXT_COLOUR if row["shown"] else FAINT_COLOUR)


def say_accuracy(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """Every accuracy, then every difference to its control; of one seed in one sentence, with
    those of the reference where there is one. table, reference: of `accuracy_table`."""
    runs = table[table["method"] != ""]
    accuracies = ", ".join(
        f"{row['label']} {mean_sd_text(row['mean'], row['sd'])}" for _, row in table.iterrows()
    )
    sentences = [f"Test accuracy in percent over {tables.seeds_text(runs)}: {accuracies}."]
    compared = runs[runs["control"] != ""]
    if len(compared) and compared["pairs"].max() < 2:
        above = (compared["difference"] > 0).sum()
        sentences.append(
            f"{above} of {len(compared)} differences are above 0; one seed gives no interval, so "
            "nothing is shown by this run alone."
        )
        runs = reference[reference["method"] != ""] if reference is not None else runs[:0]
    return sentences + [
        verdict(row["label"], row["control"], row) for _, row in runs.iterrows() if row["control"]
    ]


@kdkit_style()
def draw_sweep(
    table: pd.DataFrame,
    field: str,
    xlabel: str,
    log: bool = False,
    reference: pd.DataFrame | None = None,
) -> Figure:
    """Accuracy against a field of the method, a line for each method; rows without the field are
    level lines. table: of `accuracy_table` with a column `field`; log: base 2 along x; reference:
    as table, its means and 95 % intervals in grey beneath."""
    fig, ends = Figure(figsize=(6.8, 3.5)), []
    ax = fig.subplots()
    if reference is not None:
        for _, rows in reference.dropna(subset=[field]).groupby("method", sort=False):
            rows = rows.sort_values(field)
            half = tables.half_widths(rows)
            grey = {"color": REFERENCE_COLOUR, "zorder": 1, "marker": ""}
            ax.errorbar(rows[field], rows["mean"], yerr=half, lw=3, elinewidth=3, **grey)
    for name, rows in table.groupby("method", sort=False):
        look, rows = method_style(name), rows.sort_values(field)
        if rows[field].isna().all():
            for _, row in rows.iterrows():
                ax.axhline(row["mean"], color=look["color"], ls=look["linestyle"], lw=1.2)
                ends.append((row["mean"], row["label"], look["color"]))
            continue
        x = rows[field]
        for column in seed_columns(rows):
            ax.plot(x, rows[column], **look | {"linestyle": "none"}, ms=3.5, alpha=0.45, mew=0)
        ax.errorbar(x, rows["mean"], yerr=rows["sd"].fillna(0), capsize=3, elinewidth=1.1, **look)
        ends.append((rows["mean"].iloc[-1], method_class(name).title, look["color"]))
    ticks = sorted(table[field].dropna().unique())
    if log:
        ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{v:g}" for v in ticks])
    ax.set(
        xlabel=f"{xlabel} (every seed a dot, {count_text(table[table['method'] != ''])})",
        ylabel="test accuracy (%)",
    )
    end_labels(ax, ends)
    return fig


def say_sweep(table: pd.DataFrame, field: str, reference: pd.DataFrame | None = None) -> list[str]:
    """Where each line is highest, and whether its ends differ by more than seeds do."""
    sentences = say_accuracy(table, reference)
    for name, rows in table.dropna(subset=[field]).groupby("method", sort=False):
        rows = rows.sort_values(field)
        first, best, last = rows.iloc[0], rows.loc[rows["mean"].idxmax()], rows.iloc[-1]
        title = method_class(name).title
        highest = mean_sd_text(best["mean"], best["sd"])
        sentences.append(f"{title} is best at {field} = {best[field]:g} with {highest} %.")
        if first[field] < last[field] and min(first["n"], last["n"]) > 1:
            subject = f"{title} with {field} = {last[field]:g}"
            difference = tables.paired_rows(last, first)
            sentences.append(verdict(subject, f"{field} = {first[field]:g}", difference))
    return sentences


@dataclass(frozen=True)
class Accuracy:
    """A kind of figure: accuracies side by side with their paired differences."""

    against: str = "control"  # or "first"

    def table(self, records: list[Record]) -> pd.DataFrame:
        return accuracy_table(records, self.against)

    draw = staticmethod(draw_accuracy)
    say = staticmethod(say_accuracy)


index.default_kind = Accuracy()


@dataclass(frozen=True)
class Sweep:
    """A kind of figure: accuracy against a field of the method."""

    field: str
    xlabel: str
    log: bool = False

    def table(self, records: list[Record]) -> pd.DataFrame:
        return accuracy_table(records, field=self.field)

    def draw(self, table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
        return draw_sweep(table, self.field, self.xlabel, self.log, reference)

    def say(self, table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
        return say_sweep(table, self.field, reference)


ABLATION = Accuracy(against="first")

figure("kd_accuracy", notebook="02", runs=[{"method": "baseline"}, {"method": "kd"}])
figure(
    "kd_temperature",
    notebook="02",
    runs=[{"method": "baseline"}, *({"method": "kd", "T": T} for T in (1.0, 2.0, 4.0, 8.0))],
    kind=Sweep("T", "temperature T", log=True),
)
figure(
    "features_accuracy",
    notebook="03",
    runs=[
        *({"method": m} for m in ("baseline", "kd", "fitnet", "at", "ft", "ofd", "reviewkd")),
        # With the weight that was made for other networks.
        {"method": "fitnet", "beta": 100.0},
        {"method": "at", "beta": 1000.0},
        {"method": "ft", "beta": 200.0},
    ],
)
figure(
    "at_weight",
    notebook="03",
    runs=[{"method": "baseline"}, *({"method": "at", "beta": b} for b in (10.0, 100.0, 1000.0))],
    kind=Sweep("beta", "weight β of the attention maps", log=True),
)
figure(
    "rkd_parts",
    notebook="04",
    runs=[
        {"method": "baseline"},
        {"method": "rkd"},
        {"method": "rkd", "w_a": 0.0},
        {"method": "rkd", "w_d": 0.0},
    ],
)
figure(
    "relations_accuracy",
    notebook="04",
    runs=[{"method": m} for m in ("baseline", "kd", "rkd", "cc", "crd", "crd_kd")],
)
figure(
    "online_accuracy",
    notebook="05",
    runs=[
        {"method": "baseline"},
        {"method": "ind", "based": "network"},
        {"method": "dml"},
        {"method": "kdcl"},
        {"method": "ind"},
        {"method": "cl_ilr"},
        {"method": "one"},
    ],
)
figure(
    "online_choices",
    notebook="05",
    runs=[
        {"method": "ind"},
        {"method": "cl_ilr", "alpha": 0.0},
        {"method": "cl_ilr"},
        {"method": "one", "alpha": 0.0},  # the ensemble learns from labels and teaches nobody
        {"method": "one"},
        {"method": "ind", "based": "network"},
        {"method": "dml"},
        {"method": "dml", "T": 1.0, "pairwise": True, "detach": True, "eps": 0.0},
        *({"method": "kdcl", "form": f} for f in ("naive", "linear", "minlogit", "general")),
    ],
)
figure(
    "okddip_accuracy",
    notebook="06",
    runs=[
        {"method": "baseline"},
        {"method": "kd"},
        {"method": "ind"},
        {"method": "okddip"},
        {"method": "ind", "based": "network"},
        {"method": "okddip", "based": "network"},
        {"method": "okddip_kd"},
    ],
)
figure(
    "okddip_choices",
    notebook="06",
    runs=[
        {"method": "okddip"},
        {"method": "okddip", "aggregate": "probs"},
        {"method": "okddip", "detach": True},
        {"method": "okddip", "aggregate": "probs", "detach": True},  # the text's form
    ],
    kind=ABLATION,
)
figure(
    "dckd_accuracy",
    notebook="07",
    runs=[{"method": m} for m in ("baseline", "kd", "dckd", "edckd", "ensembled_student")],
)
figure(
    "dckd_choices",
    notebook="07",
    runs=[
        {"method": "dckd"},
        {"method": "dckd", "gamma": 0.0},
        {"method": "dckd", "reverse": False},
        {"method": "dckd", "collection": "avg"},
    ],
    kind=ABLATION,
)
