"""Pictures of what a soft target knows: which classes resemble each other, and one image in the
eyes of all who teach it.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ... import metrics
from ...methods.okddip import mix
from ..store import Record
from . import tables
from .index import figure
from .predictions import draw_image
from .style import (
    LINES,
    PALETTE,
    kdkit_style,
)

T_MAP = 4.0  # temperature of the class map: KD's
FAMILIES = 12  # groups of look-alike classes that the class map frames

# Which classes does a teacher hold to be alike?


def class_similarity(z: np.ndarray, labels: np.ndarray, T: float = T_MAP) -> np.ndarray:
    """Row c: the mean softened answer to the test images of class c. z (N, K), labels (N,)."""
    p = metrics.softmax(z, T)
    return np.stack([p[labels == number].mean(0) for number in range(p.shape[-1])])  # (K, K)


def family_order(similarity: np.ndarray, families: int = FAMILIES) -> tuple[np.ndarray, np.ndarray]:
    """(order, family): classes so that those that resemble each other are neighbours, and the
    number of each ordered class's family. similarity (K, K)."""
    from scipy.cluster import hierarchy  # slow to import, and only this needs it

    near = (similarity + similarity.T) / 2
    distance = 1 - near / near.max()
    pairs = distance[np.triu_indices(len(distance), 1)]
    tree = hierarchy.linkage(pairs, "average", optimal_ordering=True)
    order = hierarchy.leaves_list(tree)
    return order, hierarchy.fcluster(tree, families, "maxclust")[order]


def similarity_table(records: list[Record]) -> pd.DataFrame:
    """A row for each of teacher, labels only and distilled, and each class: its family, and the
    mean softened answer to its test images, a column a class. Of the first seed; classes stand in
    the teacher's order."""
    first = min(record.run.seed for record in records)
    records = [record for record in records if record.run.seed == first]
    alone = next(record for record in records if record.logits()[1] is None)
    taught = next(record for record in records if record.logits()[1] is not None)
    names = taught.meta["class_names"]
    maps = {
        "teacher": class_similarity(taught.logits()[1], taught.labels),
        f"{alone.method.title} alone": class_similarity(alone.logits()[0][0], alone.labels),
        f"{taught.method.title} student": class_similarity(taught.logits()[0][0], taught.labels),
    }
    order, family = family_order(maps["teacher"])
    rows = []
    for who, matrix in maps.items():
        for place, number in enumerate(order):
            answers = dict(
                zip([names[i] for i in order], matrix[number, order].round(4), strict=True)
            )
            rows.append({"who": who, "class": names[number], "family": family[place]} | answers)
    return tables.frame(rows, records)


def _matrix(rows: pd.DataFrame) -> np.ndarray:
    """The answers (K, K) of one of a similarity table's three."""
    return rows.iloc[:, 3:].to_numpy(float)


@kdkit_style()
def draw_similarity(table: pd.DataFrame) -> Figure:
    """Class against class, brighter where more is given: the teacher's map large, its families
    framed, and the students' beside it. table: of `similarity_table`."""
    fig = Figure(figsize=(9.6, 6.3))
    axes = fig.subplot_mosaic("AAB;AAC")
    groups = list(table.groupby("who", sort=False))
    top = np.percentile(_matrix(groups[0][1])[~np.eye(len(groups[0][1]), dtype=bool)], 99.7)
    for ax, (who, rows) in zip(axes.values(), groups, strict=True):
        ax.imshow(np.sqrt(_matrix(rows)), cmap="viridis", vmin=0, vmax=np.sqrt(top))
        ax.set(title=who, xticks=[], yticks=[])
        ax.grid(False)
    first, names = groups[0][1], list(groups[0][1]["class"])
    large = axes["A"]
    large.set_title(f"What the teacher answers (columns) to each class (rows), T = {T_MAP:g}")
    edges = [0, *(np.flatnonzero(np.diff(first["family"])) + 1), len(names)]
    for begin, end in pairwise(edges):
        if end - begin > 1:
            corners = [begin - 0.5, end - 0.5]
            square = [corners[i] for i in (0, 1, 1, 0, 0)], [corners[i] for i in (0, 0, 1, 1, 0)]
            for ax in axes.values():
                ax.plot(*square, color="white", lw=0.8, marker="", ls="-")
    # Characters in two rows beside their lines, so that each can be read.
    for place, name in enumerate(names):
        away = -1.6 if place % 2 else -3.8
        large.text(away, place, name, fontsize=6, ha="center", va="center", clip_on=False)
    return fig


