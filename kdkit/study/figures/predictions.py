"""Predictions for one image as bars, softened or collected, and images in a row.

These are what the widgets and the notebooks draw of single images; no figure is registered here.
"""

import base64
import io

import numpy as np
from IPython.display import HTML, display
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from ... import metrics
from .style import BARS, DASHED, html, kdkit_style, mark_redrawn, reuse_figure

OTHER_STUDENT = "#bdd5ee"  # a lighter tone of the student's own
TOPS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.03)  # where an axis of probabilities may end
MOST_BARS = 14  # of more classes than twenty, so many are drawn with their names


def distribution_bars(
    ax,
    title: str,
    distributions: list[tuple[str, np.ndarray, str]],
    names: list[str],
    uniform: float | None = None,
    top: float | None = None,
) -> None:
    """Distributions over classes side by side, and a line at the uniform probability.

    distributions: (label, p (K,), colour) each; the colours should differ in lightness; of those
    with one label the first stands in the legend. names: of the K classes; above twenty they are
    not written. uniform: by default 1/K. top: of the axis, by default a little above the bars.
    """
    classes, width = len(names), 0.8 / len(distributions)
    uniform = 1 / classes if uniform is None else uniform
    for number, (label, p, colour) in enumerate(distributions):
        sides = (np.array([0.04, 0.04, 0.96, 0.96]) + number - len(distributions) / 2) * width
        x = np.add.outer(np.arange(classes), sides)  # (K, 4): a bar's four corners
        y = np.outer(p, [0, 1, 1, 0])
        bars = PolyCollection(np.stack([x, y], -1), label=label, fc=colour, lw=0)
        ax.add_collection(bars)
    ax.axhline(uniform, **DASHED)
    ax.text(classes - 0.45, uniform, "1/K", fontsize=9, va="bottom", ha="left")
    if classes <= 20:
        long = max(map(len, names)) > 3
        turn = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if long else {}
        ax.set_xticks(range(classes), names, **turn)
    else:
        ax.set_xticks([])
    ax.grid(axis="x", visible=False)
    top = top or 1.08 * max(np.max(p) for _, p, _ in distributions)
    ax.set(
        xlim=(-0.6, classes - 0.4),
        yticks=MaxNLocator(4).tick_values(0, top),
        ylim=(0, top),
        ylabel="probability",
        title=title,
    )
    ax.yaxis.set_major_formatter("{x:.2f}")  # always as wide, so that the layout stays
    handles = {bars.get_label(): bars for bars in reversed(ax.collections)}
    ax.legend(
        handles=list(handles.values())[::-1],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(handles),
        fontsize=9,
        borderpad=0,
    )
    mark_redrawn(ax, except_=(ax.xaxis,) if classes == 1 / uniform else ())


@kdkit_style()
def _draw_bars(
    title: str,
    distributions: list[tuple[str, np.ndarray, str]],
    names: list[str],
    order: np.ndarray,
    image: np.ndarray | None,
    true: int | None,
    fig: Figure | None,
) -> Figure:
    """`distribution_bars` of all classes, or of the first of `order` (K,) where there are many,
    and beside them the image (C, H, W) with the name of its class, where one is given."""
    fig, (left, ax) = reuse_figure(fig, (8.8, 3.3), 1, 2, width_ratios=(1, 4))
    classes = np.arange(len(names)) if len(names) <= 20 else order[:MOST_BARS]
    parts = [(label, np.asarray(p)[classes], colour) for label, p, colour in distributions]
    # The axis ends at few values, so that bars are seen to sink when the temperature rises.
    highest = max(np.max(p) for _, p, _ in parts)
    top = min(end for end in TOPS if end >= highest or end == 1)
    distribution_bars(ax, title, parts, [names[c] for c in classes], 1 / len(names), top)
    left.set_axis_off()
    if image is not None:
        draw_image(left, image)
        left.text(
            0.5, -0.06, f"it is {names[true]}", transform=left.transAxes, ha="center", va="top"
        )
        left.apply_aspect()
    mark_redrawn(left, except_=(left.xaxis, left.yaxis, *left.spines.values()))
    return fig


def draw_temperature(
    z_teacher,
    z_student,
    T: float,
    names: list[str],
    image: np.ndarray | None = None,
    true: int | None = None,
    fig: Figure | None = None,
) -> Figure:
    """Softened predictions of teacher and student, logits (K,) each, at temperature T.

    image (C, H, W), true: what they are of, and the number of its class. Of many classes the
    teacher's largest are shown. fig: a figure that this function returned before, to be drawn in
    again.
    """
    distributions = [
        ("teacher", metrics.softmax(z_teacher, T), BARS[0]),
        ("student", metrics.softmax(z_student, T), BARS[1]),
    ]
    order = np.argsort(-np.asarray(z_teacher), kind="stable")
    return _draw_bars(f"T = {T:g}", distributions, names, order, image, true, fig)


def draw_collection(
    z,
    collection,
    student: int,
    tau: float,
    names: list[str],
    image: np.ndarray | None = None,
    true: int | None = None,
    fig: Figure | None = None,
) -> Figure:
    """What the students say of one image, and what one of them receives from the others.

    z: the students' logits (m, K); collection: logits (K,) that `student` (from 0) receives; all
    are shown at the temperature tau. image, true, fig: as in `draw_temperature`.
    """
    distributions = []
    for number, logits in enumerate(z):
        learns = number == student
        label = f"student {student + 1}, learning" if learns else "others, in order"
        colour = BARS[1] if learns else OTHER_STUDENT
        distributions.append((label, metrics.softmax(logits, tau), colour))
    distributions.append(("what it receives", metrics.softmax(collection, tau), BARS[2]))
    order = np.argsort(-np.asarray(collection), kind="stable")
    return _draw_bars(f"tau = {tau:g}", distributions, names, order, image, true, fig)


def draw_image(ax, image) -> None:
    """One image (C, H, W), without axes."""
    image = np.asarray(image)
    ax.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray_r")
    ax.set_axis_off()


def thumbnail(image) -> str:
    """The address (data:) of a small picture of one image (C, H, W), at most 64 pixels high."""
    image = np.asarray(image)
    image = image[:, :: -(-image.shape[1] // 64), :: -(-image.shape[2] // 64)]
    png = io.BytesIO()
    if len(image) == 1:
        imsave(png, image[0], format="png", cmap="gray_r")
    else:
        low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())
        imsave(png, ((image.transpose(1, 2, 0) - low) / max(high - low, 1e-9)), format="png")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


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
