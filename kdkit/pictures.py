"""Tables in, figures out: one style sheet, one look for each method, no pyplot, no state.

Every `draw_*` is a pure function that returns a matplotlib Figure; nothing is shown or written.
Those of the widgets take a `fig` that they returned before, and draw in it again: in a third of the
time.
"""

import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from textwrap import fill

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import color_sequences
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from . import metrics
from .methods import method_class, methods
from .tables import count, said, seed_columns

STYLE = Path(__file__).with_name("assets") / "kdkit.mplstyle"
ORDER = (8, 1, 3, 4, 5, 9, 2, 7, 0, 6)  # of petroff10: neighbours in the registry differ most
MARKERS, LINES = "osD^vPX<>*ph", ("-", "--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
PALETTE = color_sequences["petroff10"]
BARS = ("#555555", *PALETTE[:2])  # of a teacher, a student, a collection: ever lighter
TEACHER, INK, DASHED = "#111111", "#333333", {"color": "#333333", "lw": 0.9, "ls": (0, (4, 3))}
_LOCK = threading.RLock()  # matplotlib's settings are global; widgets draw on threads of their own


@contextmanager
def look():
    """kdkit's style over matplotlib's defaults, for the time of a `with` or of a function."""
    with _LOCK:
        ours = matplotlib.rcParams["svg.hashsalt"] == "kdkit"  # within another look: it takes 3 ms
        with nullcontext() if ours else matplotlib.style.context(["default", STYLE]):
            yield


def style(name: str) -> dict:
    """Keywords for `plot`: the method's own colour, marker and kind of line, by its place in the
    registry; "" is the teacher."""
    if not name:
        return {"color": TEACHER, "marker": "*", "linestyle": (0, (4, 2))}
    i = methods().index(method_class(name).name)
    rgb = np.array(to_rgb(PALETTE[ORDER[i % 10]])) * 0.62 ** (i // 10)  # beyond ten: darker
    return {
        "color": to_hex(rgb),
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[i % len(LINES)],
    }


def ink(c: str) -> tuple[float, ...]:
    """A colour dark enough for text on white."""
    rgb = np.array(to_rgb(c))
    return tuple(rgb * min(1.0, 0.42 / (rgb @ [0.299, 0.587, 0.114] + 1e-9)))


def end_labels(ax, labels: list[tuple[float, str, str]], xs=None) -> None:
    """Text (y, text, colour) in the right margin, not overlapping, at the end of each line, or on
    a hairline from its point where `xs` are given."""
    scale = ax.yaxis.get_transform().transform  # linear, or the logarithm
    (left, right), (low, high) = ax.get_xlim(), scale(np.array(ax.get_ylim()))
    gap = 12.5 / 72 / (ax.figure.get_figheight() * ax.get_position().height * 0.92)  # of text
    at = (scale(np.array([float(y) for y, _, _ in labels])) - low) / (high - low)
    order = np.argsort(at, kind="stable")
    moved = at[order]
    for _ in range(200):  # push overlapping neighbours apart, evenly
        for k in range(len(moved) - 1):
            lack = max(0.0, gap - (moved[k + 1] - moved[k]))
            moved[k], moved[k + 1] = moved[k] - lack / 2, moved[k + 1] + lack / 2
    for i, new in zip(order, moved, strict=True):
        (_, text, c), x = labels[i], 1 if xs is None else (xs[i] - left) / (right - left)
        ax.text(1.035, new, text, transform=ax.transAxes, va="center", fontsize=9, color=ink(c))
        ax.add_line(
            Line2D(
                [x, 1.025],
                [at[i], new],
                transform=ax.transAxes,
                clip_on=False,
                color=c,
                marker="",
                ls="-",
                lw=0.7,
                alpha=1 if xs is None else 0.5,
            )
        )


def beside(ax, y: float, text: str, c: str = INK) -> None:
    """Text in the right margin, at the height y of the data."""
    ax.text(1.03, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9, color=c)


@look()
def draw_curves(table: pd.DataFrame, panels: dict[str, list[str]]) -> Figure:
    """Quantities over epochs: mean, a band of one deviation over the seeds, labels at the ends.

    table: of `tables.curves`; panels: title of a panel -> its quantities.
    """
    fig = Figure(figsize=(8.4 if len(panels) > 1 else 6.6, 3.4))
    for ax, (title, names) in zip(
        np.ravel(fig.subplots(1, len(panels))), panels.items(), strict=True
    ):
        ends, mine = [], table[table["quantity"].isin(names)]
        for k, ((label, what), t) in enumerate(mine.groupby(["label", "quantity"], sort=False)):
            kind = style(t["method"].iloc[0])
            if len(names) > 1 or mine["method"].nunique() < mine["label"].nunique():
                kind |= {"linestyle": LINES[k % 5], "marker": MARKERS[k]}  # one colour, two lines
            ax.plot(t["epoch"], t["mean"], **kind, markevery=max(1, len(t) // 8), markersize=4.5)
            band = (t["mean"] + sign * t["sd"].fillna(0) for sign in (-1, 1))
            ax.fill_between(t["epoch"], *band, color=kind["color"], alpha=0.18, lw=0)
            text = what.split(" (")[0] if len(names) > 1 else label
            ends.append((t["mean"].iloc[-1], text, kind["color"]))
        ax.set(xlabel=f"epoch ({count(mine)})", title=title)
        if 0 < mine["mean"].min() and mine["mean"].max() > 4 * max(ends)[0]:  # else the end is flat
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        end_labels(ax, ends)
    return fig


@look()
def draw_accuracy(table: pd.DataFrame, unit: str = "test accuracy (%)") -> Figure:
    """Side by side: every seed a dot, the mean a bar, its deviation a line; on the right the
    difference to the control, paired by seed, with its 95 % interval: hollow where not shown.

    table: of `tables.accuracy`.
    """
    fig = Figure(figsize=(9.2, 1.15 + 0.36 * len(table)))
    a, b = fig.subplots(1, 2, sharey=True, width_ratios=(1.2, 1))
    for y, (_, row) in enumerate(table.iterrows()):
        kind = style(row["method"]) | {"linestyle": "none"}
        values, many = row[seed_columns(table)].dropna().astype(float), row["n"] > 1
        a.plot(values, [y] * len(values), **kind, alpha=0.6 if many else 1, markersize=5, mew=0)
        if many:
            a.errorbar(row["mean"], y, xerr=row["sd"], color=kind["color"], lw=1.6)
            a.plot(row["mean"], y, "|", color=ink(kind["color"]), markersize=15, mew=2.2)
        if not row["method"]:
            a.axvline(row["mean"], **DASHED, zorder=0)
        beside(a, y, said(row["mean"], row["sd"]))
        if row["control"]:
            d, half = row["difference"], row["half_width"]
            hollow = {} if row["shown"] else {"markerfacecolor": "white", "alpha": 0.55}
            b.errorbar(d, y, xerr=np.nan_to_num(half), **kind | hollow, capsize=3, lw=1.4)
            beside(
                b,
                y,
                fill(f"{said(d, half, '+')} vs {row['control']}", 36),
                INK if row["shown"] else "#777777",
            )
    b.axvline(0, color=INK, lw=0.9, zorder=0)
    a.set_yticks(range(len(table)), [fill(text, 30) for text in table["label"]])
    a.set(
        ylim=(len(table) - 0.4, -0.6),
        xlabel=f"{unit}, {count(table[table['method'] != ''])}",
        title="Every seed, mean ± deviation",
    )
    b.set(xlabel="points, paired by seed; hollow: not shown", title="Difference, 95 % interval")
    return fig


@look()
def draw_sweep(table: pd.DataFrame, x: str, xlabel: str, log: bool = False) -> Figure:
    """Accuracy against a field of the method, a line a method; rows without the field are level
    lines. table: of `tables.accuracy` with a column `x`."""
    fig, ends = Figure(figsize=(6.8, 3.5)), []
    ax = fig.subplots()
    for name, t in table.groupby("method", sort=False):
        kind, t = style(name), t.sort_values(x)
        if t[x].isna().all():
            for _, row in t.iterrows():
                ax.axhline(row["mean"], color=kind["color"], ls=kind["linestyle"], lw=1.2)
                ends.append((row["mean"], row["label"], kind["color"]))
            continue
        for c in seed_columns(t):
            ax.plot(t[x], t[c], **kind | {"linestyle": "none"}, ms=3.5, alpha=0.45, mew=0)
        ax.errorbar(t[x], t["mean"], yerr=t["sd"].fillna(0), capsize=3, elinewidth=1.1, **kind)
        ends.append((t["mean"].iloc[-1], method_class(name).title, kind["color"]))
    ticks = sorted(table[x].dropna().unique())
    if log:
        ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{v:g}" for v in ticks])
    ax.set(
        xlabel=f"{xlabel} (every seed a dot, {count(table[table['method'] != ''])})",
        ylabel="test accuracy (%)",
    )
    end_labels(ax, ends)
    return fig


def emptied(fig: Figure | None, size: tuple[float, float], *shape: int, **given):
    """(figure, its axes): a new one, or `fig` emptied, as axes take longer to make than to fill."""
    if fig is None:
        fig = Figure(figsize=size)
        fig.subplots(*shape, **given)
    for ax in fig.axes:
        for old in (*ax.lines, *ax.collections, *ax.images, *ax.texts):
            old.remove()
    return fig, fig.axes


def live(ax, *still) -> None:
    """Mark all but `still` as what `plots.html` draws again when it shows the figure again."""
    for part in ax.get_children():
        part.set_animated(part not in (ax.patch, *still))


def matrix(ax, A: np.ndarray, cmap: str, middle: float, reach: float) -> None:
    """A matrix of peers, its values written in; colours reach from middle - reach to + reach."""
    ax.imshow(A, cmap=cmap, vmin=middle - reach, vmax=middle + reach)
    ax.grid(False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(range(len(A)), range(1, len(A) + 1))
    for (a, b), v in np.ndenumerate(A):
        text = f"{v:{'' if middle else '+'}.{3 if len(A) < 5 else 2}f}" if v or middle else "0"
        dark = v - middle > 0.3 * reach or (not middle and v < -0.6 * reach)
        ax.text(
            b,
            a,
            text.replace("-", "−"),
            ha="center",
            va="center",
            fontsize=8.5 if len(A) < 5 else 6.5,
            color="white" if dark else INK,
        )
    live(ax, ax.xaxis, ax.yaxis)


@look()
def draw_matrices(panels: list[tuple[str, np.ndarray]], fig=None) -> Figure:
    """Attention A (n, n) above and its asymmetry A - A^T below, for each (title, A)."""
    side = max(1.75, 0.42 * len(panels[0][1]))  # so that the values can be read
    size = 1.4 + side * len(panels), 0.8 + 2 * side
    fig, axes = emptied(fig, size, 2, len(panels), sharex=True, sharey=True)
    axes = np.reshape(axes, (2, -1))
    half = max(2 / len(panels[0][1]), *(A.max() for _, A in panels)) / 2
    wide = max(0.01, *(np.abs(A - A.T).max() for _, A in panels))
    for k, (title, A) in enumerate(panels):
        matrix(axes[0, k], A, "Blues", half, half)
        matrix(axes[1, k], A - A.T, "PuOr", 0, wide)
        axes[0, k].set_title(title)
    fig.supxlabel("peer $b$ that is learned from", fontsize=9.5)
    axes[0, 0].set_ylabel("learning peer $a$: $A_{ab}$")
    axes[1, 0].set_ylabel("learning peer $a$: $A_{ab} - A_{ba}$")
    return fig


def draw_attention(table: pd.DataFrame, epochs: int = 4) -> Figure:
    """Attention matrices of the first seed over training, and what is asymmetric in them.
    table: of `tables.attention`."""
    t = table[(table["label"] == table["label"].iloc[0]) & (table["seed"] == table["seed"].min())]
    at = np.unique(np.linspace(1, t["epoch"].max(), epochs).round())
    return draw_matrices(
        [
            (
                f"epoch {int(e)}",
                t[t["epoch"] == e]
                .pivot(index="peer", columns="source", values="attention")
                .to_numpy(),
            )
            for e in at
        ]
    )


@look()
def draw_ensembles(table: pd.DataFrame) -> Figure:
    """Single students and their ensemble, and the gain against the peers' diversity.
    table: of `tables.ensembles`."""
    fig = Figure(figsize=(9.2, max(3.2, 0.9 + 0.4 * len(table))))
    a, b = fig.subplots(1, 2, width_ratios=(1.15, 1))
    for y, (_, row) in enumerate(table.iterrows()):
        kind = style(row["method"]) | {"linestyle": "none"}
        a.annotate(
            "",
            (row["ensemble"], y),
            (row["single"], y),
            arrowprops={"arrowstyle": "-|>", "color": kind["color"], "lw": 1.6},
        )
        a.plot(row["single"], y, **kind | {"markerfacecolor": "white"})
        a.plot(row["ensemble"], y, **kind)
        beside(a, y, said(row["mean"], row["sd"], "+"))
        b.errorbar(row["diversity"], row["mean"], np.nan_to_num(row["sd"]), **kind, capsize=3)
    a.set_yticks(range(len(table)), [fill(text, 30) for text in table["label"]])
    a.set(
        ylim=(len(table) - 0.4, -0.6),
        xlabel=f"test accuracy (%), {count(table)}",
        title="Mean single student (hollow) → ensemble",
    )
    b.set(
        xlabel="diversity of the peers",
        ylabel="gain of the ensemble (points)",
        title="Does diversity pay?",
    )
    ends = [(r["mean"], r["label"], style(r["method"])["color"]) for _, r in table.iterrows()]
    end_labels(b, ends, table["diversity"].tolist())
    return fig


@look()
def draw_correlation(table: pd.DataFrame) -> Figure:
    """Correlation number of teacher, students and collection. table: of `tables.correlation`."""
    fig = Figure(figsize=(7.6, 3.2))
    axes = fig.subplots(1, table["T"].nunique(), sharey=True, squeeze=False)[0]
    for ax, (T, t) in zip(axes, table.groupby("T", sort=False), strict=True):
        for k, (_, row) in enumerate(t.iterrows()):
            ax.bar(k, row["mean"], color=BARS[k], width=0.62, yerr=np.nan_to_num(row["sd"]))
            values = row[seed_columns(t)].dropna().astype(float)
            ax.plot([k] * len(values), values, "o", color=INK, markersize=3, alpha=0.7)
            ax.annotate(
                f"{row['mean']:.3f}",
                (k, max(values)),
                (0, 9),
                ha="center",
                fontsize=9,
                textcoords="offset points",
            )
        ax.set_xticks(range(len(t)), t["who"])
        ax.set_title(f"T = {T:g}")
        ax.grid(axis="x", visible=False)
        ax.margins(y=0.16)
    axes[0].set_ylabel("classes above 1/K, mean")
    fig.supxlabel(f"every seed a dot, {count(table)}", fontsize=9)
    return fig


@look()
def draw_distributions(table: pd.DataFrame) -> Figure:
    """Distributions with their entropy and correlation number. table: `tables.distributions`."""
    fig = Figure(figsize=(7.6, 2.9))
    axes = fig.subplots(1, table["distribution"].nunique(), sharey=True, squeeze=False)[0]
    for ax, (name, t) in zip(axes, table.groupby("distribution", sort=False), strict=True):
        tones = np.where(t["p"] > 1 / len(t), "#bd1f01", "#b0b0b0")
        ax.bar(t["class"], t["p"], color=tones, width=0.7)
        ax.axhline(1 / len(t), **DASHED)
        ax.text(len(t) - 0.5, 1 / len(t) + 0.01, "1/K", ha="right", va="bottom", fontsize=9)
        H, number = t[["entropy", "correlation_number"]].iloc[0]
        ax.set_title(f"{name}: entropy {H:.2f} nats, correlation number {number:g}")
        ax.set(xlabel="class", xticks=t["class"])
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel("probability")
    return fig


@look()
def draw_reliability(table: pd.DataFrame) -> Figure:
    """Accuracy against confidence, a panel for each kind of run; bars' strength is their share of
    the predictions, below one in a thousand they are left out. table: of `tables.reliability`."""
    n = table["label"].nunique()
    across, down = min(3, n), -(-n // 3)
    fig = Figure(figsize=(2.7 * across + 0.4, 2.5 * down + 0.3))
    axes = fig.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, (name, t) in zip(axes, table.groupby("label", sort=False), strict=False):
        t = t[t["share"] >= 0.001]
        weight = 0.25 + 0.7 * t["share"] / t["share"].max()
        c = to_rgb(style(t["method"].iloc[0])["color"])
        ax.bar((t["bin"] + 0.5) / 10, t["accuracy"], width=0.092, color=[(*c, w) for w in weight])
        ax.plot(t["confidence"], t["accuracy"], color=INK, marker="o", markersize=3, lw=1)
        ax.plot([0, 1], [0, 1], **DASHED)
        ax.set(title=f"{name}: ECE {t['ece'].iloc[0]:.3f}", xlim=(0, 1), ylim=(0, 1.02))
    for ax in axes[n:]:
        ax.set_visible(False)
    fig.supxlabel(f"confidence ({count(table)}; dashed: perfect)", fontsize=9.5)
    fig.supylabel("accuracy", fontsize=9.5)
    return fig


def _bars(ax, title: str, rows: list[tuple[str, np.ndarray, str]], names: list[str]) -> None:
    """Distributions over classes side by side: (label, p (K,), colour), a line at 1/K. Colours
    should differ in lightness."""
    K, wide = len(names), 0.8 / len(rows)
    for k, (label, p, c) in enumerate(rows):
        sides = (np.array([0.04, 0.04, 0.96, 0.96]) + k - len(rows) / 2) * wide
        x, y = np.add.outer(np.arange(K), sides), np.outer(p, [0, 1, 1, 0])  # (K, 4) each
        ax.add_collection(PolyCollection(np.stack([x, y], -1), label=label, fc=c, lw=0))
    ax.axhline(1 / K, **DASHED)
    ax.text(K - 0.45, 1 / K, "1/K", fontsize=9, va="bottom", ha="left")
    if K <= 20:
        ax.set_xticks(range(K), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)
    top = 1.08 * max(np.max(p) for _, p, _ in rows)
    ax.set(
        xlim=(-0.6, K - 0.4),
        yticks=MaxNLocator(4).tick_values(0, top),
        ylim=(0, top),
        ylabel="probability",
        title=title,
    )
    ax.yaxis.set_major_formatter("{x:.2f}")  # as wide always: the layout stays
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(rows), fontsize=9, borderpad=0)
    live(ax, ax.xaxis)


@look()
def _predictions(title: str, rows, names: list[str], fig) -> Figure:
    fig, (ax,) = emptied(fig, (8.4, 3.3))
    _bars(ax, title, rows, names)
    return fig


def draw_temperature(z_T, z, T: float, names: list[str], fig=None) -> Figure:
    """Softened predictions of teacher z_T (K,) and student z (K,) at temperature T."""
    rows = [
        ("teacher", metrics.softmax(z_T, T), BARS[0]),
        ("student", metrics.softmax(z, T), BARS[1]),
    ]
    return _predictions(f"T = {T:g}", rows, names, fig)


def draw_collection(z, m, student: int, tau: float, names: list[str], fig=None) -> Figure:
    """What the students z (S, K) say of one image, and what `student` receives: softmax(m/tau),
    m (K,)."""
    rows = [
        (
            f"student {k + 1}{', learning' if k == student else ''}",
            metrics.softmax(v, tau),
            BARS[1] if k == student else "#bdd5ee",
        )
        for k, v in enumerate(z)
    ]
    rows.append(("received", metrics.softmax(m, tau), BARS[2]))
    return _predictions(f"tau = {tau:g}", rows, names, fig)


@look()
def draw_class_map(
    student, teacher, of: int, peak: int, images, names: list[str], like=(), fig=None
) -> Figure:
    """Class maxima (K,) of student and teacher over the images of class `of`, and below them the
    `images` (n, C, H, W) uint8 behind the student's peak, beside images `like` of that class."""
    fig, (ax, below) = emptied(fig, (8.4, 4.7), 2, 1, height_ratios=(2.4, 1))
    ax.annotate(
        "peak",
        (peak, max(student[peak], teacher[peak])),
        (0, 16),
        ha="center",
        fontsize=9,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-|>", "color": INK},
    )
    _bars(
        ax,
        f"Largest probability over all test images of: {names[of]}",
        [("teacher", teacher, BARS[0]), ("student", student, BARS[1])],
        names,
    )
    strip = [
        np.pad(v, ((0, 0), (0, 0), (0, len(v[0]) // 4)), constant_values=255 * (len(v) > 1))
        for v in [*images, *like]
    ]  # as one picture: an ax for each takes as long as the bars
    picture(below, np.concatenate(strip, -1))
    below.text(0, -2, f"{names[of]}, most like {names[peak]}:", fontsize=9)
    if len(like):
        at = len(images) * strip[0].shape[-1]
        below.text(at, -2, f"{names[peak]}, for comparison:", fontsize=9)
    below.apply_aspect()  # there may be more images than before
    live(below, below.xaxis, below.yaxis, *below.spines.values())  # which it does not show
    return fig


def picture(ax, image) -> None:
    """One image (C, H, W), without axes."""
    image = np.asarray(image)
    ax.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray_r")
    ax.set_axis_off()
