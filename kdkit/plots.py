"""The figures by name: which runs each shows, its table, its picture, and what the numbers say.

Findings are sentences computed from the table alone: other numbers, other sentences. A difference
inside its 95 % interval is called not shown.
"""

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

from . import metrics, pictures, store, tables
from .config import Run, choose, preset
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
    runs = [preset(preset_name, **{**fields, "seed": seed})
            for spec in specs for fields in spec.runs for seed in seeds]
    first = {}
    for run in runs:
        first.setdefault(store.run_id(run), run)
    return list(first.values())


def verdict(what: str, other: str, row, unit: str = "points", digits: int = 2) -> str:
    """One sentence on a paired difference and whether it is shown. row: of `tables.paired`."""
    d, half, n = row["difference"], row["half_width"], int(row["pairs"])
    size = f"{abs(d):.{digits}f} {unit}".strip()
    seen = f"{what} is {size} {'above' if d > 0 else 'below'} {other}" if d else \
        f"{what} is level with {other}"
    if n < 2:
        return f"{seen} in {n} seed: one seed gives no interval, so this is not shown."
    if row["shown"]:
        return f"{seen} (95 % interval ± {half:.{digits}f}, n = {n}): shown."
    return f"{seen}, inside its 95 % interval of ± {half:.{digits}f} (n = {n}): not shown."


def seeds(table: pd.DataFrame) -> str:
    """How many seeds, in words."""
    n = int(table["n"].max())
    return f"{n} seed{'s' if n > 1 else ''}"


def say_accuracy(table: pd.DataFrame) -> list[str]:
    """Every accuracy, then every difference to its control."""
    ours = table[table["method"] != ""]
    each = ", ".join(f"{r['label']} {said(r['mean'], r['sd'])}" for _, r in table.iterrows())
    return [f"Test accuracy in percent over {seeds(ours)}: {each}.",
            *(verdict(r["label"], r["control"], r) for _, r in ours.iterrows() if r["control"])]


def say_sweep(table: pd.DataFrame, x: str) -> list[str]:
    """Where each line is highest, and whether its ends differ by more than seeds do."""
    out = []
    for _, t in table.dropna(subset=[x]).groupby("method", sort=False):
        t = t.sort_values(x)
        first, best, last = t.iloc[0], t.loc[t["mean"].idxmax()], t.iloc[-1]
        name = tables.method_class(t["method"].iloc[0]).title
        out.append(f"{name} is best at {x} = {best[x]:g} with {said(best['mean'], best['sd'])} %.")
        if first[x] < last[x]:
            gap = tables.paired(_by_seed(last), _by_seed(first))
            out.append(verdict(f"{name} with {x} = {last[x]:g}", f"{x} = {first[x]:g}", gap))
    return [*say_accuracy(table), *out]


def _by_seed(row: pd.Series) -> dict[int, float]:
    """A row's values by seed."""
    return {int(k[5:]): float(v) for k, v in row.items()
            if str(k).startswith("seed ") and v == v}


def say_curves(table: pd.DataFrame) -> list[str]:
    """First and last value of each curve; what training accuracy is above the probe's."""
    last = table[table["epoch"] == table["epoch"].max()]
    each = ", ".join(f"{r['label']} {r['quantity'].removesuffix(' (%)')} {r['mean']:.4g}"
                     for _, r in last.iterrows())
    out = [f"Curves over {table['epoch'].max()} epochs, {seeds(table)}; at the end: {each}."]
    for name, t in last.groupby("label", sort=False):
        at = {r["quantity"]: r for _, r in t.iterrows()}
        train, probe = at.get("training accuracy (%)"), at.get("probe accuracy (%)")
        if train is not None and probe is not None:
            gap = tables.paired(_by_seed(train), _by_seed(probe))
            out.append(verdict(f"{name}'s training accuracy", "that on the probe", gap))
    for (name, what), t in table.groupby(["label", "quantity"], sort=False):
        if what == "probe accuracy (%)":
            top = t.loc[t["mean"].idxmax()]
            out.append(f"{name}'s probe accuracy is highest after epoch {top['epoch']:.0f} with "
                       f"{top['mean']:.2f} %; the result is the last epoch's, not that one.")
    return out


