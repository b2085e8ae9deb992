"""How many classes stand out: the correlation number, and the largest probability of each class.

DCKD's Figures 2 to 4, and the two distributions that it argues with.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ... import metrics
from ..store import Record
from . import tables
from .index import figure
from .predictions import distribution_bars, draw_image
from .style import BARS, DASHED, FAINT_COLOUR, TEXT_COLOUR, kdkit_style, mark_redrawn, reuse_figure
from .tables import count_text, each_row, seed_columns, seeds_text, verdict

DISTRIBUTIONS = {"p1": (0.55, *[0.05] * 9), "p2": (0.55, 0.45, *[0.0] * 8)}  # DCKD, before Eq. 15
ABOVE_COLOUR, BELOW_COLOUR = "#bd1f01", "#b0b0b0"  # of bars above and below 1/K


def correlation_table(records: list[Record]) -> pd.DataFrame:
    """Mean correlation number over the test images of teacher, students and what each student
    gets from the others (its method's `collect`), at T = 1 and 4: DCKD's Figure 4."""
    names = {"Teacher": "teacher", "Students": "number", "Collection": "collection"}
    rows = []
    for T, end in ((1.0, ""), (4.0, "_T4")):
        numbers = {
            who: {record.run.seed: record.result[f"correlation_{name}{end}"] for record in records}
            for who, name in names.items()
        }
        for who, values in numbers.items():
            control = "" if who == "Teacher" else "Teacher"
            rows.append(
                {
                    "T": T,
                    "who": who,
                    "control": control,
                    **tables.paired(values, numbers[control] if control else {}),
                    **tables.spread(values),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_correlation(table: pd.DataFrame) -> Figure:
    """Correlation number of teacher, students and collection. table: of `correlation_table`."""
    fig = Figure(figsize=(7.6, 3.2))
    axes = fig.subplots(1, table["T"].nunique(), sharey=True, squeeze=False)[0]
    for ax, (T, rows) in zip(axes, table.groupby("T", sort=False), strict=True):
        for x, (_, row) in enumerate(rows.iterrows()):
            ax.bar(x, row["mean"], color=BARS[x], width=0.62, yerr=np.nan_to_num(row["sd"]))
            values = row[seed_columns(rows)].dropna().astype(float)
            ax.plot([x] * len(values), values, "o", color=TEXT_COLOUR, markersize=3, alpha=0.7)
            ax.annotate(
                f"{row['mean']:.3f}",
                (x, max(values)),
                (0, 9),
                ha="center",
                fontsize=9,
                textcoords="offset points",
            )
        ax.set_xticks(range(len(rows)), rows["who"])
        ax.set_title(f"T = {T:g}")
        ax.grid(axis="x", visible=False)
        ax.margins(y=0.16)
    axes[0].set_ylabel("classes above 1/K, mean")
    fig.supxlabel(f"every seed a dot, {count_text(table)}", fontsize=9)
    return fig


def say_correlation(table: pd.DataFrame) -> list[str]:
    """Students and collection against the teacher, at each temperature."""
    sentences = [
        f"Mean number of classes above 1/K over the test images, {seeds_text(table)}: "
        f"{each_row(table, '{who} {mean:.3f} (T = {T:g})')}."
    ]
    if table["n"].max() < 2:
        return [*sentences, "One seed gives no interval, so nothing is shown by this run alone."]
    for _, row in table.iterrows():
        if row["control"]:
            subject = f"At T = {row['T']:g} the correlation number of {row['who'].lower()}"
            sentences.append(verdict(subject, "the teacher's", row, "", 3))
    return sentences


@figure("dckd_correlation", notebook="07", runs=[{"method": "dckd"}])
class CorrelationNumber:
    table = correlation_table
    draw = draw_correlation
    say = say_correlation


def distribution_table(records: list[Record] = ()) -> pd.DataFrame:
    """The two distributions that DCKD argues with: each class's probability, the entropy in nats
    and the correlation number. Computed from no run."""
    rows = [
        {
            "distribution": name,
            "class": number,
            "p": probability,
            "entropy": float(metrics.entropy(p)),
            "correlation_number": int(metrics.correlation_number(p)),
        }
        for name, p in DISTRIBUTIONS.items()
        for number, probability in enumerate(p)
    ]
    return tables.frame(rows, records)


@kdkit_style()
def draw_distributions(table: pd.DataFrame) -> Figure:
    """Distributions with their entropy and correlation number. table: of `distribution_table`."""
    fig = Figure(figsize=(7.6, 2.9))
    axes = fig.subplots(1, table["distribution"].nunique(), sharey=True, squeeze=False)[0]
    for ax, (name, rows) in zip(axes, table.groupby("distribution", sort=False), strict=True):
        threshold = 1 / len(rows)
        colours = np.where(rows["p"] > threshold, ABOVE_COLOUR, BELOW_COLOUR)
        ax.bar(rows["class"], rows["p"], color=colours, width=0.7)
        ax.axhline(threshold, **DASHED)
        ax.text(len(rows) - 0.5, threshold + 0.01, "1/K", ha="right", va="bottom", fontsize=9)
        entropy, number = rows[["entropy", "correlation_number"]].iloc[0]
        ax.set_title(f"{name}: entropy {entropy:.2f} nats, correlation number {number:g}")
        ax.set(xlabel="class", xticks=rows["class"])
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("probability")
    return fig


def say_distributions(table: pd.DataFrame) -> list[str]:
    """Do entropy and correlation number order the two distributions alike?"""
    two = table.drop_duplicates("distribution")
    signs = np.sign(two[["entropy", "correlation_number"]].diff().iloc[1])
    order = "alike" if signs.nunique() == 1 else "in opposite ways"
    template = (
        "{distribution} has entropy {entropy:.3f} nats and correlation number {correlation_number}"
    )
    return [
        f"Two distributions over ten classes: {each_row(two, template)}.",
        f"Entropy and correlation number order them {order}: only the second counts how many "
        "classes stand out.",
    ]


@figure("entropy_correlation", notebook="09")
class Distributions:
    table = distribution_table
    draw = draw_distributions
    say = say_distributions


def class_maximum_table(
    records: list[Record], true: int | None = None, student: int = 0, tau: float | None = None
) -> pd.DataFrame:
    """DCKD's Figure 2: for each class the largest probability that any test image of the class
    `true` gets for it, from the teacher and from one student, at temperature `tau`. Of the record
    with the lowest seed.

    true: by default the class with the peak that the student has most above its teacher. tau: by
    default the method's own. Column `images`: the numbers of the test images behind the student's
    peak; `like`: of those images of the peak's own class that the student gives most. The data
    set's name is in `attrs["data"]`.
    """
    record = min(records, key=lambda record: record.run.seed)
    tau = tau or getattr(record.method, "tau", 1.0)
    students, z_teacher = record.logits()
    labels = record.labels  # (N,)
    if z_teacher is None or not 0 <= student < len(students):
        raise ValueError(
            f"run {record.id}: needs a teacher, and a student of 0 to {len(students) - 1}; "
            f"seen student={student}, teacher {'no' if z_teacher is None else 'yes'}"
        )
    p_student = metrics.softmax(students[student], tau)  # (N, K)
    p_teacher = metrics.softmax(z_teacher, tau)
    classes = range(p_student.shape[-1])
    # Row: an image's true class; column: a class; value: the largest probability. (K, K) each.
    student_maxima, teacher_maxima = (
        np.stack([p[labels == number].max(0) for number in classes]) for p in (p_student, p_teacher)
    )
    above = student_maxima - teacher_maxima
    if true is None:
        others = ~np.eye(len(classes), dtype=bool)
        true = int(np.where(others, above, -np.inf).max(1).argmax())
    of_true, names = np.flatnonzero(labels == true), record.meta["class_names"]

    def largest(images: np.ndarray, number: int) -> str:
        """Of `images`, the four to which the student gives most of class `number`."""
        order = np.argsort(-p_student[images, number], kind="stable")
        return " ".join(map(str, images[order[:4]]))

    rows = [
        {
            "seed": record.run.seed,
            "tau": tau,
            "true": names[true],
            "class": names[number],
            "teacher": teacher_maxima[true, number],
            "student": student_maxima[true, number],
            "above": above[true, number],
            "images": largest(of_true, number),
            "like": largest(np.flatnonzero(labels == number), number),
        }
        for number in classes
    ]
    table = tables.frame(rows, [record])
    table.attrs["data"] = record.run.data
    return table


def image_numbers(text: str) -> list[int]:
    """The numbers of test images in a cell of the columns `images` and `like`."""
    return [int(number) for number in text.split()]


@kdkit_style()
def draw_class_map(
    student,
    teacher,
    true: int,
    peak: int,
    images,
    names: list[str],
    like=(),
    fig: Figure | None = None,
) -> Figure:
    """Class maxima (K,) of student and teacher over the images of class `true`, and below them the
    images (n, C, H, W) uint8 behind the student's peak, beside images `like` of the peak's class.

    fig: a figure that this function returned before, to be drawn in again.
    """
    fig, (ax, below) = reuse_figure(fig, (8.4, 4.7), 2, 1, height_ratios=(2.4, 1))
    ax.annotate(
        f"peak: {names[peak]}",
        (peak, max(student[peak], teacher[peak])),
        (0, 16),
        ha="center",
        fontsize=9,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-|>", "color": TEXT_COLOUR},
    )
    title = f"Largest probability over all test images of: {names[true]}"
    distributions = [("teacher", teacher, BARS[0]), ("student", student, BARS[1])]
    distribution_bars(ax, title, distributions, names)
    if len(names) > 20:
        _name_peaks(ax, np.maximum(student, teacher), peak, names)
    # The images make one picture with gaps: an ax for each takes as long as the bars.
    strip = []
    for image in [*images, *like]:
        gap = (0, 0), (0, 0), (0, len(image[0]) // 4)
        strip.append(np.pad(image, gap, constant_values=255 * (len(image) > 1)))
    draw_image(below, np.concatenate(strip, -1))
    below.text(0, -2, f"{names[true]}, most like {names[peak]}:", fontsize=9)
    if len(like):
        x = len(images) * strip[0].shape[-1]
        below.text(x, -2, f"{names[peak]}, for comparison:", fontsize=9)
    below.apply_aspect()  # there may be more images than before
    hidden = below.xaxis, below.yaxis, *below.spines.values()
    mark_redrawn(below, except_=hidden)
    return fig


def _name_peaks(ax, heights: np.ndarray, marked: int, names: list[str]) -> None:
    """Names above the highest bars, where there are too many to name all; `marked` has an arrow."""
    named: list[int] = []
    for number in np.argsort(-heights, kind="stable"):
        if len(named) < 9 and all(abs(number - other) > 2 for other in [*named, marked]):
            named.append(number)
            ax.annotate(
                names[number],
                (number, heights[number]),
                (0, 2),
                ha="center",
                fontsize=9,
                textcoords="offset points",
                color=FAINT_COLOUR,
                annotation_clip=False,
            )
    mark_redrawn(ax, except_=(ax.xaxis,))


def draw_class_maximum(table: pd.DataFrame) -> Figure:
    """`draw_class_map` at the largest extra peak. table: of `class_maximum_table`."""
    names, images = list(table["class"]), tables.test_images(table.attrs["data"])
    true = names.index(table["true"].iloc[0])
    peak = int(table["above"].where(table.index != true).idxmax())
    behind, like = ([images[i] for i in image_numbers(table[c][peak])] for c in ("images", "like"))
    student, teacher = table["student"].to_numpy(), table["teacher"].to_numpy()
    return draw_class_map(student, teacher, true, peak, behind, names, like)


def say_class_maximum(table: pd.DataFrame) -> list[str]:
    """The peak that the student has most above its teacher, and how many it has more."""
    true, others = table["true"].iloc[0], table[table["class"] != table["true"]]
    top = others.loc[others["above"].idxmax()]
    count = int((others["above"] > 0).sum())
    side = "above" if top["above"] > 0 else "not above"
    return [
        f"Largest probabilities that any test image of class {true} gets, at tau = "
        f"{top['tau']:g}, seed {top['seed']}: for {top['class']} {top['student']:.3f} from the "
        f"student and {top['teacher']:.3f} from the teacher.",
        f"The student's peak for {top['class']} is {side} the teacher's: "
        f"{top['above']:+.3f}; images behind it: {top['images']}.",
        f"It is above the teacher for {count} of the {len(others)} other classes "
        "(one student, one seed: a look, not a test).",
    ]


@figure("dckd_classmax", notebook="07", runs=[{"method": "dckd"}], whole=True)
class ClassMaximum:
    table = class_maximum_table
    draw = draw_class_maximum
    say = say_class_maximum
