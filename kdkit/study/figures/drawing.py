"""A small vocabulary of drawn diagrams: parts in a grid, and arrows between them.

A panel is plain text. Its `layout` is the picture in words: a line for each row, "|" between the
columns; a part whose name stands in several rows of its column reaches over them; what is in quotes
is written as it is, from the gap before its column if it begins with "<", in lines that end at "/".
Its `arrows` are chains, a line each:

    x -> student -> z -> CE         what is computed from what: thin and grey
    z_1, z_2 => q *0.5              who teaches whom: thick and coloured, here half as thick
    z_T =|> KL @bus                 the same, and no gradient passes back

A gradient passes back along every arrow but those with "|". "@" chooses the way: hv (horizontally,
then vertically), vh, hvh, bus (in from the right), mesh (across a zone), none (the two touch). The
name of a part, up to its "_", says what it is (`KINDS`); one with a capital is a loss, any other
word a layer of the method's own.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from ...methods import method_class
from ..store import Record
from . import shapes, tables
from .shapes import HANDED, MARGIN, TEXT, WIDTH, Part, Point, write
from .style import FAINT_COLOUR, TEACHER_COLOUR, TEXT_COLOUR, kdkit_style

TITLE, GAP, LINE = 0.42, 0.4, 0.2  # inches: of a title, between panels, of a line of notes
KINDS = {  # shape, width, height (0: that of its rows), layers of a network
    "x": ("images", 0.48, 0.48),
    "batch": ("batch", 0.48, 1.3),
    "y": ("answers", 0.36, 0.32),
    "z": ("answers", 0.46, 0.36),
    "q": ("answers", 0.46, 0.36),
    "f": ("maps", 0.5, 0.46),
    "h": ("vector", 0.16, 0.5),
    "r": ("relations", 0.7, 0.56),
    "bank": ("bank", 0.5, 0.6),
    "teacher": ("network", 0.92, 0.7, 5),
    "ensemble": ("group", 0.54, 0.86, 3),
    "students": ("group", 0.54, 0.86, 3),
    "student": ("network", 0.54, 0.5, 3),
    "network": ("network", 0.54, 0.5, 3),
    "trunk": ("network", 0.36, 0.0, 2),
    "peer": ("network", 0.34, 0.4, 2),
    "leader": ("network", 0.34, 0.4, 2),
    "split": ("tag", 0.64, 0.42),
    "embed": ("layer", 0.42, 0.34),
    "attention": ("zone", 0.8, 0.0),
    "mean": ("zone", 0.8, 0.0),
    "maximum": ("zone", 0.8, 0.0),
}
WAYS = ("", "hv", "vh", "hvh", "bus", "mesh", "none")
BARS = {  # heights of an answer's bars
    "z": (0.25, 0.95, 0.4, 0.12),
    "q": (0.4, 0.8, 0.55, 0.3),
    "y": (0.05, 1.0, 0.05, 0.05),
}


class Arrow(NamedTuple):
    """From which part to which; does it teach, and does no gradient pass back?"""

    start: str
    end: str
    teaches: bool
    stops: bool
    way: str = ""
    thickness: float = 1.0


@dataclass(frozen=True)
class Panel:
    """One picture of parts and arrows.

    method: the name of the class that it is drawn of. terms: loss -> the names of its terms, with
    blanks between. handed: what its thick arrows carry. labels: part -> words in place of its
    symbol. bands: (first row, last row, words) of pale fields behind rows. images, bars: part ->
    what its images show, the heights of its bars. classes, marked: as of `Part`.
    """

    layout: str
    arrows: str
    method: str
    terms: dict[str, str]
    title: str = ""
    handed: str = "answers"
    labels: dict[str, str] = field(default_factory=dict)
    bands: tuple[tuple[int, int, str], ...] = ()
    images: dict[str, str] = field(default_factory=dict)
    bars: dict[str, tuple[float, ...]] = field(default_factory=dict)
    classes: str = ""
    marked: str = ""
    frozen: tuple[str, ...] = ("teacher", "ensemble")
    pitch: float = 0.48  # inches from row to row

    @cached_property
    def cells(self) -> list[tuple[int, int, str]]:
        """(row, column, name or quoted words) of all that is not empty."""
        rows = self.layout.strip("\n").split("\n")
        return [
            (row, column, cell.strip())
            for row, line in enumerate(rows)
            for column, cell in enumerate(line.split("|"))
            if cell.strip()
        ]

    @cached_property
    def names(self) -> list[str]:
        """The parts, by column and row."""
        ordered = sorted(self.cells, key=lambda cell: (cell[1], cell[0]))
        return list(dict.fromkeys(name for *_, name in ordered if name[0] != '"'))

    @cached_property
    def edges(self) -> list[Arrow]:
        """The arrows. ValueError for one that cannot be read, or of a part that is not there."""
        found = []
        for line in filter(None, map(str.strip, self.arrows.split("\n"))):
            chain, *options = re.split(r"\s+(?=[@*])", line)
            way = "".join(o[1:] for o in options if o[0] == "@")
            if way not in WAYS:
                raise ValueError(f"arrow {line!r}: way {way!r}, allowed: {', '.join(WAYS[1:])}")
            thickness = float("".join(o[1:] for o in options if o[0] == "*") or 1)
            pieces = re.split(r"\s+(->|-\|>|=>|=\|>)\s+", chain)
            groups = [re.split(r",\s*", piece) for piece in pieces[::2]]
            unknown = sorted({name for group in groups for name in group} - set(self.names))
            if unknown or len(groups) < 2:
                raise ValueError(
                    f"arrow {line!r}: write 'a -> b', '=>', '-|>' or '=|>' between two of "
                    f"{', '.join(self.names)}; seen {', '.join(unknown) or 'no arrow'}"
                )
            found += [
                Arrow(start, end, "=" in kind, "|" in kind, way, thickness)
                for (starts, ends), kind in zip(pairwise(groups), pieces[1::2], strict=True)
                for start in starts
                for end in ends
            ]
        return found

    @cached_property
    def head(self) -> float:
        """Height of what stands above the first row."""
        lines = [self.label(n).count("\n") for n in self.names if self.kind(n)[0] == "zone"]
        return TITLE + (0.06 + 0.16 * max(lines) if lines else 0)

    @property
    def height(self) -> float:
        """Of the whole panel."""
        return self.head + len(self.layout.strip("\n").split("\n")) * self.pitch

    def place(self, top: float) -> tuple[list[Part], dict[str, Point]]:
        """The parts in their places beneath `top`, and the words with theirs."""
        widths = [0.0] * (1 + max(line.count("|") for line in self.layout.split("\n")))
        for _, column, name in self.cells:
            if name[0] != '"':
                shape, width, *_ = self.kind(name)
                words = (
                    max(map(len, self.label(name).split("\n")))
                    if shape in ("network", "group")
                    else 0
                )
                widths[column] = max(widths[column], width, 0.082 * words)
        gap = (WIDTH - 2 * MARGIN - sum(widths)) / (len(widths) - 1)
        left = [MARGIN + sum(widths[:column]) + column * gap for column in range(len(widths))]
        rows: dict[str, list[int]] = {}
        parts, words = {}, {}
        for row, column, name in self.cells:
            rows.setdefault(name, []).append(row)
            y = top - self.head - (rows[name][0] + row + 1) / 2 * self.pitch
            if name[0] == '"':
                x = left[column] - (0.72 * gap if name[1] == "<" else 0)
                words[name.strip('"<').replace("/", "\n")] = x, y
                continue
            shape, width, height, *layers = self.kind(name)
            height = height or (row - rows[name][0] + 1) * self.pitch - 0.04
            parts[name] = Part(
                name,
                shape,
                left[column] + widths[column] / 2,
                y,
                width,
                height,
                self.label(name),
                self.colour(name),
                *layers,
                is_frozen=name in self.frozen,
                heights=self.bars.get(name, BARS.get(name[0], ())),
                classes=self.classes,
                marked=self.marked,
                character=self.images.get(name, "aeo" if shape == "batch" else "a"),
            )
        return list(parts.values()), words

    def label(self, name: str) -> str:
        """What is written at a part."""
        base, _, end = name.partition("_")
        if name in self.labels or base in self.labels:
            return self.labels.get(name) or self.labels[base]
        if base not in KINDS:
            return base
        if KINDS[base][0] in ("network", "group", "bank", "zone"):
            return f"{base} {end}".strip()
        return f"${base}_{{{end}}}$" if end and base != "y" else f"${base}$"

    def colour(self, name: str) -> str:
        """The colour of a part: of its owner, of what teaches, of what learns."""
        if self.kind(name)[0] == "zone":
            learns = any(arrow.start == name for arrow in self.edges)
            return shapes.LAYER_COLOUR if learns else shapes.BAND_COLOUR
        if name in self.frozen:
            return shapes.FROZEN_COLOUR
        owner = TEACHER_COLOUR if name.endswith("_T") else shapes.STUDENT_COLOUR
        return {"q": HANDED["answers"], "y": TEXT_COLOUR}.get(name.partition("_")[0], owner)

    def kind(self, name: str) -> tuple:
        """(shape, width, height) of a part, and of a network its number of layers."""
        base = name.partition("_")[0]
        if base in KINDS:
            return KINDS[base]
        lines = self.labels.get(name, base).split("\n")
        longest = max(map(len, lines))
        if base.lower() != base:
            return ("loss", 0.44, 0.44) if longest <= 3 else ("loss", 0.24 + 0.085 * longest, 0.4)
        return "layer", 0.2 + 0.08 * longest, 0.16 + 0.17 * len(lines)

    def draw(self, ax, top: float) -> None:
        """Draw all, beneath `top`."""
        parts, words = self.place(top)
        write(ax, (MARGIN, top), self.title, TEXT + 0.5, weight="bold", ha="left", va="top")
        for first, last, text in self.bands:
            upper, lower = (top - self.head - row * self.pitch for row in (first, last + 1))
            size = WIDTH - MARGIN, upper - lower - 0.06
            shapes.rectangle(ax, (MARGIN / 2, lower + 0.03), *size, shapes.BAND_COLOUR, zorder=0.2)
            write(ax, (WIDTH - MARGIN, upper - 0.13), text, ha="right", va="top")
        for text, place in words.items():
            write(ax, place, text, ha="left")
        for arrow in self.edges:
            self.draw_arrow(ax, {part.name: part for part in parts}, arrow)
        for part in parts:
            shapes.SHAPES[part.shape](ax, part)
            if part.shape not in ("loss", "layer", "tag", "zone"):  # these hold their own
                self.write_label(ax, part)

    def write_label(self, ax, part: Part) -> None:
        """A part's label beneath it, or above it where a thick arrow comes from below."""
        if any(a.end == part.name and a.way == "hv" and a.teaches for a in self.edges):
            empty = (1 - max(part.heights)) * part.height
            x, y = part.side("top", 0.05 - empty)
            write(ax, (x, y), part.label, TEXT, va="bottom")
        else:
            x, y = part.side("bottom", 0.2 if part.heights and part.classes else 0.06)
            write(ax, (x, y), part.label, TEXT, va="top")

    def draw_arrow(self, ax, parts: dict[str, Part], arrow: Arrow) -> None:
        """One arrow, with two bars across where no gradient passes back, and a dot at a joint."""
        if arrow.way == "none":
            return
        points, b = self.route(parts, arrow), parts[arrow.end]
        if arrow.teaches:
            look = HANDED[self.handed], 3.0 * arrow.thickness, 0.17, 2
        else:
            look = shapes.FLOW_COLOUR, 1.2, 0.1, 1
        shapes.draw_line(ax, points, *look)
        if arrow.teaches:  # a bus, which several join
            like = [o for o in self.edges if o.end == arrow.end and o.teaches and o.way]
        else:  # a branch of the way that leads straight on
            like = [o for o in self.edges if o.start == arrow.start and b.shape == "loss"]
        if len(like) > 1 and len(points) in (3, 4) and arrow.way != "vh":
            radius = 0.075 * arrow.thickness if arrow.teaches else 0.035
            shapes.draw_dot(ax, points[1], look[0], radius)
        if arrow.stops:
            shapes.draw_stop(ax, points)

    def route(self, parts: dict[str, Part], arrow: Arrow) -> list[Point]:
        """The corners of an arrow's way. ValueError for a mesh without a zone."""
        a, b, way = parts[arrow.start], parts[arrow.end], arrow.way
        start, end = a.side("right"), b.side("left")
        if arrow.teaches and any(o.start == a.name and not o.teaches for o in self.edges):
            start = start[0], start[1] + (0.1 if a.name[0] == "z" else -0.1)  # beside the thin one
        if not way and arrow.teaches and b.shape == "answers":
            way = "mesh"
        upright = ("bottom", "top") if b.y < a.y else ("top", "bottom")
        if way == "mesh":
            zone = next((part for part in parts.values() if part.shape == "zone"), None)
            if zone is None:
                raise ValueError(f"{a.name} => {b.name}: there is no zone to cross; choose a way")
            enters, leaves = zone.side("left", 0)[0], zone.side("right", 0)[0]
            return [start, (enters, start[1]), (leaves, end[1]), end]
        if abs(a.y - b.y) < 1e-6:
            return [start, end] if a.x < b.x else [a.side("left"), b.side("right")]
        if abs(a.x - b.x) < 1e-6:
            return [a.side(upright[0]), b.side(upright[1])]
        way = way or ("hv" if b.shape == "loss" else "hvh")
        if way == "hv":
            return [start, (b.x, start[1]), b.side(upright[1])]
        if way == "vh":
            return [a.side(upright[0]), (a.x, b.y), end]
        nearest = min(parts[o.end].side("left")[0] for o in self.edges if o.start == a.name)
        turn = start[0] + min(0.14, 0.4 * abs(nearest - start[0]))
        if way == "bus":
            end = b.side("right")
            turn = end[0] + 0.2
        return [start, (turn, start[1]), (turn, end[1]), end]