def say_diversity(table: pd.DataFrame) -> list[str]:
    """The order at the end of training; each against the first kind of run, the upper bound."""
    last = table[table["epoch"] == table["epoch"].max()]
    order = last.sort_values("mean", ascending=False)
    each = ", ".join(f"{r['label']} {said(r['mean'], r['sd'], digits=4)}"
                     for _, r in order.iterrows())
    first = last.iloc[0]
    top = "has" if order["label"].iloc[0] == first["label"] else "has not"
    return [f"Mean distance between peers' predictions over the epochs, {seeds(table)}; at the "
            f"end, from the most diverse: {each}.",
            f"{first['label']}, whose students do not teach each other, {top} the most diverse "
            "peers at the end.",
            *(verdict(f"{r['label']}'s diversity", f"{first['label']}'s",
                      tables.paired(_by_seed(r), _by_seed(first)), "", 4)
              for _, r in last.iloc[1:].iterrows())]


def say_attention(table: pd.DataFrame) -> list[str]:
    """How far from uniform and from symmetric the attention is at the start and at the end."""
    n, E = table["peer"].max(), table["epoch"].max()

    def at(epoch):
        t = table[table["epoch"] == epoch]
        return (t["asymmetry"].abs().max(), (t["attention"] - 1 / n).abs().max(),
                t[t["peer"] == t["source"]]["attention"].mean())

    (first, _, _), (last, far, own) = at(1), at(E)
    return [f"Attention between {n} peers of {table['label'].iloc[0]} over {E} epochs; at the end "
            f"its largest asymmetry is {last:.3f} and its largest distance from 1/{n} {far:.3f}.",
            f"The largest asymmetry {'grew' if last > first else 'did not grow'} over training: "
            f"{first:.3f} after epoch 1, {last:.3f} after epoch {E} "
            f"({table['seed'].nunique()} seed(s)).",
            f"At the end a peer gives itself {own:.3f} on average, "
            f"{'more' if own > 1 / n else 'not more'} than the even share of {1 / n:.3f}."]


def say_ensembles(table: pd.DataFrame) -> list[str]:
    """What each ensemble gains, and whether the most diverse group gains most."""
    each = ", ".join(f"{r['label']} {r['single']:.2f} → {r['ensemble']:.2f}"
                     for _, r in table.iterrows())
    most, best = (table.loc[table[c].idxmax(), "label"] for c in ("diversity", "mean"))
    order = table["diversity"].rank().corr(table["mean"].rank())
    return [f"Mean accuracy of single students and of their ensemble in percent, {seeds(table)}: "
            f"{each}.",
            *(verdict(f"{r['label']}'s ensemble", "its single students", r)
              for _, r in table.iterrows()),
            f"The most diverse peers are {most}'s; the largest gain is {best}'s "
            f"({'the same' if most == best else 'another'} group). Rank correlation of diversity "
            f"and gain over {len(table)} groups: {order:+.2f}."]


def say_correlation(table: pd.DataFrame) -> list[str]:
    """Students and collection against the teacher, at each temperature."""
    each = ", ".join(f"{r['who']} {r['mean']:.3f} (T = {r['T']:g})" for _, r in table.iterrows())
    return [f"Mean number of classes above 1/K over the test images, {seeds(table)}: {each}.",
            *(verdict(f"At T = {r['T']:g} the correlation number of {r['who'].lower()}",
                      "the teacher's", r, "", 3) for _, r in table.iterrows() if r["control"])]


def say_distributions(table: pd.DataFrame) -> list[str]:
    """Do entropy and correlation number order the two distributions alike?"""
    a, b = (t.iloc[0] for _, t in table.groupby("distribution", sort=False))
    sign = [np.sign(a[c] - b[c]) for c in ("entropy", "correlation_number")]
    each = ", ".join(f"{r['distribution']} has entropy {r['entropy']:.3f} nats and correlation "
                     f"number {r['correlation_number']}" for r in (a, b))
    return [f"Two distributions over ten classes: {each}.",
            f"Entropy and correlation number order them "
            f"{'alike' if sign[0] == sign[1] else 'in opposite ways'}: only the second counts how "
            "many classes stand out."]


