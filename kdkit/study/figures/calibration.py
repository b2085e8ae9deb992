"""Is a network right as often as it is sure? Reliability and the expected calibration error."""

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ... import metrics
from ..store import Record
from . import tables
from .index import figure
from .style import DASHED, TEXT_COLOUR, kdkit_style, method_style
from .tables import count_text, each_row, seeds_text

BINS = 10  # of confidence, as drawn; the expected calibration error has metrics' own


def reliability_table(records: list[Record]) -> pd.DataFrame:
    """For each kind of run and bin of confidence: mean confidence and accuracy (fractions of 1),
    the share of predictions in it, and the run's expected calibration error `ece`."""
    rows = []
    for name, group in tables.grouped(records).items():
        confidence, correct, errors = [], [], []
        for record in group:
            deployed = record.result["deployed"]  # a student's number; None: any of them
            students = slice(None) if deployed is None else slice(deployed, deployed + 1)
            p = metrics.softmax(record.logits()[0][students])  # (m or 1, N, K)
            labels = record.labels  # (N,)
            confidence.append(p.max(-1).ravel())
            correct.append((p.argmax(-1) == labels).ravel())
            errors.append(np.mean(record.result["calibration_error"][students]))
        confidence, correct = np.concatenate(confidence), np.concatenate(correct)
        bins = metrics.confidence_bins(confidence, BINS)
        for number in np.unique(bins):
            inside = bins == number
            rows.append(
                {
                    "method": group[0].run.method,
                    "label": name,
                    "bin": int(number),
                    "confidence": confidence[inside].mean(),
                    "accuracy": correct[inside].mean(),
                    "share": float(inside.mean()),
                    "ece": np.mean(errors),
                    "n": len(group),
                }
            )
    return tables.frame(rows, records)


@kdkit_style()
def draw_reliability(table: pd.DataFrame) -> Figure:
    """Accuracy against confidence, a panel for each kind of run.

    The strength of a bar is its share of the predictions; below one in a thousand it is left out.
    table: of `reliability_table`.
    """
    n = table["label"].nunique()
    across, down = min(3, n), -(-n // 3)
    fig = Figure(figsize=(2.7 * across + 0.4, 2.5 * down + 0.3))
    axes = fig.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, (name, rows) in zip(axes, table.groupby("label", sort=False), strict=False):
        rows = rows[rows["share"] >= 0.001]
        strength = 0.25 + 0.7 * rows["share"] / rows["share"].max()
        rgb = to_rgb(method_style(rows["method"].iloc[0])["color"])
        colours = [(*rgb, alpha) for alpha in strength]
        ax.bar((rows["bin"] + 0.5) / BINS, rows["accuracy"], width=0.092, color=colours)
        line = {"color": TEXT_COLOUR, "marker": "o", "markersize": 3, "lw": 1}
        ax.plot(rows["confidence"], rows["accuracy"], **line)
        ax.plot([0, 1], [0, 1], **DASHED)
        ax.set(title=f"{name}: ECE {rows['ece'].iloc[0]:.3f}", xlim=(0, 1), ylim=(0, 1.02))
    for ax in axes[n:]:
        ax.set_visible(False)
    fig.supxlabel(f"confidence ({count_text(table)}; dashed: perfect)", fontsize=9.5)
    fig.supylabel("accuracy", fontsize=9.5)
    return fig


def say_reliability(table: pd.DataFrame) -> list[str]:
    """Each calibration error, and which way it errs. table: of `reliability_table`."""
    sentences = []
    for name, rows in table.groupby("label", sort=False):
        gaps = rows["share"] * (rows["confidence"] - rows["accuracy"])
        gap = float(gaps.sum() / rows["share"].sum())
        sentences.append(
            f"{name} is {100 * abs(gap):.1f} points {'over' if gap > 0 else 'under'}"
            f"confident on average; expected calibration error {rows['ece'].iloc[0]:.3f}."
        )
    firsts = table.drop_duplicates("label")
    best = firsts.loc[firsts["ece"].idxmin(), "label"]
    return [
        f"Accuracy against confidence; expected calibration errors over {seeds_text(table)}: "
        f"{each_row(firsts, '{label} {ece:.3f}')}.",
        *sentences,
        f"The smallest error is {best}'s.",
    ]


@figure(
    "calibration",
    notebook="09",
    runs=[{"method": m} for m in ("baseline", "kd", "ind", "one", "okddip", "dckd")],
    whole=True,
)
class Calibration:
    table = reliability_table
    draw = draw_reliability
    say = say_reliability
