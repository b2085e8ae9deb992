"""Knowledge of what a student has not seen: hidden characters, and few images of each."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...fields import choose
from .. import sources
from ..hidden import fitted_bias, hidden_classes, hidden_numbers, unlabelled_logits
from ..plans import Run, preset
from ..store import Record
from . import tables
from .index import figure
from .predictions import draw_image
from .style import (
    FAINT_COLOUR,
    LINES,
    MARKERS,
    PALETTE,
    REFERENCE_COLOUR,
    end_labels,
    kdkit_style,
    mark_redrawn,
    mean_sd_text,
    method_style,
    reuse_figure,
)
from .tables import count_text, seeds_text

HIDDEN = "é,Q"  # what the committed figure hides

# A character that the student never saw


def hidden_table(records: list[Record]) -> pd.DataFrame:
    """How many test images of hidden classes a student names, in percent: a row for each kind of
    run, without and with the fitted bias (column `bias`), and the temperature, 0 for labels."""
    rows = []
    for name, group in tables.grouped(records).items():
        numbers = {
            r.run.seed: r.result if "hidden_top1" in r.result else hidden_numbers(r) for r in group
        }
        for bias, end in (("as trained", ""), ("bias fitted", "_bias")):
            rows.append(
                {
                    "method": group[0].run.method,
                    "label": name,
                    "hide": group[0].run.hide,
                    "T": getattr(group[0].method, "T", 0.0),
                    "bias": bias,
                    "seen": np.mean([n[f"seen_top1{end}"] for n in numbers.values()]),
                    **tables.spread({s: n[f"hidden_top1{end}"] for s, n in numbers.items()}),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_hidden(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Named images of hidden characters against the temperature, as trained and with the fitted
    bias; labels alone stand at the left. table, reference: of `hidden_table`."""
    fig = Figure(figsize=(7.2, 3.7))
    ax, ends = fig.subplots(), []
    temperatures = sorted(table["T"].unique())
    x = {T: place for place, T in enumerate(temperatures)}
    for number, (bias, rows) in enumerate(table.groupby("bias", sort=False)):
        colour, rows = PALETTE[number], rows.sort_values("T")
        grey = reference[reference["bias"] == bias] if reference is not None else table[:0]
        half, places = tables.half_widths(grey), [x[T] for T in grey["T"]]
        ax.bar(places, 2 * half, 0.5, grey["mean"] - half, color=REFERENCE_COLOUR, alpha=0.7)
        taught = rows[rows["T"] > 0]
        line = {"color": colour, "marker": MARKERS[number], "ls": LINES[number]}
        places = [x[T] for T in taught["T"]]
        ax.errorbar(places, taught["mean"], taught["sd"].fillna(0), capsize=3, **line)
        for _, row in rows[rows["T"] == 0].iterrows():
            ax.errorbar(x[0.0], row["mean"], np.nan_to_num(row["sd"]), **line | {"ls": "none"})
        ends.append((taught["mean"].iloc[-1], bias, colour))
    ax.set_xticks(list(x.values()), [f"T = {T:g}" if T else "labels only" for T in temperatures])
    ax.set(
        ylim=(-4, 104),
        ylabel="named (%)",
        title=f"Test images of {_list_text(table['hide'].iloc[0])}, which the student never saw",
        xlabel=f"what the student learned from ({count_text(table)})",
    )
    end_labels(ax, ends)
    return fig


def _list_text(names: str) -> str:
    """Names a,b,c as a person writes them: "a, b and c"."""
    *most, last = names.split(",")
    return f"{', '.join(most)} and {last}" if most else last


