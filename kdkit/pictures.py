"""Tables in, figures out: one style sheet, one look for each method, no pyplot, no state.

Every `draw_*` is a pure function that returns a matplotlib Figure; nothing is shown or written.
"""

import threading
from contextlib import contextmanager
from pathlib import Path

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib import color_sequences
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import metrics
from .methods import method_class, methods
from .tables import seed_columns

STYLE = Path(__file__).with_name("assets") / "kdkit.mplstyle"
ORDER = (8, 1, 3, 4, 5, 9, 2, 7, 0, 6)  # of petroff10: neighbours in the registry differ most
MARKERS, LINES = "osD^vPX<>*ph", ("-", "--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1, 1, 1)))
TEACHER, INK, FAINT = "#111111", "#333333", "#b0b0b0"
_LOCK = threading.RLock()  # matplotlib's settings are global; widgets draw on threads of their own


@contextmanager
def look():
    """kdkit's style over matplotlib's defaults, for the time of a `with` or of a function."""
    with _LOCK, matplotlib.style.context(["default", STYLE]):
        yield


def colour(name: str) -> str:
    """The method's own colour, by its place in the registry; "" is the teacher."""
    if not name:
        return TEACHER
    index = methods().index(method_class(name).name)
    tone, shade = to_rgb(color_sequences["petroff10"][ORDER[index % 10]]), 0.62 ** (index // 10)
    return "#" + "".join(f"{round(255 * v * shade):02x}" for v in tone)


def style(name: str) -> dict:
    """Keywords for `plot`: the method's colour, marker and kind of line."""
    index = methods().index(method_class(name).name) if name else -1
    return {"color": colour(name), "marker": MARKERS[index % len(MARKERS)] if name else "*",
            "linestyle": LINES[index % len(LINES)] if name else (0, (4, 2))}


def ink(c: str) -> tuple[float, ...]:
    """A colour dark enough for text on white."""
    rgb = np.array(to_rgb(c))
    return tuple(rgb * min(1.0, 0.42 / (rgb @ [0.299, 0.587, 0.114] + 1e-9)))


def end_labels(ax, labels: list[tuple[float, str, str]]) -> None:
    """Text in its line's colour at the right end of each line (y, text, colour), not overlapping;
    a hairline leads back to the end where a label had to move."""
    low, high = ax.get_ylim()
    place = ax.get_position()
    gap = 12.5 / 72 / (ax.figure.get_figheight() * place.height * 0.92)  # one line of text
    at = [(y - low) / (high - low) for y, _, _ in labels]
    order = np.argsort(at, kind="stable")
    moved = [at[i] for i in order]
    for _ in range(200):  # push overlapping neighbours apart, evenly
        for k in range(len(moved) - 1):
            lack = gap - (moved[k + 1] - moved[k])
            if lack > 1e-6:
                moved[k], moved[k + 1] = moved[k] - lack / 2, moved[k + 1] + lack / 2
    for i, new in zip(order, moved, strict=True):
        ax.annotate(labels[i][1], (1, at[i]), (1.035, new), xycoords="axes fraction", va="center",
                    fontsize=9, color=ink(labels[i][2]), annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": labels[i][2], "lw": 0.7,
                                "shrinkA": 1, "shrinkB": 0})


def count(table: pd.DataFrame) -> str:
    """How many seeds stand behind a table: "n = 3"."""
    n = sorted({int(v) for v in table["n"]})
    return f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"


def shown(d: float, half: float) -> dict:
    """A marker is filled where the difference is outside its interval, else hollow."""
    return {} if abs(d) > half else {"markerfacecolor": "white"}


@look()
def draw_curves(table: pd.DataFrame, panels: dict[str, list[str]]) -> Figure:
    """Quantities over epochs: mean, a band of one deviation over the seeds, labels at the ends.

    table: of `tables.curves`; panels: title of a panel -> its quantities.
    """
    fig = Figure(figsize=(8.4 if len(panels) > 1 else 6.6, 3.4))
    for ax, (title, names) in zip(np.ravel(fig.subplots(1, len(panels))), panels.items(),
                                  strict=True):
        ends, mine = [], table[table["quantity"].isin(names)]
        for k, ((label, what), t) in enumerate(mine.groupby(["label", "quantity"], sort=False)):
            kind = style(t["method"].iloc[0])
            if len(names) > 1:  # one method, several quantities: the line's kind tells them apart
                kind |= {"linestyle": LINES[names.index(what)], "marker": MARKERS[k]}
            ax.plot(t["epoch"], t["mean"], **kind, markevery=max(1, len(t) // 8), markersize=4.5)
            sd = t["sd"].fillna(0)
            ax.fill_between(t["epoch"], t["mean"] - sd, t["mean"] + sd, color=kind["color"],
                            alpha=0.18, lw=0)
            text = what.split(" (")[0] if len(names) > 1 else label
            ends.append((t["mean"].iloc[-1], text, kind["color"]))
        ax.set(xlabel=f"epoch ({count(mine)})", title=title)
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
        values = row[seed_columns(table)].dropna().astype(float)
        a.plot(values, [y] * len(values), **kind, alpha=0.6, markersize=5, mew=0)
        a.plot(row["mean"], y, "|", color=ink(kind["color"]), markersize=15, mew=2.2)
        if row["n"] > 1:
            a.errorbar(row["mean"], y, xerr=row["sd"], color=kind["color"], lw=1.6)
        if not row["method"]:
            a.axvline(row["mean"], color=TEACHER, lw=0.8, ls=(0, (4, 3)), zorder=0)
        said = f"{row['mean']:.2f}" + (f" ± {row['sd']:.2f}" if row["n"] > 1 else "")
        a.text(1.03, y, said, transform=a.get_yaxis_transform(), va="center", fontsize=9)
        if row["control"]:
            d, half = row["difference"], row["half_width"]
            wide = 0 if np.isnan(half) else half
            b.errorbar(d, y, xerr=wide, **kind | shown(d, half), capsize=3, lw=1.4,
                       alpha=1 if abs(d) > half else 0.55)
            said = f"{d:+.2f}" + (f" ± {half:.2f}" if half == half else "")
            b.text(1.03, y, f"{said} vs {row['control']}", transform=b.get_yaxis_transform(),
                   va="center", fontsize=9, color=INK if abs(d) > half else "#777777")
    b.axvline(0, color=INK, lw=0.9, zorder=0)
    a.set_yticks(range(len(table)), table["label"])
    a.set(ylim=(len(table) - 0.4, -0.6), xlabel=f"{unit}, {count(table[table['method'] != ''])}",
          title="Every seed, mean ± deviation")
    b.set(xlabel="points, paired by seed; hollow: not shown", title="Difference, 95 % interval")
    b.tick_params(axis="y", labelleft=False)
    a.margins(x=0.08)
    return fig


@look()
def draw_sweep(table: pd.DataFrame, x: str, xlabel: str, log: bool = False) -> Figure:
    """Accuracy against a field of the method, a line a method; rows without the field are level
    lines. table: of `tables.accuracy` with a column `x`."""
    fig = Figure(figsize=(6.8, 3.5))
    ax, ends = fig.subplots(), []
    for name, t in table.groupby("method", sort=False):
        kind, t = style(name), t.sort_values(x)
        if t[x].isna().all():
            for _, row in t.iterrows():
                ax.axhline(row["mean"], color=kind["color"], ls=kind["linestyle"], lw=1.2)
                ends.append((row["mean"], row["label"], kind["color"]))
            continue
        for c in seed_columns(t):
            ax.plot(t[x], t[c], color=kind["color"], marker=kind["marker"], ls="none",
                    markersize=3.5, alpha=0.45, mew=0)
        ax.errorbar(t[x], t["mean"], yerr=t["sd"].fillna(0), capsize=3, elinewidth=1.1, **kind)
        ends.append((t["mean"].iloc[-1], method_class(name).title, kind["color"]))
    ticks = sorted(table[x].dropna().unique())
    if log:
        ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [f"{v:g}" for v in ticks])
    ax.set(xlabel=f"{xlabel} ({count(table[table['method'] != ''])}; bars: one deviation)",
           ylabel="test accuracy (%)")
    end_labels(ax, ends)
    return fig


def matrix(ax, A: np.ndarray, signed: bool, high: float):
    """A matrix of peers with its values written in."""
    shade = ax.imshow(A, cmap="PuOr" if signed else "Blues", vmin=-high if signed else 0, vmax=high)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ticks = range(len(A))
    ax.set_xticks(ticks, [k + 1 for k in ticks])
    ax.set_yticks(ticks, [k + 1 for k in ticks])
    ax.tick_params(length=0)
    for (a, b), v in np.ndenumerate(A):
        ax.text(b, a, f"{v:+.2f}" if signed else f"{v:.2f}", ha="center", va="center",
                fontsize=9 if len(A) < 5 else 7, color="white" if abs(v) > 0.62 * high else INK)
    return shade


def _attention(panels: list[tuple[str, np.ndarray]]) -> Figure:
    """A above, A - A^T below, for each (title, A)."""
    fig = Figure(figsize=(1.4 + 1.75 * len(panels), 4.3))
    axes = fig.subplots(2, len(panels), squeeze=False, sharex=True, sharey=True)
    high = max(A.max() for _, A in panels)
    wide = max(max(np.abs(A - A.T).max() for _, A in panels), 1e-3)
    for k, (title, A) in enumerate(panels):
        top, low = matrix(axes[0, k], A, False, high), matrix(axes[1, k], A - A.T, True, wide)
        axes[0, k].set_title(title)
    axes[0, 0].set_ylabel("learning peer $a$")
    axes[1, 0].set_ylabel("learning peer $a$")
    fig.supxlabel("peer $b$ that is learned from", fontsize=9.5)
    fig.colorbar(top, ax=axes[0, :], label="$A_{ab}$", shrink=0.85)
    fig.colorbar(low, ax=axes[1, :], label="$A_{ab} - A_{ba}$", shrink=0.85)
    return fig


@look()
def draw_attention(table: pd.DataFrame, epochs: int = 4) -> Figure:
    """Attention matrices of the first seed over training, and what is asymmetric in them.
    table: of `tables.attention`."""
    t = table[(table["label"] == table["label"].iloc[0]) & (table["seed"] == table["seed"].min())]
    at = np.unique(np.linspace(1, t["epoch"].max(), epochs).round())
    return _attention([(f"epoch {int(e)}", t[t["epoch"] == e].pivot(
        index="peer", columns="source", values="attention").to_numpy()) for e in at])


@look()
def draw_attention_at(A: np.ndarray, epoch: int) -> Figure:
    """One attention matrix (n, n) and its asymmetry."""
    return _attention([(f"epoch {epoch}", np.asarray(A, float))])


@look()
def draw_ensembles(table: pd.DataFrame) -> Figure:
    """Single students and their ensemble, and the gain against the peers' diversity.
    table: of `tables.ensembles`."""
    fig = Figure(figsize=(9.2, max(3.2, 0.9 + 0.4 * len(table))))
    a, b = fig.subplots(1, 2, width_ratios=(1.15, 1))
    for y, (_, row) in enumerate(table.iterrows()):
        kind = style(row["method"]) | {"linestyle": "none"}
        a.annotate("", (row["ensemble"], y), (row["single"], y),
                   arrowprops={"arrowstyle": "-|>", "color": kind["color"], "lw": 1.6})
        a.plot(row["single"], y, **kind | {"markerfacecolor": "white"})
        a.plot(row["ensemble"], y, **kind)
        a.text(1.03, y, f"{row['mean']:+.2f}", transform=a.get_yaxis_transform(), va="center",
               fontsize=9)
        b.errorbar(row["diversity"], row["mean"], yerr=0 if row["n"] < 2 else row["sd"], **kind,
                   capsize=3, lw=1.2)
    a.set_yticks(range(len(table)), table["label"])
    a.set(ylim=(len(table) - 0.4, -0.6), xlabel=f"test accuracy (%), {count(table)}",
          title="Mean single student (hollow) → ensemble")
    a.margins(x=0.08)
    b.margins(x=0.12, y=0.15)
    b.set(xlabel="diversity of the peers", ylabel="gain of the ensemble (points)",
          title="Does diversity pay?")
    end_labels(b, [(r["mean"], r["label"], colour(r["method"])) for _, r in table.iterrows()])
    return fig


@look()
def draw_correlation(table: pd.DataFrame) -> Figure:
    """Correlation number of teacher, students and collection. table: of `tables.correlation`."""
    temperatures = table["T"].unique()
    fig = Figure(figsize=(7.6, 3.2))
    for ax, T in zip(np.ravel(fig.subplots(1, len(temperatures))), temperatures, strict=True):
        for k, (_, row) in enumerate(table[table["T"] == T].iterrows()):
            c = (TEACHER, color_sequences["petroff10"][0], color_sequences["petroff10"][1])[k % 3]
            ax.bar(k, row["mean"], color=c, alpha=0.75, width=0.62, hatch=("", "//", "..")[k % 3],
                   edgecolor="white", yerr=None if row["n"] < 2 else row["sd"], capsize=4)
            values = row[seed_columns(table)].dropna().astype(float)
            ax.plot([k] * len(values), values, "o", color=INK, markersize=3, alpha=0.7)
            ax.annotate(f"{row['mean']:.3f}", (k, row["mean"]), (0, 9), ha="center", fontsize=9,
                        textcoords="offset points")
        ax.set_xticks(range(len(table[table["T"] == T])), table[table["T"] == T]["who"])
        ax.set(title=f"T = {T:g}", ylabel="classes above 1/K, mean" if T == temperatures[0] else "")
        ax.grid(axis="x", visible=False)
        ax.margins(y=0.16)
    fig.supxlabel(f"{count(table)}; bars: one deviation over seeds", fontsize=9)
    return fig


@look()
def draw_distributions(table: pd.DataFrame) -> Figure:
    """Distributions with their entropy and correlation number. table: `tables.distributions`."""
    names = table["distribution"].unique()
    fig = Figure(figsize=(7.6, 2.9))
    for ax, name in zip(np.ravel(fig.subplots(1, len(names), sharey=True)), names, strict=True):
        t = table[table["distribution"] == name]
        above = t["p"] > 1 / len(t)
        ax.bar(t["class"], t["p"], color=np.where(above, "#bd1f01", FAINT), width=0.72)
        ax.axhline(1 / len(t), color=INK, lw=0.9, ls=(0, (4, 3)))
        ax.text(len(t) - 0.5, 1 / len(t) + 0.01, "1/K", ha="right", va="bottom", fontsize=9)
        ax.set_xticks(t["class"])
        ax.set(xlabel="class", title=f"{name}: entropy {t['entropy'].iloc[0]:.2f} nats, "
                                     f"correlation number {t['correlation_number'].iloc[0]}")
        ax.grid(axis="x", visible=False)
    fig.axes[0].set_ylabel("probability")
    return fig


@look()
def draw_reliability(table: pd.DataFrame) -> Figure:
    """Accuracy against confidence, a panel for each kind of run; bars' strength is their share of
    the predictions. table: of `tables.reliability`."""
    labels = list(table["label"].unique())
    columns = min(3, len(labels))
    rows = -(-len(labels) // columns)
    fig = Figure(figsize=(2.7 * columns + 0.4, 2.5 * rows + 0.3))
    axes = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, name in zip(axes, labels, strict=False):
        t = table[table["label"] == name]
        weight, c = 0.25 + 0.7 * t["share"] / t["share"].max(), to_rgb(colour(t["method"].iloc[0]))
        ax.bar((t["bin"] + 0.5) / 10, t["accuracy"], width=0.092, color=[(*c, w) for w in weight])
        ax.plot(t["confidence"], t["accuracy"], color=INK, marker="o", markersize=3, lw=1)
        ax.plot([0, 1], [0, 1], color=INK, lw=0.9, ls=(0, (4, 3)))
        ax.set(title=f"{name}: ECE {t['ece'].iloc[0]:.3f}", xlim=(0, 1), ylim=(0, 1))
    for ax in axes[len(labels):]:
        ax.set_visible(False)
    fig.supxlabel(f"confidence ({count(table)}; dashed: perfect)", fontsize=9.5)
    fig.supylabel("accuracy", fontsize=9.5)
    return fig


def _bars(ax, rows: list[tuple[str, np.ndarray, str, str]], names: list[str]) -> None:
    """Distributions over classes side by side: (label, p (K,), colour, hatch), a line at 1/K."""
    K, wide = len(names), 0.8 / len(rows)
    for k, (label, p, c, hatch) in enumerate(rows):
        at = np.arange(K) + (k - (len(rows) - 1) / 2) * wide
        ax.bar(at, p, wide * 0.92, color=c, label=label, hatch=hatch, edgecolor="white")
    ax.axhline(1 / K, color=INK, lw=0.9, ls=(0, (4, 3)))
    ax.text(K - 0.45, 1 / K, "1/K", fontsize=9, va="bottom", ha="left")
    if K <= 20:
        ax.set_xticks(range(K), names, rotation=30, ha="right", rotation_mode="anchor")
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-0.6, K - 0.4)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(rows), fontsize=9, borderpad=0)


@look()
def draw_temperature(z_T, z, T: float, names: list[str]) -> Figure:
    """Softened predictions of teacher z_T (K,) and student z (K,) at temperature T."""
    p, q = (metrics.softmax(np.asarray(v, np.float64), T) for v in (z_T, z))
    fig = Figure(figsize=(7.8, 3.2))
    ax = fig.subplots()
    _bars(ax, [("teacher", p, "#555555", ""), ("student", q, "#ffa90e", "//")], names)
    ax.set(ylabel="probability", title=f"T = {T:g}")
    return fig


@look()
def draw_collection(z, m, student: int, tau: float, names: list[str]) -> Figure:
    """What the students z (S, K) say of one image, and what `student` receives: softmax(m/tau),
    m (K,)."""
    blues = ("#3f90da", "#832db6", "#92dadd", "#717581", "#a96b59", "#b9ac70")
    rows = [(f"student {k + 1}{', learning' if k == student else ''}", metrics.softmax(v, tau),
             blues[k % 6], "" if k == student else "//") for k, v in enumerate(z)]
    fig = Figure(figsize=(8.4, 3.4))
    ax = fig.subplots()
    _bars(ax, [*rows, ("received", metrics.softmax(m, tau), "#ffa90e", "..")], names)
    ax.set(ylabel="probability", title=f"tau = {tau:g}")
    return fig


@look()
def draw_class_map(student, teacher, of: int, peak: int, images, names: list[str],
                   like=()) -> Figure:
    """Class maxima (K,) of student and teacher over the images of class `of`, and below them the
    `images` (n, C, H, W) uint8 behind the student's peak, beside images `like` of that class."""
    n = len(images) + len(like)
    fig = Figure(figsize=(8.4, 4.7))
    grid = fig.add_gridspec(2, max(n, 1), height_ratios=(2.1, 1))
    ax = fig.add_subplot(grid[0, :])
    _bars(ax, [("teacher", teacher, "#555555", ""), ("student", student, "#ffa90e", "//")], names)
    ax.set(ylabel="largest probability", title=f"Over all test images of: {names[of]}")
    for k, image in enumerate([*images, *like]):
        cell = fig.add_subplot(grid[1, k])
        picture(cell, image)
        if k in (0, len(images)):
            cell.set_title(f"{names[of]}, most like {names[peak]}:" if k == 0 else
                           f"{names[peak]}, for comparison:", fontsize=9)
    return fig


def picture(ax, image) -> None:
    """One image (C, H, W), without axes."""
    image = np.asarray(image)
    ax.imshow(image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray_r")
    ax.set_axis_off()


@look()
def draw_images(images, names: list[str]) -> Figure:
    """Images (n, C, H, W) in a row, each under its name."""
    fig = Figure(figsize=(max(2.0, 0.95 * len(images)), 1.35))
    for ax, image, name in zip(np.ravel(fig.subplots(1, len(images))), images, names, strict=True):
        picture(ax, image)
        ax.set_title(name, fontsize=8, loc="center", pad=3)
    return fig


@look()
def draw_progress(history: list[dict], title: str) -> Figure:
    """The curve of one run, finished or not: unweighted loss terms, training and probe accuracy."""
    fig = Figure(figsize=(8.4, 2.9))
    a, b = fig.subplots(1, 2)
    epochs = [row["epoch"] + 1 for row in history]
    for ax, series in ((a, {k: [row["terms"][k] for row in history]
                            for k in (history[0]["terms"] if history else ())}),
                       (b, {name: [np.mean(row[key]) for row in history] for name, key in
                            (("training", "train_top1"), ("probe", "probe_top1")) if history})):
        ends = []
        for k, (name, values) in enumerate(series.items()):
            line, = ax.plot(epochs, values, ls=LINES[k % 5], marker=MARKERS[k], markersize=3.5)
            ends.append((values[-1], name, line.get_color()))
        ax.set(xlabel="epoch")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        end_labels(ax, ends)
    a.set_title("Loss terms, without weights")
    b.set_title("Accuracy (%)")
    fig.suptitle(title)
    return fig
