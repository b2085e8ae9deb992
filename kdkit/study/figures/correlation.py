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
from .style import (
    BARS,
    DASHED,
    FAINT_COLOUR,
    REFERENCE_COLOUR,
    TEXT_COLOUR,
    kdkit_style,
    mark_redrawn,
    reuse_figure,
)
from .tables import count_text, each_row, seed_columns, seeds_text, verdict

DISTRIBUTIONS = {"p1": (0.55, *[0.05] * 9), "p2": (0.55, 0.45, *[0.0] * 8)}  # DCKD, before Eq. 15
TEACHER, COLLECTED = "Teacher", "Collection"
LOOKS = {TEACHER: BARS[0], COLLECTED: BARS[2]}
ABOVE_COLOUR, BELOW_COLOUR = "#bd1f01", "#b0b0b0"  # of bars above and below 1/K


def correlation_table(records: list[Record]) -> pd.DataFrame:
    """Mean correlation number over the test images, at T = 1 and 4 (DCKD's Figure 4): of the
    teacher, of the students of each method, and of what each of DCKD's students gets from the
    others (its method's `collect`); differences to the teacher are paired by seed."""
    rows = []
    for T, end in ((1.0, ""), (4.0, "_T4")):
        numbers = {}
        for record in records:
            parts = {record.method.title: f"correlation_number{end}"}
            parts |= {part: f"correlation_{part.lower()}{end}" for part in (COLLECTED, TEACHER)}
            for who, name in parts.items():
                if name in record.result:
                    numbers.setdefault(who, {})[record.run.seed] = record.result[name]
        for who in [name for name in numbers if name != TEACHER] + [TEACHER]:
            control = "" if who == TEACHER else TEACHER
            rows.append(
                {
                    "T": T,
                    "who": who,
                    "control": control,
                    **tables.paired(numbers[who], numbers[control] if control else {}),
                    **tables.spread(numbers[who]),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_correlation(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Correlation numbers side by side, a line through those of each seed; the dashed level is the
    teacher's. table, reference: of `correlation_table`."""
    fig = Figure(figsize=(8.4, 3.6))
    axes = fig.subplots(1, table["T"].nunique(), squeeze=False)[0]
    for ax, (T, rows) in zip(axes, table.groupby("T", sort=False), strict=True):
        x = np.arange(len(rows))
        if reference is not None:
            grey = reference[reference["T"] == T].set_index("who").reindex(rows["who"])
            bars = {"fmt": "none", "ecolor": REFERENCE_COLOUR, "elinewidth": 9}
            ax.errorbar(x, grey["mean"], tables.half_widths(grey.fillna({"n": 0})), **bars)
        for column in seed_columns(rows):
            ax.plot(x, rows[column], "o-", color=FAINT_COLOUR, lw=0.8, markersize=3)
        colours = [LOOKS.get(who, BARS[1]) for who in rows["who"]]
        ax.scatter(x, rows["mean"], s=55, c=colours, zorder=3)
        ax.axhline(rows["mean"].iloc[-1], **DASHED, zorder=0)
        highest = rows[seed_columns(rows)].max(axis=1)
        for place, top, mean in zip(x, highest, rows["mean"], strict=True):
            above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
            ax.annotate(f"{mean:.2f}", (place, top), fontsize=9, **above)
        ax.set_xticks(x, rows["who"], fontsize=9)
        ax.set_title(f"T = {T:g}")
        ax.grid(axis="x", visible=False)
        ax.margins(x=0.1, y=0.22)
    axes[0].set_ylabel("classes above 1/K, mean")
    axes[0].set_xlabel(f"a line for each seed, {count_text(table)}", fontsize=9, loc="left")
    return fig


def say_correlation(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """Who is above the teacher, at each temperature; over several seeds, DCKD's students and their
    collection against the teacher, and against KD's student. table, reference: of
    `correlation_table`."""
    sentences = [
        f"Mean number of classes above 1/K over the test images, {seeds_text(table)}: "
        f"{each_row(table, '{who} {mean:.3f} (T = {T:g})')}."
    ]
    for T, rows in table[table["control"] != ""].groupby("T", sort=False):
        above = list(rows.loc[rows["difference"] > 0, "who"])
        most = rows.loc[rows["mean"].idxmax(), "who"]
        sentences.append(
            f"T = {T:g}: above the teacher {'is' if len(above) == 1 else 'are'} "
            f"{', '.join(above) or 'nobody'}; {most} has most."
        )
    judged = table if table["n"].max() > 1 else reference
    if judged is None:
        return sentences
    for T, rows in judged.groupby("T", sort=False):
        rows = rows.set_index("who")
        collect = list(rows.index)[-3:-1]  # the method that collects, and its collection
        other = rows.index[-4] if len(rows) > 3 else TEACHER
        for who, control in (*((name, TEACHER) for name in collect), (collect[0], other)):
            difference = tables.paired_rows(rows.loc[who], rows.loc[control])
            subject = f"At T = {T:g} the correlation number of {who}"
            sentences.append(verdict(subject, f"that of {control}", difference, "", 3))
    return sentences


@figure("dckd_correlation", notebook="07", runs=[{"method": m} for m in ("baseline", "kd", "dckd")])
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
    names, z = record.meta["class_names"], students[student]
    classes = range(len(names))
    peaks = [class_peaks(z, labels, number, tau) for number in classes]
    # Row: an image's true class; column: a class; value: the largest probability. (K, K) each.
    student_maxima = np.stack([top for top, _ in peaks])
    teacher_maxima = np.stack([class_peaks(z_teacher, labels, c, tau)[0] for c in classes])
    above = student_maxima - teacher_maxima
    if true is None:
        others = ~np.eye(len(classes), dtype=bool)
        true = int(np.where(others, above, -np.inf).max(1).argmax())
    rows = [
        {
            "seed": record.run.seed,
            "tau": tau,
            "true": names[true],
            "class": names[number],
            "teacher": teacher_maxima[true, number],
            "student": student_maxima[true, number],
            "above": above[true, number],
            "images": " ".join(map(str, peaks[true][1][:, number])),
            "like": " ".join(map(str, peaks[number][1][:, number])),
        }
        for number in classes
    ]
    table = tables.frame(rows, [record])
    table.attrs["data"] = record.run.data
    return table


def class_peaks(
    z: np.ndarray, labels: np.ndarray, true: int, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """The largest probability (K,) that any image of the class `true` gets for each class at the
    temperature tau, and the numbers (4, K) of the images that get most, or (n, K) where there are
    but n. Logits z (N, K), labels (N,)."""
    of_true = np.flatnonzero(labels == true)
    p = metrics.softmax(z[of_true], tau)
    return p.max(0), of_true[np.argsort(-p, axis=0, kind="stable")[:4]]


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
        room = [1 + (len(names[number]) + len(names[other])) / 2 for other in [*named, marked]]
        apart = [abs(number - other) for other in [*named, marked]]
        if len(named) < 9 and all(np.greater(apart, room)):
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