def say_hidden(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """What is named at each temperature, without and with the bias."""
    sentences = []
    for bias, rows in table.groupby("bias", sort=False):
        numbers = ", ".join(
            (f"T = {row['T']:g} " if row["T"] else "labels only ")
            + mean_sd_text(row["mean"], row["sd"], digits=1)
            for _, row in rows.iterrows()
        )
        sentences.append(f"Named in percent, {bias}: {numbers}.")
    alone = table[(table["T"] == 0) & (table["bias"] == "as trained")]["seen"].mean()
    best = table[table["bias"] == "as trained"].sort_values("mean").iloc[-1]
    hidden = _list_text(table["hide"].iloc[0])
    return [
        f"A student without one image of {hidden} learns from its teacher's softened answers to "
        f"other characters, without any label; {seeds_text(table)}.",
        *sentences,
        f"Of the characters that it saw, the student at T = {best['T']:g} names {best['seen']:.1f} "
        f"%, the one from labels alone {alone:.1f} %."
        if best["T"]
        else f"Of the characters that they saw, students of labels alone name {alone:.1f} %.",
    ]


def hidden_fields(hide: str = HIDDEN, T: float = 0.0) -> dict:
    """Fields of the run of a student that never sees the classes `hide` and learns from a teacher's
    answers at T alone, without labels; with T = 0 from labels alone."""
    if not T:
        return {"method": "baseline", "hide": hide}
    return {"method": "kd", "hide": hide, "T": T, "r": 0.0, "alpha": 1.0}


def on_characters(base: Run) -> dict:
    """Fields that lead from the recipe `base` to one on characters: none if it is, else all of the
    lesson's, for under another preset the pictures of hidden characters are the lesson's too."""
    if sources.SETS.get(base.data, sources.SETS["imagenet"]).family == "glyphs":
        return {}
    recipe = vars(preset("lesson"))
    return {name: recipe[name] for name in recipe if name not in ("method", "params", "seed")}


def hidden_runs(*temperatures: float) -> Callable[[Run], list[dict]]:
    """What a figure shows: preset -> fields of a student at each temperature; 0: of labels."""
    return lambda base: [on_characters(base) | hidden_fields(T=T) for T in temperatures]


@figure("hidden_characters", notebook="02", runs=hidden_runs(0.0, 1.0, 2.0, 4.0, 8.0))
class Hidden:
    table = hidden_table
    draw = draw_hidden
    say = say_hidden


# Few images, and a teacher that saw more

SHARES = (0.25, 0.5, 1.0, 2.5)  # of the preset's training images; the teacher's is the last


def few_images_runs(base: Run) -> list[dict]:
    """Fields of the runs under a preset: fewer and more images, as many steps for each."""
    usual, found = base.n_train or 10_000, []
    numbers = sorted({max(100, round(usual * share)) for share in SHARES})
    for n in numbers:
        length = {"n_train": n, "epochs": max(1, round(base.epochs * usual / n))}
        found.append({"method": "baseline"} | length)
        found.append({"method": "kd", "teacher_n_train": numbers[-1]} | length)
    return found


def few_images_table(records: list[Record]) -> pd.DataFrame:
    """Test accuracy for each number of training images a class, with labels and with a teacher."""
    rows = []
    for name, group in tables.grouped(records).items():
        run = group[0].run
        values = {record.run.seed: record.result["top1_deployed"] for record in group}
        rows.append(
            {
                "method": run.method,
                "label": name,
                "images": run.n_train // group[0].meta["classes"],
                **tables.spread(values),
            }
        )
    return tables.frame(rows, records)


@kdkit_style()
def draw_few_images(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Accuracy against images a class, a line for labels and one for the teacher's answers."""
    fig = Figure(figsize=(6.8, 3.6))
    ax, ends = fig.subplots(), []
    for which, grey in ((reference, REFERENCE_COLOUR), (table, "")):
        for name, rows in () if which is None else which.groupby("method", sort=False):
            look, rows = method_style(name), rows.sort_values("images")
            half = rows["sd"].fillna(0)
            if grey:
                look |= {"color": grey, "marker": "", "lw": 4, "linestyle": "-"}
                half = tables.half_widths(rows)
            else:
                text = "labels alone" if len(ends) == 0 else "and a teacher that saw the most"
                ends.append((rows["mean"].iloc[-1], text, look["color"]))
            ax.errorbar(rows["images"], rows["mean"], half, capsize=3, **look)
    ax.set_xscale("log")
    ticks = sorted(table["images"].unique())
    ax.set_xticks(ticks, [f"{count}" for count in ticks])
    ax.minorticks_off()
    ax.set(
        xlabel=f"training images of each character, as many steps each ({count_text(table)})",
        ylabel="test accuracy (%)",
    )
    end_labels(ax, ends)
    return fig


def say_few_images(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """The difference that the teacher makes, for each number of images."""
    by_images = []
    for count, rows in table.groupby("images"):
        alone, taught = (rows.iloc[k] for k in (0, 1))
        difference = tables.paired_rows(taught, alone)
        by_images.append(
            f"{count} a class: {alone['mean']:.1f} alone, "
            f"{mean_sd_text(difference['difference'], difference['half_width'], '+', 1)} taught"
        )
    return [
        f"Test accuracy in percent against the number of training images, {seeds_text(table)}: "
        f"{'; '.join(by_images)}."
    ]


@figure("few_images", notebook="02", runs=few_images_runs)
class FewImages:
    table = few_images_table
    draw = draw_few_images
    say = say_few_images


SHOWN_IMAGES = 12  # of each hidden class
NAMED_COLOUR = "#006d5b"  # of a right name


def answers_table(records: list[Record], bias: bool = False) -> pd.DataFrame:
    """What deployed students call the first test images of classes that they never saw.

    A row for each kind of run (of its first seed), hidden class and image: `true`, `said`, and in
    `named` how many in a hundred of all its images are named. bias: with the fitted one.
    """
    rows = []
    for name, (record, *_) in tables.grouped(records).items():
        hidden, names = hidden_classes(record), record.meta["class_names"]
        z = record.logits()[0][record.result["deployed"] or 0].copy()  # (N, K)
        if bias:
            z[:, hidden] += fitted_bias(unlabelled_logits(record), hidden)
        said = z.argmax(1)
        for number in hidden:
            of_class = np.flatnonzero(record.labels == number)
            rows += [
                {
                    "label": name,
                    "T": getattr(record.method, "T", 0.0),
                    "true": names[number],
                    "image": image,
                    "said": names[said[image]],
                    "named": 100 * float((said[of_class] == number).mean()),
                    "n": 1,
                }
                for image in of_class[:SHOWN_IMAGES]
            ]
    table = tables.frame(rows, records)
    table.attrs["data"] = records[0].run.data
    return table


@kdkit_style()
def draw_answers(table: pd.DataFrame) -> Figure:
    """Rows of images that the student never saw the like of, each below what it calls them; a right
    answer is bold. table: of `answers_table`."""
    groups = list(table.groupby(["label", "true"], sort=False))
    fig = Figure(figsize=(9.4, 0.35 + 0.86 * len(groups)))
    axes = fig.subplots(len(groups), SHOWN_IMAGES + 1, squeeze=False)
    images = tables.test_images(table.attrs["data"])
    for row, (_, rows) in zip(axes, groups, strict=True):
        for ax in row:
            ax.set_axis_off()
        first = rows.iloc[0]
        teacher = f"taught at T = {first['T']:g}" if first["T"] else "labels alone"
        text = f"{teacher}\nnames {first['named']:.0f} % of {first['true']}"
        row[0].text(1, 0.4, text, fontsize=9, ha="right", va="center", transform=row[0].transAxes)
        for ax, (_, one) in zip(row[1:], rows.iterrows(), strict=False):
            draw_image(ax, images[one["image"]])
            right = one["said"] == one["true"]
            look = {"color": NAMED_COLOUR, "weight": "bold"} if right else {"color": FAINT_COLOUR}
            ax.set_title(one["said"], loc="center", fontsize=12, pad=2, **look)
    hidden = _list_text(",".join(dict.fromkeys(table["true"])))
    fig.suptitle(f"What students call {hidden}, which they never saw; green: right", fontsize=11)
    return fig


@cache
def _test_classes(name: str) -> tuple[list[str], np.ndarray]:
    """Names of a data set's classes, and the class of each test image (N,)."""
    data = sources.load(name)
    return list(data.class_names), data.y_test.cpu().numpy()


def asked_table(run: Run) -> pd.DataFrame:
    """`answers_table` of a run that is not trained: each image is called "?". ValueError for a
    class that its data set has not."""
    names, labels = _test_classes(run.data)
    rows = []
    for name in filter(None, run.hide.split(",")):
        number = names.index(choose(name, names, "class"))
        rows += [
            {"label": "", "T": dict(run.params).get("T", 0.0), "true": name, "image": int(image)}
            for image in np.flatnonzero(labels == number)[:SHOWN_IMAGES]
        ]
    table = pd.DataFrame(rows).assign(said="?", named=np.nan)
    table.attrs["data"] = run.data
    return table


@kdkit_style()
def draw_calls(table: pd.DataFrame, fig: Figure | None = None) -> Figure:
    """`draw_answers` of one run as a single picture, which is drawn faster. fig: a figure that this
    function returned before, to be drawn in again if it has as many rows."""
    groups, images = (
        list(table.groupby("true", sort=False)),
        tables.test_images(table.attrs["data"]),
    )
    channels, high, wide = images.shape[1:]
    down, across = 2 * high, wide + wide // 3  # from one image to the next
    size = 9.0, 0.95 * len(groups)
    if fig is not None and tuple(fig.get_size_inches()) != size:
        fig = None
    margins = {"left": 0, "right": 1, "bottom": 0, "top": 1}
    fig, (ax,) = reuse_figure(fig, size, 1, 1, gridspec_kw=margins)
    fig.set_layout_engine("none")  # texts come and go
    mosaic = np.zeros((channels, down * len(groups), across * SHOWN_IMAGES), images.dtype)
    for row, (true, rows) in enumerate(groups):
        first, top = rows.iloc[0], row * down + down - high
        teacher = f"taught at T = {first['T']:g}" if first["T"] else "labels alone"
        named = f"names {first['named']:.0f} % of {true}"
        text = f"{teacher}\n{'not trained yet' if pd.isna(first['named']) else named}"
        ax.text(-across / 3, top + high / 2, text, fontsize=10, ha="right", va="center")
        for place, (_, one) in enumerate(rows.iterrows()):
            left = place * across
            mosaic[:, top : top + high, left : left + wide] = images[one["image"]]
            right = one["said"] == one["true"]
            look = {"color": NAMED_COLOUR, "weight": "bold"} if right else {"color": FAINT_COLOUR}
            ax.text(left + wide / 2, top - 1, one["said"], fontsize=13, ha="center", **look)
    draw_image(ax, mosaic)
    ax.set(xlim=(-3 * across, mosaic.shape[2]), aspect="auto")
    mark_redrawn(ax, except_=(ax.xaxis, ax.yaxis, *ax.spines.values()))
    return fig


def say_answers(table: pd.DataFrame) -> list[str]:
    """How many of each hidden class are named."""
    first = table.drop_duplicates(["label", "true"])
    return [
        "What students call test images of characters that they never saw, without any bias: "
        + ", ".join(
            f"{'T = ' + format(row['T'], 'g') if row['T'] else 'labels alone'} names "
            f"{row['named']:.0f} % of {row['true']}"
            for _, row in first.iterrows()
        )
        + "."
    ]


@figure("never_seen", notebook="00", runs=hidden_runs(0.0, 1.0, 4.0), whole=True)
class Answers:
    table = answers_table
    draw = draw_answers
    say = say_answers