def say_reliability(table: pd.DataFrame) -> list[str]:
    """Each calibration error, and which way it errs."""
    out = []
    for name, t in table.groupby("label", sort=False):
        gap = float((t["share"] * (t["confidence"] - t["accuracy"])).sum() / t["share"].sum())
        out.append(f"{name} is {100 * abs(gap):.1f} points {'over' if gap > 0 else 'under'}"
                   f"confident on average; expected calibration error {t['ece'].iloc[0]:.3f}.")
    firsts = table.drop_duplicates("label")
    each = ", ".join(f"{r['label']} {r['ece']:.3f}" for _, r in firsts.iterrows())
    best = firsts.loc[firsts["ece"].idxmin(), "label"]
    return [f"Accuracy against confidence; expected calibration errors over {seeds(table)}: "
            f"{each}.", *out, f"The smallest error is {best}'s."]


def say_class_maximum(table: pd.DataFrame) -> list[str]:
    """The peak that the student has most above its teacher, and how many it has more."""
    true, rest = table["true"].iloc[0], table[table["class"] != table["true"]]
    top = rest.loc[rest["above"].idxmax()]
    more = int((rest["above"] > 0).sum())
    side = "above" if top["above"] > 0 else "not above"
    return [f"Largest probabilities that any test image of class {true} gets, at tau = "
            f"{top['tau']:g}, seed {top['seed']}: for {top['class']} {top['student']:.3f} from the "
            f"student and {top['teacher']:.3f} from the teacher.",
            f"The student's peak for {top['class']} is {side} the teacher's: "
            f"{top['above']:+.3f}; images behind it: {top['images']}.",
            f"It is above the teacher for {more} of the {len(rest)} other classes "
            "(one student, one seed: a look, not a test)."]


def draw_class_maximum(records: list[Record], **given) -> Figure:
    """`draw_class_map` for the table of `tables.class_maximum`, at its largest extra peak."""
    t = tables.class_maximum(records, **given)
    names, images = list(t["class"]), tables.test_set(records[0].run.data)[0]
    true = names.index(t["true"].iloc[0])
    peak = int(t["above"].where(t.index != true).idxmax())
    behind, like = ([images[int(i)] for i in t[c][peak].split()] for c in ("images", "like"))
    tops = (t[who].to_numpy() for who in ("student", "teacher"))
    return pictures.draw_class_map(*tops, true, peak, behind, names, like)


def spec(notebook: str, runs: Iterable[dict], table: Callable, draw: Callable,
         say: Callable) -> Spec:
    """A Spec whose picture is drawn from its table."""
    return Spec(notebook, tuple(runs), table, lambda records: draw(table(records)), say)


def accuracies(notebook: str, *runs: dict, against: str = "control") -> Spec:
    """Methods side by side with their paired differences."""
    return spec(notebook, runs, partial(tables.accuracy, against=against), pictures.draw_accuracy,
                say_accuracy)


def sweep(notebook: str, x: str, xlabel: str, *runs: dict, log: bool = False) -> Spec:
    """Accuracy against a field of the method."""
    return spec(notebook, runs, partial(tables.accuracy, x=x),
                partial(pictures.draw_sweep, x=x, xlabel=xlabel, log=log), partial(say_sweep, x=x))


def over_epochs(notebook: str, panels: dict[str, list[str]], say: Callable, *runs: dict) -> Spec:
    """Quantities over the epochs."""
    names = [q for p in panels.values() for q in p]
    return spec(notebook, runs, lambda records: tables.curves(records, *names),
                partial(pictures.draw_curves, panels=panels), say)