@dataclass(frozen=True)
class Diagram:
    """A figure of panels one above the other, then notes, then the legend that all share.

    alt: all of the picture in words. notes: rows of words in columns that begin at `tabs` inches.
    """

    panels: tuple[Panel, ...]
    alt: str
    notes: tuple[tuple[str, ...], ...] = ()
    tabs: tuple[float, ...] = (MARGIN,)

    def table(self, records: list[Record]) -> pd.DataFrame:
        """A row for each arrow: of which method, from what to what, does it teach, with what, and
        does the gradient stop there? It needs no run."""
        rows = [
            {
                "method": panel.method,
                "from": arrow.start,
                "to": arrow.end,
                "teaches": panel.handed if arrow.teaches else "",
                "gradient": "stops" if arrow.stops else "passes",
            }
            for panel in self.panels
            for arrow in panel.edges
        ]
        return tables.frame(rows, [])

    @kdkit_style()
    def draw(self, table: pd.DataFrame) -> Figure:
        """The picture, 7.6 inches wide."""
        panels = sum(panel.height + GAP for panel in self.panels)
        height = 0.12 + panels + LINE * len(self.notes) + 0.62 + 0.1 * bool(self.notes)
        fig, ax = shapes.new_figure(height)
        top = height - 0.12
        for panel in self.panels:
            panel.draw(ax, top)
            top -= panel.height + GAP
        top -= 0.1 * bool(self.notes)
        for number, row in enumerate(self.notes):
            colour = FAINT_COLOUR if number == 0 and len(row) > 1 else TEXT_COLOUR  # of a heading
            for x, text in zip(self.tabs, row, strict=False):
                write(ax, (x, top - 0.08), text, ha="left", va="baseline", color=colour)
            top -= LINE
        shapes.draw_legend(ax, 0.6)
        return fig

    def say(self, table: pd.DataFrame) -> list[str]:
        """The whole picture in words, and where no gradient passes back."""
        found = []
        for panel in self.panels:
            stops = dict.fromkeys(panel.label(a.start) for a in panel.edges if a.stops)
            where = "at " + re.sub(r"[${}]", "", ", ".join(stops)) if stops else "nowhere"
            found.append(f"{method_class(panel.method).title}: the gradient stops {where}.")
        return [self.alt, *found]
