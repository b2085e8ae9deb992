"""Pictures of features: where a network looks in an image, beside its teacher."""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ...losses import attention_map, map_difference
from ...models import Out
from .. import runs, sources
from ..plans import plan
from ..store import Record
from . import tables
from .index import figure
from .predictions import draw_image
from .style import kdkit_style

LOOKED_AT = "3Qgé&"  # characters whose maps are drawn
STAGES = (1, 2)  # whose maps are drawn: those with pixels enough to be seen
MEASURED = 500  # test images over which a distance is taken


def outputs(records: list[Record], index: np.ndarray) -> dict[str, Out]:
    """What the teacher and each student answer to the test images at `index` (N,): "Teacher", and
    each method's title; labels only are "labels alone". Of the first seed."""
    first = min(record.run.seed for record in records)
    records = [record for record in records if record.run.seed == first]
    taught = next(record for record in records if plan(record.run).teacher)
    networks = {"Teacher": runs.get(plan(taught.run).teacher).model()}
    for record in records:
        alone = plan(record.run).teacher is None
        networks["labels alone" if alone else record.method.title] = record.model()
    data, chosen = sources.load(taught.run.data), torch.as_tensor(index)
    parts = [x for x, *_ in data.batches(False, 500, "none", None, subset=chosen)]
    with torch.no_grad():
        answers = {who: [network(x) for x in parts] for who, network in networks.items()}
    return {who: _joined(outs) for who, outs in answers.items()}


def _joined(outs: list[Out]) -> Out:
    """The answers to several batches as the answer to one."""
    feats, preacts = (
        tuple(torch.cat(maps) for maps in zip(*(getattr(o, name) for o in outs), strict=True))
        for name in ("feats", "preacts")
    )
    logits, pooled = (torch.cat([getattr(o, name) for o in outs]) for name in ("logits", "pooled"))
    return Out(logits, feats, preacts, pooled)


def of_characters(record: Record, characters: str, each: int) -> np.ndarray:
    """The first `each` test images of each of these characters, one character after the other; of
    the first classes where the data has other ones."""
    names, labels = record.meta["class_names"], record.labels
    wanted = [names.index(c) for c in characters if c in names] or range(len(characters))
    return np.concatenate([np.flatnonzero(labels == number)[:each] for number in wanted])


def where_table(records: list[Record]) -> pd.DataFrame:
    """The attention maps (of length 1) of a few test images: a row for each stage, network, image
    and line of the map, its pixels in columns.

    `distance` is the mean squared distance of a network's maps of that stage to the teacher's over
    the first 500 test images: 0 where they are the same, 2 where they share no pixel.
    """
    first, rows = records[0], []
    names, labels = first.meta["class_names"], first.labels
    shown = of_characters(first, LOOKED_AT, 1)
    index = np.concatenate([shown, np.arange(min(MEASURED, len(labels)))])
    answers = outputs(records, index)
    for stage in STAGES:
        maps_t = answers["Teacher"].feats[stage]
        for who, out in answers.items():
            f = out.feats[stage]
            apart = map_difference(f, maps_t)[len(shown) :].square().sum(1).mean().item()
            looks = attention_map(f[: len(shown)]).view(len(shown), *f.shape[2:]).numpy()
            for number, look in zip(shown, looks, strict=True):
                about = {"stage": stage, "who": who, "distance": round(apart, 4)}
                about |= {"image": number, "true": names[labels[number]]}
                rows += [about | dict(enumerate(line.round(3))) for line in look]
    table = tables.frame([{str(k): v for k, v in row.items()} for row in rows], records)
    table.attrs["data"] = first.run.data
    return table


@kdkit_style()
def draw_where(table: pd.DataFrame) -> Figure:
    """A line for each network below the images, a block for each stage; bright where it looks.
    table: of `where_table`."""
    networks, stages = list(table["who"].unique()), list(table["stage"].unique())
    images = list(table["image"].unique())
    across = len(images)
    fig = Figure(figsize=(9.4, 0.5 + 0.78 * (len(networks) + 1)))
    axes = fig.subplots(len(networks) + 1, len(stages) * (across + 1))
    for ax in axes.flat:
        ax.set_axis_off()
    pixels = tables.test_images(table.attrs["data"])
    for block, stage in enumerate(stages):
        part = axes[:, block * (across + 1) : (block + 1) * (across + 1)]
        for ax, image in zip(part[0, 1:], images, strict=True):
            draw_image(ax, pixels[image])
        _write(part[0, 0], f"stage {stage}", weight="bold")
        for line, who in zip(part[1:], networks, strict=True):
            rows = table[(table["stage"] == stage) & (table["who"] == who)]
            far = rows["distance"].iloc[0]
            _write(line[0], who if who == networks[0] else f"{who}\n{far:.2f} apart")
            for ax, image in zip(line[1:], images, strict=True):
                look = rows[rows["image"] == image].iloc[:, 5:].dropna(axis=1)
                ax.imshow(look.to_numpy(float), cmap="magma", vmin=0)
    fig.suptitle(
        "Attention maps, bright where it looks; apart: mean squared distance to the teacher's maps",
        fontsize=10,
    )
    return fig


def _write(ax, text: str, **look) -> None:
    """Text in an empty place of a grid, at its right."""
    ax.text(1, 0.5, text, fontsize=9, ha="right", va="center", transform=ax.transAxes, **look)


def say_where(table: pd.DataFrame) -> list[str]:
    """How far each network's maps are from the teacher's, in each stage."""
    shown = ", ".join(table["true"].unique())
    sentences = []
    for stage, rows in table.groupby("stage"):
        far = rows.drop_duplicates("who").set_index("who")["distance"].iloc[1:]
        distances = ", ".join(f"{who} {value:.3f}" for who, value in far.items())
        sentences.append(f"Distance to the teacher's maps in stage {stage}: {distances}.")
    return [
        f"Where {', '.join(table['who'].unique())} look in the first test image of {shown}: "
        f"attention maps of stages {' and '.join(map(str, table['stage'].unique()))}.",
        *sentences,
    ]


@figure(
    "features_where", notebook="03", runs=[{"method": "baseline"}, {"method": "at"}], whole=True
)
class Where:
    table = where_table
    draw = draw_where
    say = say_where
