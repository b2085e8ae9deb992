"""Pictures of relations: which images lie near which in a network's features."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ...methods.relation import relations
from ..store import Record
from . import features, tables
from .index import figure
from .style import PALETTE, kdkit_style, text_colour

MAPPED, EACH = "eéoócç", 12  # characters, with and without a mark, and test images of each


def flat_map(distances: np.ndarray) -> np.ndarray:
    """Points in the plane whose distances are as near to these as a turn of the space allows:
    classical scaling. (N, N) -> (N, 2)"""
    centred = np.eye(len(distances)) - 1 / len(distances)
    values, vectors = np.linalg.eigh(-centred @ distances**2 @ centred / 2)
    return vectors[:, -2:] * np.sqrt(values[-2:].clip(0))


def laid_upon(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Points (N, 2) around 0, turned, mirrored and scaled to lie as near as can be to `others`."""
    u, s, vt = np.linalg.svd(points.T @ others)
    return points @ (u @ vt) * s.sum() / max((points**2).sum(), 1e-12)


def map_table(records: list[Record]) -> pd.DataFrame:
    """A map of each network's features: a row for each network and image with its place (x, y), of
    a map that is turned, mirrored and scaled to lie upon the teacher's.

    `likeness` is the correlation of a network's distances between these images with the teacher's.
    """
    index = features.of_characters(records[0], MAPPED, EACH)
    names, labels = records[0].meta["class_names"], records[0].labels
    pairs, rows = np.triu_indices(len(index), 1), []
    far_t, places_t = None, None
    for who, out in features.outputs(records, index).items():
        far = relations(out.pooled.double())[0].numpy()  # (N, N)
        places = flat_map(far)
        if far_t is None:
            far_t, places_t = far, places
        likeness = np.corrcoef(far[pairs], far_t[pairs])[0, 1]
        for number, (x, y) in zip(index, laid_upon(places, places_t), strict=True):
            about = {"who": who, "likeness": round(likeness, 4), "image": number}
            rows.append(about | {"true": names[labels[number]], "x": x, "y": y})
    return tables.frame(rows, records)


@kdkit_style()
def draw_map(table: pd.DataFrame) -> Figure:
    """A map for each network, the images as their characters, each with a hairline from where the
    teacher has it. table: of `map_table`."""
    groups = list(table.groupby("who", sort=False))
    down = -(-len(groups) // 3)
    fig = Figure(figsize=(9.2, 0.5 + 3.1 * down))
    axes = np.ravel(fig.subplots(down, 3))
    characters, teacher = list(table["true"].unique()), groups[0][1][["x", "y"]].to_numpy()
    low, high = (values.to_numpy() for values in (table[["x", "y"]].min(), table[["x", "y"]].max()))
    edges = (low + high) / 2 + 0.55 * (high - low).max() * np.array([[-1], [1]])  # a square
    for ax, (who, rows) in zip(axes, groups, strict=False):
        for (_, row), home in zip(rows.iterrows(), teacher, strict=True):
            ax.plot([home[0], row["x"]], [home[1], row["y"]], color="#c4c4c4", lw=0.6, marker="")
            colour = text_colour(PALETTE[characters.index(row["true"])])
            place = {"ha": "center", "va": "center", "fontsize": 11}
            ax.text(row["x"], row["y"], row["true"], color=colour, **place)
        alike = f": {rows['likeness'].iloc[0]:.2f}" if who != groups[0][0] else ""
        ax.set(title=f"{who}{alike}", xticks=[], yticks=[], xlim=edges[:, 0], ylim=edges[:, 1])
        ax.set_aspect("equal")
        ax.grid(False)
    for ax in axes[len(groups) :]:
        ax.set_axis_off()
    fig.suptitle(
        "Images lie near where their features do; hairlines come from the teacher's place.\n"
        "Number: correlation of the distances with the teacher's",
        fontsize=10,
    )
    return fig


def say_map(table: pd.DataFrame) -> list[str]:
    """How alike each network's distances are to the teacher's, the most alike first."""
    likeness = table.drop_duplicates("who").set_index("who")["likeness"].iloc[1:]
    likeness = likeness.sort_values(ascending=False, kind="stable")
    each = table[table["who"] == table["who"].iloc[0]].groupby("true").size().max()
    return [
        f"Maps of {', '.join(table['who'].unique())}: {each} test images each of "
        f"{', '.join(table['true'].unique())}, near where a network's features are near; each map "
        "is turned, mirrored and scaled to lie upon the teacher's.",
        "Correlation of the distances between these images with the teacher's: "
        + ", ".join(f"{who} {value:.3f}" for who, value in likeness.items())
        + ".",
    ]


@figure(
    "relations_map",
    notebook="04",
    runs=[{"method": m} for m in ("baseline", "kd", "rkd", "cc", "crd")],
    whole=True,
)
class Map:
    table = map_table
    draw = draw_map
    say = say_map
