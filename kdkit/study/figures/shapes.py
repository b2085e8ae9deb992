"""The shapes of drawn diagrams: networks, images, answers, features, losses, and what they mean.

All lengths are inches of the axes that `new_figure` makes. A shape looks the same in every diagram.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import atan2, degrees

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Arc, Circle, FancyBboxPatch, Polygon, Rectangle

from .style import PALETTE, TEACHER_COLOUR, TEXT_COLOUR

WIDTH, MARGIN = 7.6, 0.16
TEXT, SMALL = 10.5, 9.5  # points
FLOW_COLOUR, STUDENT_COLOUR, FROZEN_COLOUR = "#8c8c8c", PALETTE[0], "#4a4a4a"
LAYER_COLOUR, BAND_COLOUR = "#f4e8c8", "#f3f3f3"
HANDED = {"answers": PALETTE[6], "features": PALETTE[4], "relations": "#009e85"}
Point = tuple[float, float]


@dataclass
class Part:
    """A part of a diagram in its place: its shape, centre, width and height.

    label: what is written at it. colour: of its owner. layers: of a network. heights: of the bars
    of an answer; classes: characters beneath them, the `marked` one in the colour of what teaches.
    character: what the uppermost of its images shows.
    """

    name: str
    shape: str
    x: float
    y: float
    width: float
    height: float
    label: str = ""
    colour: str = STUDENT_COLOUR
    layers: int = 2
    is_frozen: bool = False
    heights: tuple[float, ...] = ()
    classes: str = ""
    marked: str = ""
    character: str = "a"

    @property
    def corner(self) -> Point:
        """The lower left one."""
        return self.x - self.width / 2, self.y - self.height / 2

    def side(self, which: str, gap: float = 0.045) -> Point:
        """The middle of its "left", "right", "top" or "bottom", a little outside."""
        across, up = {"left": (-1, 0), "right": (1, 0), "top": (0, 1), "bottom": (0, -1)}[which]
        return self.x + across * (self.width / 2 + gap), self.y + up * (self.height / 2 + gap)


def new_figure(height: float) -> tuple:
    """(figure, axes): the axes are the whole figure, in inches."""
    fig = Figure(figsize=(WIDTH, height), layout="constrained")
    fig.set_layout_engine("none")  # a placeholder: saving gives a figure without any the style's
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def write(ax, place: Point, text: str, size: float = SMALL, **options) -> None:
    """Text at a place, by default centred on it."""
    options = {"ha": "center", "va": "center", "color": TEXT_COLOUR, "zorder": 7} | options
    ax.text(*place, text, fontsize=size, linespacing=1.15, **options)


def rectangle(ax, corner: Point, width: float, height: float, colour: str, **options) -> None:
    """A filled rectangle without an edge, unless `options` give it one."""
    ax.add_artist(Rectangle(corner, width, height, **{"fc": colour, "ec": "none"} | options))


def draw_stroke(ax, points: list[Point], colour: str, width: float, order: int) -> None:
    """A line over some points. As an artist, for axes whose limits need no new thought."""
    look = {"color": colour, "lw": width, "marker": "", "zorder": order}
    caps = {"solid_joinstyle": "round", "solid_capstyle": "butt"}
    ax.add_artist(Line2D(*zip(*points, strict=True), **look, **caps))


# Parts


def draw_network(ax, part: Part) -> None:
    """Layers side by side, ever lower; a lock on those of a frozen network."""
    width = part.width / (part.layers + 0.28 * (part.layers - 1))
    for number in range(part.layers):
        height = part.height * (1 - 0.34 * number / (part.layers - 1))
        corner = part.corner[0] + number * 1.28 * width, part.y - height / 2
        look = {"boxstyle": "round,pad=0,rounding_size=0.03", "fc": part.colour, "ec": "none"}
        ax.add_artist(FancyBboxPatch(corner, width, height, zorder=4, **look))
    if part.is_frozen:
        draw_lock(ax, (part.x, part.y), 0.28)


def draw_group(ax, part: Part) -> None:
    """Three networks, one below the other; one lock for all."""
    for step in (1, 0, -1):
        y, height = part.y + step * part.height / 3, 0.28 * part.height
        draw_network(ax, replace(part, y=y, height=height, is_frozen=False))
    if part.is_frozen:
        draw_lock(ax, (part.x, part.y), 0.28)


def draw_lock(ax, place: Point, size: float) -> None:
    """A closed lock in white, edged with black: what it stands on does not learn."""
    x, y = place
    for colour, width in ((TEACHER_COLOUR, 18 * size), ("white", 9 * size)):
        look = {"theta1": 0, "theta2": 180, "color": colour, "lw": width, "zorder": 5}
        ax.add_artist(Arc((x, y + 0.1 * size), 0.62 * size, 0.84 * size, **look))
    look = {"ec": TEACHER_COLOUR, "lw": 3.6 * size, "zorder": 6}
    rectangle(ax, (x - 0.5 * size, y - 0.56 * size), size, 0.68 * size, "white", **look)
    ax.add_artist(Circle((x, y - 0.22 * size), 0.1 * size, fc=TEACHER_COLOUR, zorder=7))


def draw_image(ax, place: Point, side: float, character: str) -> None:
    """One image of a printed character."""
    corner = place[0] - side / 2, place[1] - side / 2
    rectangle(ax, corner, side, side, "white", ec=TEXT_COLOUR, lw=1, zorder=5)
    write(ax, place, character, 14, va="center_baseline")


def draw_images(ax, part: Part) -> None:
    """A pile of images, of which the uppermost is seen."""
    side, (left, bottom) = 0.76 * part.height, part.corner
    for step in (2, 1):
        corner = left + 0.06 * step, bottom + 0.06 * step
        rectangle(ax, corner, side, side, "white", ec=TEXT_COLOUR, lw=1, zorder=5 - step)
    draw_image(ax, (left + side / 2, bottom + side / 2), side, part.character)


def draw_batch(ax, part: Part) -> None:
    """Three images, one below the other."""
    side = 0.28 * part.height
    for number, character in enumerate(part.character):
        y = part.y + part.height / 2 - side / 2 - number * 1.28 * side
        draw_image(ax, (part.x, y), side, character)


def draw_answers(ax, part: Part) -> None:
    """A bar for each of a few classes, with their characters beneath, if there are."""
    left, bottom = part.corner
    step = part.width / len(part.heights)
    for number, height in enumerate(part.heights):
        name = part.classes[number : number + 1]
        colour = HANDED["answers"] if name and name == part.marked else part.colour
        corner = left + (number + 0.12) * step, bottom
        rectangle(ax, corner, 0.76 * step, height * part.height, colour, zorder=4)
        if name:
            write(ax, (left + (number + 0.5) * step, bottom - 0.13), name, 8.5, va="baseline")
    draw_stroke(ax, [part.corner, (left + part.width, bottom)], TEXT_COLOUR, 1, 5)


def draw_maps(ax, part: Part) -> None:
    """Feature maps: a pile of planes."""
    side, (left, bottom) = 0.66 * part.height, part.corner
    for step in (2, 1, 0):
        corner = left + 0.09 * step, bottom + 0.075 * step
        rectangle(ax, corner, side, side, part.colour, ec="white", lw=1.2, zorder=6 - step)


def draw_vector(ax, part: Part) -> None:
    """Pooled features: a column of numbers, lighter and darker."""
    cell, (left, bottom) = part.height / 5, part.corner
    for number, depth in enumerate((0.9, 0.35, 0.6, 0.2, 0.75)):
        look = {"ec": "white", "alpha": depth, "zorder": 5}
        rectangle(ax, (left, bottom + number * cell), part.width, cell, part.colour, **look)


def draw_relations(ax, part: Part) -> None:
    """The features of three images as points, with their distances and one of their angles."""
    left, bottom = part.corner
    shares = ((0.08, 0.1), (0.92, 0.3), (0.35, 0.92))
    if part.colour == STUDENT_COLOUR:  # which has yet to learn the teacher's
        shares = ((0.05, 0.4), (0.95, 0.1), (0.7, 0.85))
    points = [(left + a * part.width, bottom + b * part.height) for a, b in shares]
    ax.add_artist(Polygon(points, fc="none", ec=HANDED["relations"], lw=2, zorder=4))
    turns = [degrees(atan2(y - points[0][1], x - points[0][0])) for x, y in points[1:]]
    look = {"theta1": turns[0], "theta2": turns[1], "color": HANDED["relations"], "lw": 1.4}
    ax.add_artist(Arc(points[0], 0.44, 0.44, zorder=4, **look))
    for point in points:
        ax.add_artist(Circle(point, 0.065, fc=part.colour, ec="white", zorder=5))


def draw_bank(ax, part: Part) -> None:
    """Rows of features, a row for each image; one is the image's own."""
    row, (left, bottom) = part.height / 6, part.corner
    for number in range(6):
        colour = TEACHER_COLOUR if number == 4 else "#bdbdbd"
        rectangle(ax, (left, bottom + number * row), part.width, 0.74 * row, colour, zorder=4)


