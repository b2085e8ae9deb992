"""The figures by name: which runs each shows, its table, its picture, and what the numbers say."""

# ruff: noqa: F405
import base64
import html as markup
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from . import pictures, store, tables
from .config import Run, choose, preset
from .findings import *  # noqa: F403  and every say_*
from .pictures import *  # noqa: F403  every draw_* is found here
from .store import Record
from .tables import label, said  # noqa: F401


@dataclass(frozen=True)
class Spec:
    """A figure: the notebook that draws it, its runs (fields without seed), and three functions.

    `say` gives the alt text first and then the findings, a sentence each.
    """

    notebook: str
    runs: tuple[dict, ...]
    table: Callable[[list[Record]], pd.DataFrame]
    draw: Callable[[list[Record]], Figure]
    say: Callable[[pd.DataFrame], list[str]]


def wanted(name: str | None, preset_name: str, seeds: int | Iterable[int]) -> list[Run]:
    """The runs of a figure, or of all in the order of the notebooks, each once; teachers are not
    listed. seeds: how many (0, 1, ...), or which. ValueError for unknown names."""
    if name is not None:
        choose(name, FIGURES, "figure")
    specs = [FIGURES[name]] if name else sorted(FIGURES.values(), key=lambda s: s.notebook)
    seeds = range(seeds) if isinstance(seeds, int) else list(seeds)
    runs = [
        preset(preset_name, **{**fields, "seed": seed})
        for spec in specs
        for fields in spec.runs
        for seed in seeds
    ]
    return list({store.run_id(run): run for run in runs}.values())


def draw_class_maximum(records: list[Record], **given) -> Figure:
    """`draw_class_map` for the table of `tables.class_maximum`, at its largest extra peak."""
    t = tables.class_maximum(records, **given)
    names, images = list(t["class"]), tables.test_set(records[0].run.data)[0]
    true = names.index(t["true"].iloc[0])
    peak = int(t["above"].where(t.index != true).idxmax())
    behind, like = ([images[int(i)] for i in t[c][peak].split()] for c in ("images", "like"))
    tops = (t[who].to_numpy() for who in ("student", "teacher"))
    return pictures.draw_class_map(*tops, true, peak, behind, names, like)


def spec(
    notebook: str, runs: Iterable[dict], table: Callable, draw: Callable, say: Callable
) -> Spec:
    """A Spec whose picture is drawn from its table."""
    return Spec(notebook, tuple(runs), table, lambda records: draw(table(records)), say)


def accuracies(notebook: str, *runs: dict, against: str = "control") -> Spec:
    """Methods side by side with their paired differences."""
    return spec(
        notebook,
        runs,
        partial(tables.accuracy, against=against),
        pictures.draw_accuracy,
        say_accuracy,
    )


def sweep(notebook: str, x: str, xlabel: str, *runs: dict, log: bool = False) -> Spec:
    """Accuracy against a field of the method."""
    return spec(
        notebook,
        runs,
        partial(tables.accuracy, x=x),
        partial(pictures.draw_sweep, x=x, xlabel=xlabel, log=log),
        partial(say_sweep, x=x),
    )


def over_epochs(notebook: str, panels: dict[str, list[str]], say: Callable, *runs: dict) -> Spec:
    """Quantities over the epochs."""
    names = [q for p in panels.values() for q in p]
    return spec(
        notebook,
        runs,
        lambda records: tables.curves(records, *names),
        partial(pictures.draw_curves, panels=panels),
        say,
    )