_ACCURACY = {"Accuracy (%)": ["training accuracy (%)", "probe accuracy (%)"]}
_DIVERSITY = {"Mean distance between peers' predictions": ["diversity"]}
# What runs each figure shows: the one place outside methods/ and papers/ that names methods.
FIGURES: dict[str, Spec] = {
    "baseline_curves": over_epochs(
        "01", _ACCURACY | {"Loss": ["training loss"]}, say_curves, {"method": "baseline"}),
    "kd_accuracy": accuracies("02", {"method": "baseline"}, {"method": "kd"}),
    "kd_temperature": sweep(
        "02", "T", "temperature T", {"method": "baseline"},
        *({"method": "kd", "T": T} for T in (1.0, 2.0, 4.0, 8.0)), log=True),
    "features_accuracy": accuracies("03", *({"method": m} for m in (
        "baseline", "kd", "fitnet", "at", "ft", "ofd", "reviewkd"))),
    "at_weight": sweep("03", "beta", "weight β of the attention maps", {"method": "baseline"},
                       *({"method": "at", "beta": b} for b in (10.0, 100.0, 1000.0)), log=True),
    "rkd_parts": accuracies("04", {"method": "baseline"}, *(
        {"method": "rkd", **part} for part in ({}, {"w_a": 0.0}, {"w_d": 0.0}))),
    "relations_accuracy": accuracies("04", *({"method": m} for m in (
        "baseline", "kd", "rkd", "cc", "crd", "crd_kd"))),
    "online_accuracy": accuracies(
        "05", {"method": "baseline"}, {"method": "ind", "based": "network"}, {"method": "dml"},
        {"method": "kdcl"}, {"method": "ind"}, {"method": "cl_ilr"}, {"method": "one"}),
    "online_choices": accuracies(
        "05", {"method": "ind"}, {"method": "cl_ilr", "alpha": 0.0}, {"method": "cl_ilr"},
        {"method": "ind", "based": "network"}, {"method": "dml"},
        {"method": "dml", "T": 1.0, "pairwise": True, "detach": True, "eps": 0.0},
        *({"method": "kdcl", "form": f} for f in ("naive", "linear", "minlogit", "general"))),
    "mixed_groups": accuracies("05", *(
        {"student": "resnet8_w0.5,resnet8", "m": 2, **given} for given in (
            {"method": "ind", "based": "network"}, {"method": "dml"}))),
    "online_diversity": over_epochs(
        "05", _DIVERSITY, say_diversity,
        *({"method": m} for m in ("ind", "cl_ilr", "one", "okddip"))),
    "okddip_accuracy": accuracies(
        "06", {"method": "baseline"}, {"method": "kd"}, {"method": "ind"}, {"method": "okddip"},
        {"method": "ind", "based": "network"}, {"method": "okddip", "based": "network"},
        {"method": "okddip_kd"}),
    "okddip_choices": accuracies(
        "06", {"method": "okddip"}, {"method": "okddip", "aggregate": "probs"},
        {"method": "okddip", "detach": True}, against="first"),
    "okddip_attention": spec(
        "06", [{"method": "okddip"}], tables.attention, pictures.draw_attention, say_attention),
    "okddip_diversity": over_epochs(
        "06", _DIVERSITY, say_diversity,
        *({"method": m, "based": "network"} for m in ("ind", "okddip")), {"method": "dml"}),
    "dckd_accuracy": accuracies(
        "07", *({"method": m} for m in ("baseline", "kd", "dckd", "edckd", "ensembled_student"))),
    "dckd_choices": accuracies(
        "07", {"method": "dckd"}, {"method": "dckd", "gamma": 0.0},
        {"method": "dckd", "reverse": False}, {"method": "dckd", "collection": "avg"},
        against="first"),
    "teacher_variants": accuracies(
        "07", {"method": "kd"}, {"method": "dml", "m": 3, "teacher_weight": 1.0},
        {"method": "okddip_kd", "m": 3, "based": "network"},
        {"method": "kdcl", "m": 3, "form": "general", "with_teacher": True}, {"method": "dckd"}),
    "dckd_correlation": spec(
        "07", [{"method": "dckd"}], tables.correlation, pictures.draw_correlation, say_correlation),
    "dckd_classmax": Spec(
        "07", ({"method": "dckd"},), tables.class_maximum, draw_class_maximum, say_class_maximum),
    "schedules": over_epochs(
        "07", {"Learning rate": ["learning rate"], "Probe accuracy (%)": ["probe accuracy (%)"]},
        say_curves, {"method": "baseline"}, {"method": "baseline", "schedule": "sgdr"}),
    "okddip_ablations": accuracies(
        "08", {"method": "okddip"},
        *({"method": "okddip", "attention": a} for a in ("random", "entropy", "mean", "symmetric")),
        {"method": "okddip", "two_level": False}, against="first"),
    "dckd_ablations": accuracies(
        "08", {"method": "dckd"}, {"method": "dckd", "reverse": False},
        {"method": "dckd", "collection": "avg"},
        {"method": "dckd", "collection": "avg", "reverse": False}, against="first"),
    "group_size": sweep(
        "08", "m", "group size m",
        *({"method": k, "m": m} for k in ("okddip", "one", "cl_ilr") for m in (3, 4, 6, 8))),
    "dckd_students": sweep(
        "08", "m", "students m", {"method": "kd"},
        *({"method": "dckd", "m": m} for m in (2, 3, 4, 5))),
    "diversity_ensemble": spec(
        "09", ({"method": m} for m in ("ind", "cl_ilr", "one", "okddip", "dml", "dckd")),
        tables.ensembles, pictures.draw_ensembles, say_ensembles),
    "entropy_correlation": spec(
        "09", (), tables.distributions, pictures.draw_distributions, say_distributions),
    "calibration": spec(
        "09", ({"method": m} for m in ("baseline", "kd", "ind", "one", "okddip", "dckd")),
        tables.reliability, pictures.draw_reliability, say_reliability),
    "results": accuracies(
        "09", *({"method": m} for m in (
            "baseline", "kd", "fitnet", "at", "ft", "ofd", "reviewkd", "rkd", "cc", "crd", "crd_kd",
            "ind", "cl_ilr", "one", "okddip")),
        {"method": "ind", "based": "network"}, {"method": "dml"}, {"method": "kdcl"},
        {"method": "okddip", "based": "network"}, {"method": "okddip_kd"}, {"method": "dckd"},
        {"method": "edckd"}, {"method": "ensembled_student"}),
}


