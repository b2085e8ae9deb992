"""All methods in one picture: what is handed over, and by whom."""

import re
import textwrap

import pandas as pd
from matplotlib.figure import Figure

from ...methods import METHODS, Method
from ..fingerprint import is_builtin
from ..store import Record
from . import shapes, tables
from .drawing import BARS, KINDS
from .index import figure
from .shapes import HANDED, MARGIN, TEXT, Part, Point, write
from .style import FAINT_COLOUR, TEXT_COLOUR, kdkit_style, method_style

NOTEBOOKS = {  # number -> the methods that it is about
    "01": "baseline",
    "02": "kd",
    "03": "fitnet at ft ofd reviewkd",
    "04": "rkd cc crd crd_kd",
    "05": "ind dml cl_ilr one kdcl",
    "06": "okddip okddip_kd",
    "07": "dckd edckd ensembled_student",
}
NOBODY, YOURS = "nobody", "yours"
WHO = {"teacher": "a frozen teacher", "peers": "peers", "both": "a teacher and peers"}
ICONS = {"answers": "z", "features": "f", "relations": "r"}
LEFT, ACROSS, FIELD = 1.12, 2.12, 2.04  # inches: the first column, from column to column, its field
HEAD, LINE, PAD = 1.36, 0.22, 0.1  # above the fields, a line, around lines
LONGEST = 15  # characters of a line


def year(method: type[Method]) -> str:
    """The year of a method's paper, from its docstring or the nearest that names one; "" if none
    does. One that is taught by students of another method is as young as that."""
    taught = method().teacher_method()
    classes = [method.__mro__, taught[0].__mro__ if taught else ()]
    years = []
    for line in classes:
        found = (re.search(r"\b(?:19|20)\d\d\b", cls.__dict__.get("__doc__") or "") for cls in line)
        years.append(next((match[0] for match in found if match), ""))
    return max(years)


def place(method: type[Method]) -> tuple[str, str]:
    """(what is handed over, by whom): "answers", "features" or "relations"; "teacher", "peers",
    "both" or "nobody". Features are a teacher's maps; relations are of pooled features alone."""
    made = method()
    has_teacher, has_peers = made.needs_teacher, made.group()[1] > 1
    if set(made.weights()) == {"ce"} or not (has_teacher or has_peers):
        return "", NOBODY
    taken = set(made.teacher_needs)
    what = "features" if taken & {"feats", "preacts"} else "relations" if taken else "answers"
    return what, "both" if has_teacher and has_peers else "teacher" if has_teacher else "peers"


def map_table(records: list[Record]) -> pd.DataFrame:
    """A row for each registered method: title, year, the notebook that is about it, what is handed
    over, who teaches, and whether it is the learner's own. No run is needed."""
    notebook = {name: number for number, names in NOTEBOOKS.items() for name in names.split()}
    rows = []
    for name, method in METHODS.items():
        what, who = place(method)
        own = not is_builtin(method)
        rows.append(
            {
                "method": name,
                "title": method.title or name,
                "year": "" if own else year(method),
                "notebook": notebook.get(name, ""),
                "hands_over": what,
                "who": who,
                "group": YOURS if own else NOBODY if who == NOBODY else f"{what} of {who}",
            }
        )
    return tables.frame(rows, [])


def entries(table: pd.DataFrame, group: str) -> list[tuple[str, list[str], str]]:
    """(name, its title in lines, year and notebook) of the methods of a group, by year."""
    rows = table[table["group"] == group].sort_values("year", kind="stable")
    return [
        (
            row["method"],
            textwrap.wrap(row["title"], LONGEST) or [row["method"]],
            "  ".join(text for text in (row["year"], row["notebook"]) if text),
        )
        for _, row in rows.iterrows()
    ]


def lines_of(found: list[tuple[str, list[str], str]]) -> int:
    """How many lines they take."""
    return sum(len(title) for _, title, _ in found)


def draw_methods(ax, corner: Point, found: list[tuple[str, list[str], str]]) -> None:
    """Methods, each with its own mark, title, year and notebook. corner: the upper left one."""
    x, y = corner[0] + 0.16, corner[1] - PAD - LINE / 2
    for name, title, when in found:
        look = method_style(name)
        ax.plot([x], [y], color=look["color"], marker=look["marker"], ls="", ms=6.5)
        look = {"va": "center_baseline"}
        write(ax, (corner[0] + FIELD - 0.1, y), when, ha="right", color=FAINT_COLOUR, **look)
        for line in title:
            write(ax, (x + 0.12, y), line, ha="left", **look)
            y -= LINE


def draw_field(ax, corner: Point, width: float, height: float, colour: str, words: str) -> None:
    """A pale field with a stripe of colour, or a dashed one with words. corner: the upper left."""
    lower = corner[0], corner[1] - height
    if words:
        look = {"ec": "#b5b5b5", "ls": (0, (4, 3)), "lw": 0.9}
        shapes.rectangle(ax, lower, width, height, "white", **look)
        middle = lower[0] + width / 2, lower[1] + height / 2
        write(ax, middle, words, color=FAINT_COLOUR)
    else:
        shapes.rectangle(ax, lower, width, height, shapes.BAND_COLOUR, zorder=0.2)
        shapes.rectangle(ax, lower, 0.05, height, colour, zorder=0.3)