_ACCURACY = {"Accuracy (%)": ["training accuracy (%)", "probe accuracy (%)"]}
_DIVERSITY = {"Mean distance between peers' predictions": ["diversity"]}
# What runs each figure shows: the one place outside methods/ and papers/ that names methods.
FIGURES: dict[str, Spec] = {
    "baseline_curves": over_epochs(
        "01", _ACCURACY | {"Loss": ["training loss"]}, say_curves, {"method": "baseline"}
    ),
    "kd_accuracy": accuracies("02", {"method": "baseline"}, {"method": "kd"}),
    "kd_temperature": sweep(
        "02",
        "T",
        "temperature T",
        {"method": "baseline"},
        *({"method": "kd", "T": T} for T in (1.0, 2.0, 4.0, 8.0)),
        log=True,
    ),
    "features_accuracy": accuracies(
        "03", *({"method": m} for m in ("baseline", "kd", "fitnet", "at", "ft", "ofd", "reviewkd"))
    ),
    "at_weight": sweep(
        "03",
        "beta",
        "weight β of the attention maps",
        {"method": "baseline"},
        *({"method": "at", "beta": b} for b in (10.0, 100.0, 1000.0)),
        log=True,
    ),
    "rkd_parts": accuracies(
        "04",
        {"method": "baseline"},
        *({"method": "rkd", **part} for part in ({}, {"w_a": 0.0}, {"w_d": 0.0})),
    ),
    "relations_accuracy": accuracies(
        "04", *({"method": m} for m in ("baseline", "kd", "rkd", "cc", "crd", "crd_kd"))
    ),
    "online_accuracy": accuracies(
        "05",
        {"method": "baseline"},
        {"method": "ind", "based": "network"},
        {"method": "dml"},
        {"method": "kdcl"},
        {"method": "ind"},
        {"method": "cl_ilr"},
        {"method": "one"},
    ),
    "online_choices": accuracies(
        "05",
        {"method": "ind"},
        {"method": "cl_ilr", "alpha": 0.0},
        {"method": "cl_ilr"},
        {"method": "ind", "based": "network"},
        {"method": "dml"},
        {"method": "dml", "T": 1.0, "pairwise": True, "detach": True, "eps": 0.0},
        *({"method": "kdcl", "form": f} for f in ("naive", "linear", "minlogit", "general")),
    ),
    "mixed_groups": accuracies(
        "05",
        *(
            {"student": "resnet8_w0.5,resnet8", "m": 2, **given}
            for given in ({"method": "ind", "based": "network"}, {"method": "dml"})
        ),
    ),
    "online_diversity": over_epochs(
        "05",
        _DIVERSITY,
        say_diversity,
        *({"method": m} for m in ("ind", "cl_ilr", "one", "okddip")),
    ),
    "okddip_accuracy": accuracies(
        "06",
        {"method": "baseline"},
        {"method": "kd"},
        {"method": "ind"},
        {"method": "okddip"},
        {"method": "ind", "based": "network"},
        {"method": "okddip", "based": "network"},
        {"method": "okddip_kd"},
    ),
    "okddip_choices": accuracies(
        "06",
        {"method": "okddip"},
        {"method": "okddip", "aggregate": "probs"},
        {"method": "okddip", "detach": True},
        against="first",
    ),
    "okddip_attention": spec(
        "06", [{"method": "okddip"}], tables.attention, pictures.draw_attention, say_attention
    ),
    "okddip_diversity": over_epochs(
        "06",
        _DIVERSITY,
        say_diversity,
        *({"method": m, "based": "network"} for m in ("ind", "okddip")),
        {"method": "dml"},
    ),
    "dckd_accuracy": accuracies(
        "07", *({"method": m} for m in ("baseline", "kd", "dckd", "edckd", "ensembled_student"))
    ),
    "dckd_choices": accuracies(
        "07",
        {"method": "dckd"},
        {"method": "dckd", "gamma": 0.0},
        {"method": "dckd", "reverse": False},
        {"method": "dckd", "collection": "avg"},
        against="first",
    ),
    "teacher_variants": accuracies(
        "07",
        {"method": "kd"},
        {"method": "dml", "m": 3, "teacher_weight": 1.0},
        {"method": "okddip_kd", "m": 3, "based": "network"},
        {"method": "kdcl", "m": 3, "form": "general", "with_teacher": True},
        {"method": "dckd"},
    ),
    "dckd_correlation": spec(
        "07", [{"method": "dckd"}], tables.correlation, pictures.draw_correlation, say_correlation
    ),
    "dckd_classmax": Spec(
        "07", ({"method": "dckd"},), tables.class_maximum, draw_class_maximum, say_class_maximum
    ),
    "schedules": over_epochs(
        "07",
        {"Learning rate": ["learning rate"], "Probe accuracy (%)": ["probe accuracy (%)"]},
        say_curves,
        {"method": "baseline"},
        {"method": "baseline", "schedule": "sgdr"},
    ),
    "okddip_ablations": accuracies(
        "08",
        {"method": "okddip"},
        *({"method": "okddip", "attention": a} for a in ("random", "entropy", "mean", "symmetric")),
        {"method": "okddip", "two_level": False},
        against="first",
    ),
    "dckd_ablations": accuracies(
        "08",
        {"method": "dckd"},
        {"method": "dckd", "reverse": False},
        {"method": "dckd", "collection": "avg"},
        {"method": "dckd", "collection": "avg", "reverse": False},
        against="first",
    ),
    "group_size": sweep(
        "08",
        "m",
        "group size m",
        *({"method": k, "m": m} for k in ("okddip", "one", "cl_ilr") for m in (3, 4, 6, 8)),
    ),
    "dckd_students": sweep(
        "08",
        "m",
        "students m",
        {"method": "kd"},
        *({"method": "dckd", "m": m} for m in (2, 3, 4, 5)),
    ),
    "diversity_ensemble": spec(
        "09",
        ({"method": m} for m in ("ind", "cl_ilr", "one", "okddip", "dml", "dckd")),
        tables.ensembles,
        pictures.draw_ensembles,
        say_ensembles,
    ),
    "entropy_correlation": spec(
        "09", (), tables.distributions, pictures.draw_distributions, say_distributions
    ),
    "calibration": spec(
        "09",
        ({"method": m} for m in ("baseline", "kd", "ind", "one", "okddip", "dckd")),
        tables.reliability,
        pictures.draw_reliability,
        say_reliability,
    ),
    "results": accuracies(
        "09",
        *(
            {"method": m}
            for m in (
                "baseline",
                "kd",
                "fitnet",
                "at",
                "ft",
                "ofd",
                "reviewkd",
                "rkd",
                "cc",
                "crd",
                "crd_kd",
                "ind",
                "cl_ilr",
                "one",
                "okddip",
            )
        ),
        {"method": "ind", "based": "network"},
        {"method": "dml"},
        {"method": "kdcl"},
        {"method": "okddip", "based": "network"},
        {"method": "okddip_kd"},
        {"method": "dckd"},
        {"method": "edckd"},
        {"method": "ensembled_student"},
    ),
}