def draw_box(ax, part: Part) -> None:
    """A loss, round, or a layer of the method's own, square; its name stands inside."""
    is_loss = part.shape == "loss"
    look = {"fc": "white" if is_loss else LAYER_COLOUR, "ec": TEXT_COLOUR, "zorder": 4}
    look |= {"lw": 1.5 if is_loss else 1.0}
    if part.width == part.height:
        ax.add_artist(Circle((part.x, part.y), part.width / 2, **look))
    else:
        style = f"round,pad=0,rounding_size={0.49 * part.height if is_loss else 0.04}"
        ax.add_artist(FancyBboxPatch(part.corner, part.width, part.height, style, **look))
    write(ax, (part.x, part.y), part.label)


def draw_tag(ax, part: Part) -> None:
    """What happens to a gradient on its way back; nothing to what is computed."""
    rectangle(ax, part.corner, part.width, part.height, "white", ec=TEXT_COLOUR, ls=":", lw=1.2)
    write(ax, (part.x, part.y), part.label)


def draw_zone(ax, part: Part) -> None:
    """The field in which answers are mixed; its name stands above it."""
    rectangle(ax, part.corner, part.width, part.height, part.colour, zorder=0.5)
    write(ax, part.side("top", 0.04), part.label, va="bottom")


SHAPES: dict[str, Callable] = {
    "network": draw_network,
    "group": draw_group,
    "images": draw_images,
    "batch": draw_batch,
    "answers": draw_answers,
    "maps": draw_maps,
    "vector": draw_vector,
    "relations": draw_relations,
    "bank": draw_bank,
    "loss": draw_box,
    "layer": draw_box,
    "tag": draw_tag,
    "zone": draw_zone,
}