def say_similarity(table: pd.DataFrame) -> list[str]:
    """The closest pairs of the teacher, and how much of the map the students share."""
    maps = {who: _matrix(rows) for who, rows in table.groupby("who", sort=False)}
    names, (who, teacher), *students = list(dict.fromkeys(table["class"])), *maps.items()
    others = ~np.eye(len(names), dtype=bool)
    near = np.where(others, (teacher + teacher.T) / 2, 0)
    near[np.tril_indices(len(near))] = 0
    best = np.column_stack(np.unravel_index(np.argsort(-near, axis=None)[:6], near.shape))
    pairs = ", ".join(f"{names[a]} and {names[b]} ({near[a, b]:.3f})" for a, b in best)
    alike = [
        f"{other} {np.corrcoef(np.log(teacher[others] + 1e-6), np.log(m[others] + 1e-6))[0, 1]:.3f}"
        for other, m in students
    ]
    return [
        f"{len(names)} classes against {len(names)}: the mean softened answer of the teacher and "
        f"of two students, ordered so that what is alike stands together; at T = {T_MAP:g}.",
        f"What the {who} finds most alike: {pairs}.",
        f"Correlation of each student's map with the teacher's, outside the diagonal: "
        f"{', '.join(alike)}.",
    ]


@figure(
    "class_similarity", notebook="02", runs=[{"method": "baseline"}, {"method": "kd"}], whole=True
)
class ClassSimilarity:
    table = similarity_table
    draw = draw_similarity
    say = say_similarity


# One image, and all that a student is told of it

TOLD = 6  # classes that are named of each answer


def told_table(records: list[Record], image: int | None = None) -> pd.DataFrame:
    """All that a student is told of one test image: its label, the teacher's answer, what each
    student of a collection receives from the others, and each peer's target under attention.

    A row for each teller and class: `p` at the temperature `T` of the loss. image: its place in the
    test set; None: the one whose tellers differ most among those that the teacher gets right.
    Attention is the mean of the last epoch.
    """
    first = min(record.run.seed for record in records)
    collects = next(r for r in records if r.run.seed == first and hasattr(r.method, "collect"))
    attends = next(r for r in records if r.run.seed == first and hasattr(r.method, "aggregate"))
    z, z_teacher = collects.logits()
    tau, T = collects.method.tau, attends.method.T
    collected = collects.method.collect(torch.from_numpy(z)).numpy()  # (m, N, K)
    attention = attends.arrays["attention"][-1].astype(np.float64)  # (peers, peers)
    peers = attends.logits()[0][: len(attention)]  # (peers, N, K)
    weights = torch.from_numpy(attention).expand(peers.shape[1], -1, -1)  # (N, peers, peers)
    targets = mix(torch.from_numpy(peers), weights, T, attends.method.aggregate).numpy()
    answers = {"teacher": (collects.method.T, metrics.softmax(z_teacher, collects.method.T))}
    answers |= {
        f"{collects.method.title}: to student {number}": (tau, metrics.softmax(z_k, tau))
        for number, z_k in enumerate(collected, 1)
    }
    answers |= {
        f"{attends.method.title}: to peer {number}": (T, q) for number, q in enumerate(targets, 1)
    }
    labels, names = collects.labels, collects.meta["class_names"]
    number = image
    if number is None:
        p = np.stack([q for _, q in answers.values()])  # (tellers, N, K)
        differ = p.var(0).sum(-1) * (z_teacher.argmax(-1) == labels)
        number = int(differ.argmax())
    told = {"label": (0.0, np.eye(len(names))[labels[number]])}
    told |= {who: (heat, q[number]) for who, (heat, q) in answers.items()}
    rows = [
        {
            "image": number,
            "true": names[labels[number]],
            "who": who,
            "T": heat,
            "class": name,
            "p": value,
        }
        for who, (heat, p) in told.items()
        for name, value in zip(names, p.round(5), strict=True)
    ]
    table = tables.frame(rows, [collects, attends])
    table.attrs |= {"data": collects.run.data, "chosen": image is None}
    return table


def _draw_subject(ax, table: pd.DataFrame) -> None:
    """The test image that a table is about, with its number."""
    number = table["image"].iloc[0]
    draw_image(ax, tables.test_images(table.attrs["data"])[number])
    ax.set_title(f"test image {number}", loc="center", fontsize=9)


@kdkit_style()
def draw_told(table: pd.DataFrame) -> Figure:
    """The image, and beside it each teller's largest probabilities. table: of `told_table`."""
    groups = list(table.groupby("who", sort=False))
    fig = Figure(figsize=(9.4, 4.6))
    across = -(-(len(groups) + 1) // 2)
    axes = np.ravel(fig.subplots(2, across))
    _draw_subject(axes[0], table)
    for number, (ax, (who, rows)) in enumerate(zip(axes[1:], groups, strict=False)):
        top = rows.sort_values("p", ascending=False, kind="stable")[:TOLD][::-1]
        colours = [
            PALETTE[2] if name == rows["true"].iloc[0] else PALETTE[0] for name in top["class"]
        ]
        ax.barh(range(len(top)), top["p"], color=colours, height=0.7)
        ax.set_yticks(range(len(top)), top["class"])
        heat = f", T = {rows['T'].iloc[0]:g}" if rows["T"].iloc[0] else ""
        ax.set_title(f"{who}{heat}", fontsize=8.5)
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, 1 if number == 0 else None)
        ax.xaxis.set_major_locator(MaxNLocator(3))
    for ax in axes[len(groups) + 1 :]:
        ax.set_visible(False)
    fig.supxlabel("probability; red: the character that it is", fontsize=9.5)
    return fig


