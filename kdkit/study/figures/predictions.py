"""Predictions for one image as bars, softened or collected, and images in a row.

These are what the widgets and the notebooks draw of single images; no figure is registered here.
"""

import numpy as np
from IPython.display import HTML, display
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ... import metrics
from .style import BARS, DASHED, html, kdkit_style, mark_redrawn, reuse_figure

OTHER_STUDENT = "#bdd5ee"  # a lighter tone of the student's own


def distribution_bars(
    ax, title: str, distributions: list[tuple[str, np.ndarray, str]], names: list[str]
) -> None:
    """Distributions over classes side by side, and a line at 1/K.

    distributions: (label, p (K,), colour) each; the colours should differ in lightness. names: of
    the K classes; above twenty they are not written.
    """
    classes, width = len(names), 0.8 / len(distributions)
    for number, (label, p, colour) in enumerate(distributions):
        sides = (np.array([0.04, 0.04, 0.96, 0.96]) + number - len(distributions) / 2) * width
        x = np.add.outer(np.arange(classes), sides)  # (K, 4): a bar's four corners
        y = np.outer(p, [0, 1, 1, 0])
        bars = PolyCollection(np.stack([x, y], -1), label=label, fc=colour, lw=0)
        ax.add_collection(bars)
    ax.axhline(1 / classes, **DASHED)
    ax.text(classes - 0.45, 1 / classes, "1/K", fontsize=9, va="bottom", ha="left")
    if classes <= 20:
        ax.set_xticks(range(classes), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)
    top = 1.08 * max(np.max(p) for _, p, _ in distributions)
    ax.set(
        xlim=(-0.6, classes - 0.4),
        yticks=MaxNLocator(4).tick_values(0, top),
        ylim=(0, top),
        ylabel="probability",
        title=title,
    )
    ax.yaxis.set_major_formatter("{x:.2f}")  # always as wide, so that the layout stays
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(distributions),
        fontsize=9,
        borderpad=0,
    )
    mark_redrawn(ax, except_=(ax.xaxis,))


@kdkit_style()
def _draw_bars(title: str, distributions: list, names: list[str], fig: Figure | None) -> Figure:
    """A figure of nothing but `distribution_bars`."""
    fig, (ax,) = reuse_figure(fig, (8.4, 3.3))
    distribution_bars(ax, title, distributions, names)
    return fig


def draw_temperature(
    z_teacher, z_student, T: float, names: list[str], fig: Figure | None = None
) -> Figure:
    """Softened predictions of teacher and student, logits (K,) each, at temperature T.

    fig: a figure that this function returned before, to be drawn in again.
    """
    distributions = [
        ("teacher", metrics.softmax(z_teacher, T), BARS[0]),
        ("student", metrics.softmax(z_student, T), BARS[1]),
    ]
    return _draw_bars(f"T = {T:g}", distributions, names, fig)


def draw_collection(
    z, collection, student: int, tau: float, names: list[str], fig: Figure | None = None
) -> Figure:
    """What the students say of one image, and what one of them receives from the others.

    z: the students' logits (m, K); collection: logits (K,) that `student` (from 0) receives; all
    are shown at the temperature tau. fig: as in `draw_temperature`.
    """
    distributions = []
    for number, logits in enumerate(z):
        learns = number == student
        label = f"student {number + 1}{', learning' if learns else ''}"
        colour = BARS[1] if learns else OTHER_STUDENT
        distributions.append((label, metrics.softmax(logits, tau), colour))
    distributions.append(("received", metrics.softmax(collection, tau), BARS[2]))
    return _draw_bars(f"tau = {tau:g}", distributions, names, fig)


def draw_image(ax, image) -> None:
    """One image (C, H, W), without axes."""
    image = np.asarray(image)
    ax.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray_r")
    ax.set_axis_off()


@kdkit_style()
def draw_images(images, names: list[str]) -> Figure:
    """Images (n, C, H, W) in a row, each under its name."""
    fig = Figure(figsize=(max(2.0, 0.95 * len(images)), 1.35))
    axes = np.ravel(fig.subplots(1, len(images)))
    for ax, image, name in zip(axes, images, names, strict=True):
        draw_image(ax, image)
        ax.set_title(name, fontsize=8, loc="center", pad=3)
    return fig


def show_images(images, names: list[str]) -> None:
    """Show images (n, C, H, W) with their names, in a notebook."""
    display(HTML(html(draw_images(images, names), "Images: " + ", ".join(names))))