def draw_heads(ax, top: float) -> None:
    """Above the three columns, who teaches: one that is larger and frozen, peers, or both."""
    for column, (who, words) in enumerate(WHO.items()):
        x, y = LEFT + column * ACROSS, top - 0.26
        write(ax, (x, top - 0.74), words, TEXT, ha="left", va="baseline", weight="bold")
        if who != "peers":
            look = {"colour": shapes.FROZEN_COLOUR, "layers": 5, "is_frozen": True}
            shapes.draw_network(ax, Part("", "network", x + 0.36, y, 0.72, 0.52, **look))
            shapes.draw_line(ax, [(x + 0.78, y), (x + 1.08, y)], HANDED["answers"], 3, 0.15, 2)
            x += 1.14
        if who == "teacher":
            shapes.draw_network(ax, Part("", "network", x + 0.16, y, 0.32, 0.36, layers=3))
            continue
        for step, away in ((-1, 0.42), (1, 0.55)):
            look = {"layers": 3}
            shapes.draw_network(
                ax, Part("", "network", x + 0.16, y + 0.15 * step, 0.32, 0.24, **look)
            )
            way = [(x + away, y - 0.22 * step), (x + away, y + 0.22 * step)]
            shapes.draw_line(ax, way, HANDED["answers"], 2.4, 0.14, 2)


def draw_row_head(ax, middle: float, words: str, icon: str, colour: str) -> None:
    """What is handed over, drawn and named, left of a row of fields."""
    shape, width, height = KINDS[icon]
    x, y = MARGIN + 0.36, middle + 0.06 + 0.08 * words.count("\n")
    part = Part("", shape, x, y, width, height, colour=colour, heights=BARS.get(icon, ()))
    shapes.SHAPES[shape](ax, part)
    place = x, part.side("bottom", 0.08)[1]
    write(ax, place, words, TEXT, va="top", weight="bold")


@kdkit_style()
def draw_map(table: pd.DataFrame) -> Figure:
    """The methods in fields: a row for what is handed over, a column for who teaches; beneath
    them those that only labels teach, and the learner's own. table: of `map_table`."""
    rows = {what: {who: entries(table, f"{what} of {who}") for who in WHO} for what in HANDED}
    tall = {what: max(map(lines_of, row.values())) * LINE + 2 * PAD for what, row in rows.items()}
    alone, own = entries(table, NOBODY), entries(table, YOURS)
    last = max(lines_of(alone), lines_of(own), 3) * LINE + 2 * PAD
    height = HEAD + sum(tall.values()) + 3 * PAD + 0.3 + last + 0.16
    fig, ax = shapes.new_figure(height)
    title = "All methods: who teaches, and what is handed over"
    write(ax, (MARGIN, height - 0.12), title, TEXT + 0.5, ha="left", va="top", weight="bold")
    draw_heads(ax, height - 0.48)
    top = height - HEAD
    for what, row in rows.items():
        draw_row_head(ax, top - tall[what] / 2, what, ICONS[what], HANDED[what])
        for column, found in enumerate(row.values()):
            corner = LEFT + column * ACROSS, top
            words = "" if found else "no method here yet"
            draw_field(ax, corner, FIELD, tall[what], HANDED[what], words)
            draw_methods(ax, corner, found)
        top -= tall[what] + PAD
    top -= 0.3
    draw_row_head(ax, top - last / 2, "labels\nalone", "y", TEXT_COLOUR)
    write(ax, (LEFT, top + 0.08), "nobody teaches", ha="left", va="baseline")
    draw_field(ax, (LEFT, top), FIELD, last, TEXT_COLOUR, "")
    draw_methods(ax, (LEFT, top), alone)
    corner = LEFT + ACROSS, top
    words = "" if own else "a method that you write\n(notebook 11) stands here"
    write(ax, (corner[0], top + 0.08), "yours", ha="left", va="baseline")
    draw_field(ax, corner, FIELD, last, shapes.STUDENT_COLOUR, words)
    draw_methods(ax, corner, own)
    words = "Behind each method:\nthe year of its paper\nand its notebook. Its mark\n"
    words += "is that of all figures."
    write(ax, (corner[0] + ACROSS, top - last / 2), words, ha="left", color=FAINT_COLOUR)
    return fig


def say_map(table: pd.DataFrame) -> list[str]:
    """The methods of each field, with their years."""
    told = []
    for what in HANDED:
        for who, words in WHO.items():
            rows = table[table["group"] == f"{what} of {who}"]
            names = ", ".join(f"{row['title']} {row['year']}" for _, row in rows.iterrows())
            told += [f"{what} of {words}: {names}"] * bool(names)
    alone, own = (list(table.loc[table["group"] == group, "title"]) for group in (NOBODY, YOURS))
    return [
        f"All methods by what is handed over and who teaches, with the year of each paper: "
        f"{'; '.join(told)}; of labels alone: {', '.join(alone)}.",
        f"Yours: {', '.join(own)}." if own else "A method of yours is drawn here, too.",
    ]


class MethodsMap:
    """The functions of the figure."""

    table, draw, say = map(staticmethod, (map_table, draw_map, say_map))


figure("methods_map", notebook="00", kind=MethodsMap)