def figures_root() -> Path:
    """$KDKIT_FIGURES, else `figures/local` beside the package's project, or in this folder."""
    return Path(os.environ.get("KDKIT_FIGURES") or store.home() / "figures" / "local").absolute()


@pictures.look()
def _bytes(fig: Figure, kind: str, **given) -> bytes:
    """The figure as a file; the same figure gives the same bytes."""
    buffer, undated = io.BytesIO(), {{"png": "Software", "svg": "Date"}[kind]: None}
    fig.savefig(buffer, format=kind, metadata=undated, **given)
    return buffer.getvalue()


def save(fig: Figure, name: str, alt: str, table: pd.DataFrame) -> Path:
    """Write NAME.png, .svg, .csv (the table) and .json (alt text, ids of the runs) to
    `figures_root()`, each whole or not at all; returns the PNG's path."""
    path = figures_root() / name
    about = {"alt": alt, "runs": table.attrs.get("runs", [])}
    numbers = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    for kind, blob in {
        "svg": _bytes(fig, "svg"),
        "csv": numbers.encode(),
        "json": (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode(),
        "png": _bytes(fig, "png", dpi=150),
    }.items():
        store.write(path.with_name(f"{name}.{kind}"), blob)
    return path.with_name(f"{name}.png")


_CANVAS = FigureCanvasAgg(Figure())  # one for all: it remembers how wide texts are


@pictures.look()
def html(fig: Figure, alt: str) -> str:
    """The figure as an <img> that carries its alt text. When it is shown again, only its animated
    parts are drawn: text that stays takes most of the time."""
    buffer, _CANVAS.figure = io.BytesIO(), fig
    moving = [a for ax in fig.axes for a in ax.get_children() if a.get_animated()]
    if not moving or not hasattr(fig, "still"):  # the pixels of all else
        fig.set_dpi(96)
        _CANVAS.draw()  # which solves the layout, too
        fig.still = _CANVAS.copy_from_bbox(fig.bbox)
    _CANVAS.restore_region(fig.still)
    for part in sorted(moving, key=lambda a: a.zorder):
        part.draw(_CANVAS.get_renderer())
    imsave(buffer, _CANVAS.buffer_rgba(), format="png", pil_kwargs={"compress_level": 1})
    return (
        f'<img alt="{markup.escape(alt)}" style="max-width:100%" '
        f'src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


@pictures.look()
def draw_progress(history: list[dict], title: str, fig=None) -> Figure:
    """The curve of one run, finished or not: unweighted loss terms, training and probe accuracy."""
    fig, axes = emptied(
        fig,
        (8.4, 2.9),
        1,
        2,
        gridspec_kw={"left": 0.08, "right": 0.93, "bottom": 0.16, "top": 0.88, "wspace": 0.62},
    )
    fig.set_layout_engine("none")  # placed by hand, as labels come and go
    names = history[0]["terms"] if history else ()
    terms = {k: [row["terms"][k] for row in history] for k in names}
    right = {k: [np.mean(row[f"{k}_top1"]) for row in history] for k in ("train", "probe")}
    for ax, series, what in zip(
        axes,
        (terms, right if history else {}),
        ("loss terms, without weights", "accuracy (%)"),
        strict=True,
    ):
        for k, values in enumerate(series.values()):
            ax.plot(
                range(1, len(values) + 1),
                values,
                ls=LINES[k % 5],
                marker=MARKERS[k],
                ms=3.5,
                color=PALETTE[k],
            )
        ax.set(xlabel="epoch", ylabel=what, xlim=(0, 1), ylim=(0, 1))  # where nothing is shown
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.relim()
        ax.autoscale()
        end_labels(ax, [(v[-1], k, PALETTE[i]) for i, (k, v) in enumerate(series.items())])
        live(ax)
    axes[0].set_title(title)
    return fig


@pictures.look()
def draw_images(images, names: list[str]) -> Figure:
    """Images (n, C, H, W) in a row, each under its name."""
    fig = Figure(figsize=(max(2.0, 0.95 * len(images)), 1.35))
    for ax, image, name in zip(np.ravel(fig.subplots(1, len(images))), images, names, strict=True):
        pictures.picture(ax, image)
        ax.set_title(name, fontsize=8, loc="center", pad=3)
    return fig


def show_images(images, names: list[str]) -> None:
    """Show images (n, C, H, W) with their names."""
    display(HTML(html(draw_images(images, names), "Images: " + ", ".join(names))))