# Arrows


def direction(start: Point, end: Point) -> tuple[float, float, float]:
    """The unit vector (x, y) from start to end, and their distance."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    return dx / length, dy / length, length


def draw_line(ax, points: list[Point], colour: str, width: float, size: float, order: int) -> None:
    """An arrow over some corners; size: of its head."""
    ux, uy, length = direction(*points[-2:])
    (x, y), size = points[-1], min(size, 0.75 * length)
    back, half = (x - size * ux, y - size * uy), 0.45 * size
    draw_stroke(ax, [*points[:-1], back], colour, width, order)
    sides = [(back[0] + side * uy, back[1] - side * ux) for side in (half, -half)]
    ax.add_artist(Polygon([(x, y), *sides], fc=colour, ec="none", zorder=order))


def draw_dot(ax, place: Point, colour: str, radius: float) -> None:
    """Where a way leaves or joins another."""
    ax.add_artist(Circle(place, radius, fc=colour, ec="none", zorder=3))


def draw_stop(ax, points: list[Point]) -> None:
    """Two bars across the first stretch of a way that is long enough: no gradient passes back."""
    stretches = [pair for pair in pairwise(points) if direction(*pair)[2] > 0.28]
    (x0, y0), (x1, y1) = stretches[0]
    ux, uy, _ = direction((x0, y0), (x1, y1))
    for away, colour, width in ((0, "white", 6), (-1, TEXT_COLOUR, 2.4), (1, TEXT_COLOUR, 2.4)):
        x, y = (x0 + x1) / 2 + 0.045 * away * ux, (y0 + y1) / 2 + 0.045 * away * uy
        ends = [(x - 0.12 * uy, y + 0.12 * ux), (x + 0.12 * uy, y - 0.12 * ux)]
        draw_stroke(ax, ends, colour, width, 4)


def draw_legend(ax, top: float) -> None:
    """What the signs mean, the same beneath all diagrams, in two lines; 0.6 inches high."""
    draw_stroke(ax, [(MARGIN, top), (WIDTH - MARGIN, top)], "#d5d5d5", 0.8, 1)
    upper, lower = top - 0.2, top - 0.46
    for x, handed, text in (
        (0.0, "answers", "teaches: answers"),
        (1.95, "features", "features"),
        (3.3, "relations", "relations"),
        (4.75, "answers", "no gradient passes back"),
    ):
        way = [(MARGIN + x, upper), (MARGIN + x + 0.42, upper)]
        draw_line(ax, way, HANDED[handed], 3.0, 0.15, 2)
        write(ax, (MARGIN + x + 0.5, upper), text, ha="left")
    draw_stop(ax, [(MARGIN + 4.7, upper), (MARGIN + 5.05, upper)])
    draw_line(ax, [(MARGIN, lower), (MARGIN + 0.42, lower)], FLOW_COLOUR, 1.2, 0.1, 1)
    draw_lock(ax, (MARGIN + 2.2, lower), 0.15)
    ax.add_artist(Circle((MARGIN + 3.55, lower), 0.09, fc="white", ec=TEXT_COLOUR, lw=1.2))
    corner = MARGIN + 4.81, lower - 0.08
    rectangle(ax, corner, 0.3, 0.16, LAYER_COLOUR, ec=TEXT_COLOUR, lw=0.8)
    for x, text in (
        (0.0, "computes"),
        (1.95, "frozen"),
        (3.3, "loss"),
        (4.75, "layers of the method"),
    ):
        write(ax, (MARGIN + x + 0.5, lower), text, ha="left")
