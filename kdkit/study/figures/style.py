"""The look of every figure, text in its margins, and rendering it for pages and files.

No pyplot and no state but one lock: matplotlib's settings are global, and widgets draw on threads
of their own. A widget draws the same figure again and again; `reuse_figure` and `mark_redrawn` let
it change a figure instead of making a new one, in a third of the time.
"""

import base64
import io
import os
import threading
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from html import escape
from pathlib import Path
from weakref import WeakKeyDictionary

import matplotlib.style
import numpy as np
from matplotlib import color_sequences
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from ...methods import list_methods, method_class

STYLE_SHEET = Path(__file__).parents[2] / "assets" / "kdkit.mplstyle"
LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # a fork waits for the figure that another thread draws
    os.register_at_fork(
        before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release
    )

PALETTE = color_sequences["petroff10"]
PALETTE_ORDER = (8, 1, 3, 4, 5, 9, 2, 7, 0, 6)  # neighbours in the registry differ most
MARKERS = "osD^vPX<>*ph"
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
BARS = ("#555555", *PALETTE[:2])  # of a teacher, a student, a collection: ever lighter
TEACHER_COLOUR, TEXT_COLOUR, FAINT_COLOUR = "#111111", "#333333", "#777777"
REFERENCE_COLOUR = "#b8b8b8"  # of the reference, beneath a run of one's own
DASHED = {"color": TEXT_COLOUR, "lw": 0.9, "ls": (0, (4, 3))}  # keywords of a reference line


@contextmanager
def kdkit_style():
    """kdkit's style over matplotlib's defaults, for the time of a `with` or of a function."""
    with LOCK:
        # Within another `kdkit_style` the style is there already; setting it takes 3 ms.
        is_set = matplotlib.rcParams["svg.hashsalt"] == "kdkit"
        with nullcontext() if is_set else matplotlib.style.context(["default", STYLE_SHEET]):
            yield


def method_style(name: str) -> dict:
    """Keywords for `plot`: the method's own colour, marker and kind of line, by its place in the
    registry of methods; "" is the teacher."""
    if not name:
        return {"color": TEACHER_COLOUR, "marker": "*", "linestyle": (0, (4, 2))}
    place = list_methods().index(method_class(name).name)
    darkening = 0.62 ** (place // 10)  # beyond ten methods the palette begins again, darker
    rgb = np.array(to_rgb(PALETTE[PALETTE_ORDER[place % 10]])) * darkening
    return {
        "color": to_hex(rgb),
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


def text_colour(colour: str) -> tuple[float, ...]:
    """The colour, darkened where needed so that text in it can be read on white."""
    rgb = np.array(to_rgb(colour))
    luminance = rgb @ [0.299, 0.587, 0.114] + 1e-9
    return tuple(rgb * min(1.0, 0.42 / luminance))


def mean_sd_text(mean: float, sd: float, sign: str = "", digits: int = 2) -> str:
    """A number and, where there is one, its standard deviation or half interval: "81.20 ± 0.31".

    sign: "+" writes the sign of positive numbers, too.
    """
    # Ties are rounded as in the CSV's six digits, and adding 0 turns −0.00 into 0.00.
    mean = round(round(mean, 6), digits) + 0
    text = f"{mean:{sign}.{digits}f}".replace("-", "−")
    return f"{text} ± {sd:.{digits}f}" if sd == sd else text


def margin_text(ax, y: float, text: str, colour: str = TEXT_COLOUR) -> None:
    """Text in the right margin, at the height y of the data."""
    place = ax.get_yaxis_transform()
    ax.text(1.03, y, text, transform=place, va="center", fontsize=9, color=colour)


def footnote(fig: Figure, text: str) -> None:
    """A small line of text at the foot of a figure, for which its layout leaves room."""
    height = 0.17 / fig.get_figheight()  # of the figure: a sixth of an inch
    engine = fig.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, height, 1, 1 - height))
    fig.text(0.995, 0.004, text, ha="right", va="bottom", fontsize=7, color=FAINT_COLOUR)