def figures_root() -> Path:
    """$KDKIT_FIGURES, else `figures/local` beside the package's project, or in this folder."""
    project = Path(__file__).parents[1]
    base = project if (project / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("KDKIT_FIGURES") or base / "figures" / "local").absolute()


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
    for kind, blob in {"svg": _bytes(fig, "svg"), "csv": numbers.encode(),
                       "json": (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode(),
                       "png": _bytes(fig, "png", dpi=150)}.items():
        store.write(path.with_name(f"{name}.{kind}"), blob)
    return path.with_name(f"{name}.png")


@pictures.look()
def html(fig: Figure, alt: str) -> str:
    """The figure as an <img> that carries its alt text."""
    buffer = io.BytesIO()
    fig.set_dpi(110)
    FigureCanvasAgg(fig).print_png(buffer, pil_kwargs={"compress_level": 1})  # savefig draws twice
    return (f'<img alt="{markup.escape(alt)}" style="max-width:100%" '
            f'src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">')


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


def show_temperature(z_T, z, T: float, names: list[str]) -> None:
    """Show one image's softened predictions, teacher z_T (K,) and student z (K,)."""
    p, q = (metrics.softmax(np.asarray(v, np.float64), T) for v in (z_T, z))
    alt = (f"Probabilities at T = {T:g}: the teacher's largest is {p.max():.3f} for "
           f"{names[int(p.argmax())]}, entropy {metrics.entropy(p):.3f} nats; the student's "
           f"{q.max():.3f} for {names[int(q.argmax())]}, entropy {metrics.entropy(q):.3f} nats")
    display(HTML(html(pictures.draw_temperature(z_T, z, T, names), alt)))