def say_told(table: pd.DataFrame) -> list[str]:
    """The first three classes of each teller."""
    told = []
    for who, rows in table.groupby("who", sort=False):
        top = rows.sort_values("p", ascending=False, kind="stable")[: 1 if who == "label" else 3]
        answers = ", ".join(f"{n} {p:.2f}" for n, p in zip(top["class"], top["p"], strict=True))
        told.append(f"{who}: {answers}")
    first = table.iloc[0]
    return [
        f"All that students are told of test image {first['image']}, which shows {first['true']}: "
        f"{'; '.join(told)}.",
        *["The image was chosen because these differ most on it."] * table.attrs["chosen"],
    ]


@figure(
    "told_of_one_image", notebook="07", runs=[{"method": "dckd"}, {"method": "okddip"}], whole=True
)
class Told:
    table = told_table
    draw = draw_told
    say = say_told


# What each peer says of one image while it learns

FOLLOWED = 4  # classes whose probabilities are followed


def peers_table(records: list[Record], image: int | None = None) -> pd.DataFrame:
    """What each student says of one image of the probe after each epoch, at T = 1.

    A row for each epoch (from 1), student (from 1) and class of the few that count. image: its
    place among the 64 that records follow; None: the one on which students disagree longest.
    """
    record = min(records, key=lambda record: record.run.seed)
    p = metrics.softmax(record.arrays["probe_logits"])  # (E, m, 64, K)
    place = int(p.var(1).sum((0, -1)).argmax()) if image is None else image
    of_image = p[:, :, place]  # (E, m, K)
    number = int(record.arrays["probe_index"][place])
    names, true = record.meta["class_names"], int(record.labels[number])
    weight = of_image.mean((0, 1))
    weight[true] = np.inf
    leader = record.method.deployed(record.run.seed)
    rows = [
        {
            "image": number,
            "true": names[true],
            "student": "leader" if student == leader else f"peer {student + 1}",
            "epoch": epoch + 1,
            "class": names[c],
            "p": float(of_image[epoch, student, c]),
        }
        for student in range(of_image.shape[1])
        for epoch in range(len(of_image))
        for c in np.argsort(-weight, kind="stable")[:FOLLOWED]
    ]
    table = tables.frame(rows, [record])
    table.attrs |= {"data": record.run.data, "chosen": image is None}
    return table


@kdkit_style()
def draw_peers(table: pd.DataFrame) -> Figure:
    """The image, and a panel for each student: its probabilities over the epochs."""
    groups = list(table.groupby("student", sort=False))
    fig = Figure(figsize=(9.6, 2.9))
    axes = fig.subplots(1, len(groups) + 1, width_ratios=[0.6, *[1] * len(groups)])
    _draw_subject(axes[0], table)
    for ax, (student, rows) in zip(axes[1:], groups, strict=True):
        ax.sharey(axes[1])
        for number, (name, curve) in enumerate(rows.groupby("class", sort=False)):
            style = {"color": PALETTE[(2, 0, 1, 3)[number]], "ls": LINES[number], "marker": ""}
            ax.plot(curve["epoch"], curve["p"], label=name, **style)
        ax.set_title(student)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.tick_params(labelleft=ax is axes[1])
    axes[1].set(ylim=(-0.03, 1.03), ylabel="probability")
    fig.supxlabel("epoch", fontsize=9.5)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="says")
    return fig


def say_peers(table: pd.DataFrame) -> list[str]:
    """What each student says at the end."""
    last, first = table[table["epoch"] == table["epoch"].max()], table.iloc[0]
    ends = []
    for student, rows in last.groupby("student", sort=False):
        top = rows.loc[rows["p"].idxmax()]
        ends.append(f"{student} {top['class']} ({top['p']:.2f})")
    return [
        f"What each student says, epoch by epoch, of test image {first['image']}, which shows "
        f"{first['true']}; at the end: {', '.join(ends)}.",
        *["The image was chosen, of 64 that are followed, because students disagree on it longest."]
        * table.attrs["chosen"],
    ]


@figure("peers_over_epochs", notebook="06", runs=[{"method": "okddip"}], whole=True)
class Peers:
    table = peers_table
    draw = draw_peers
    say = say_peers