def end_labels(ax, labels: list[tuple[float, str, str]], xs: list[float] | None = None) -> None:
    """Labels (y, text, colour) in the right margin that do not overlap, each with a hairline from
    the end of its line, or from its point (x, y) where `xs` are given."""
    scale = ax.yaxis.get_transform().transform  # linear, or the logarithm
    left, right = ax.get_xlim()
    low, high = scale(np.array(ax.get_ylim()))
    line_height = 12.5 / 72 / (ax.figure.get_figheight() * ax.get_position().height * 0.92)
    heights = (scale(np.array([float(y) for y, _, _ in labels])) - low) / (high - low)
    order = np.argsort(heights, kind="stable")
    spaced = spread_apart(heights[order], line_height)
    for i, label_height in zip(order, spaced, strict=True):
        _, text, colour = labels[i]
        start = 1 if xs is None else (xs[i] - left) / (right - left)
        ax.text(
            1.035,
            label_height,
            text,
            transform=ax.transAxes,
            va="center",
            fontsize=9,
            color=text_colour(colour),
        )
        hairline = Line2D(
            [start, 1.025],
            [heights[i], label_height],
            transform=ax.transAxes,
            clip_on=False,
            color=colour,
            marker="",
            ls="-",
            lw=0.7,
            alpha=1 if xs is None else 0.5,
        )
        ax.add_line(hairline)


def spread_apart(heights: np.ndarray, least: float) -> np.ndarray:
    """Ascending heights (n,), overlapping neighbours pushed apart evenly until `least` lies between
    them."""
    moved = heights.copy()
    for _ in range(200):
        for k in range(len(moved) - 1):
            lack = max(0.0, least - (moved[k + 1] - moved[k]))
            moved[k], moved[k + 1] = moved[k] - lack / 2, moved[k + 1] + lack / 2
    return moved


def reuse_figure(fig: Figure | None, size: tuple[float, float], *shape: int, **options):
    """(figure, its axes): a new one of `size` inches where `fig` is None, else `fig`, emptied.

    shape, options: of `Figure.subplots`. Axes take longer to make than to fill.
    """
    if fig is None:
        fig = Figure(figsize=size)
        fig.subplots(*shape, **options)
    for ax in fig.axes:
        for old in (*ax.lines, *ax.collections, *ax.images, *ax.texts):
            old.remove()
    return fig, fig.axes


def mark_redrawn(ax, except_: Iterable = ()) -> None:
    """Mark the parts of `ax` that `html` draws again when the figure is shown again: all but its
    background and those in `except_`, which must look the same for as long as the figure lives."""
    for part in ax.get_children():
        part.set_animated(part not in (ax.patch, *except_))


_CANVAS = FigureCanvasAgg(Figure())  # one for all figures: it remembers how wide texts are
_BACKGROUNDS: WeakKeyDictionary = WeakKeyDictionary()  # figure -> pixels of what is not redrawn


@kdkit_style()
def html(fig: Figure, alt: str) -> str:
    """The figure as an <img> element that carries its alt text.

    When a figure is shown again, only what `mark_redrawn` marked is drawn: text that stays takes
    most of the time. A figure without marks is drawn whole each time.
    """
    _CANVAS.figure = fig
    redrawn = [part for ax in fig.axes for part in ax.get_children() if part.get_animated()]
    if not redrawn or fig not in _BACKGROUNDS:
        fig.set_dpi(96)
        _CANVAS.draw()  # this solves the layout, too, and leaves out what is marked
        _BACKGROUNDS[fig] = _CANVAS.copy_from_bbox(fig.bbox)
    _CANVAS.restore_region(_BACKGROUNDS[fig])
    for part in sorted(redrawn, key=lambda part: part.zorder):
        part.draw(_CANVAS.get_renderer())
    png = io.BytesIO()
    imsave(png, _CANVAS.buffer_rgba(), format="png", pil_kwargs={"compress_level": 1})
    return (
        f'<img alt="{escape(alt)}" style="max-width:100%" '
        f'src="data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}">'
    )


@kdkit_style()
def figure_bytes(fig: Figure, kind: str, **options) -> bytes:
    """The figure as a file of `kind` "png" or "svg"; the same figure gives the same bytes.

    options: of `Figure.savefig`.
    """
    buffer = io.BytesIO()
    changing = {"png": "Software", "svg": "Date"}[kind]  # metadata that would differ each time
    fig.savefig(buffer, format=kind, metadata={changing: None}, **options)
    return buffer.getvalue()
