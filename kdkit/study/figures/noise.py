"""What one seed is worth: a change that means nothing, beside other seeds."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .. import statistics
from ..plans import Run
from ..store import Record
from . import tables
from .index import figure
from .style import FAINT_COLOUR, PALETTE, REFERENCE_COLOUR, kdkit_style

NUDGES = 4  # runs beside the first, each with a learning rate that is a millionth larger
SAME, OTHER = "seed {}, rate changed by millionths", "other seeds"


def noise_runs(base: Run) -> list[dict]:
    """Fields of the runs under a preset: labels alone, at five learning rates that are alike."""
    rates = [{"lr": base.lr * (1 + 1e-6 * k)} for k in range(1, NUDGES + 1)]
    return [{"method": "baseline"} | fields for fields in ({}, *rates)]


def noise_table(records: list[Record]) -> pd.DataFrame:
    """A row for each run: its seed, by how many millionths its rate is larger, test accuracy in
    percent, and the epoch (from 1) from which its probe accuracy differs from that of the first
    run of its seed; then a column for the probe accuracy after each epoch."""
    rows, lowest = [], min(record.run.lr for record in records)
    first = {r.run.seed: _probe(r) for r in records if r.run.lr == lowest}
    for record in records:
        curve, seed = _probe(record), record.run.seed
        apart = np.flatnonzero(np.array(curve) != np.array(first.get(seed, curve)))
        rows.append(
            {
                "method": record.run.method,
                "run": seed,
                "millionths": round(1e6 * (record.run.lr / lowest - 1)),
                "accuracy": record.result["top1_deployed"],
                "apart": int(apart[0]) + 1 if len(apart) else 0,
                "n": 1,
                **{f"epoch {e}": value for e, value in enumerate(curve, 1)},
            }
        )
    return tables.frame(rows, records)


def _probe(record: Record) -> list[float]:
    """A record's probe accuracy after each epoch."""
    return [float(np.mean(row["probe_top1"])) for row in record.history]


def _parts(table: pd.DataFrame, reference: pd.DataFrame | None) -> tuple[pd.DataFrame, pd.Series]:
    """The runs of the first seed, and the accuracies of other seeds at the unchanged rate."""
    seed = table["run"].min()
    every = table if reference is None else pd.concat([table, reference])
    other = every[(every["run"] != seed) & (every["millionths"] == 0)].drop_duplicates("run")
    return table[table["run"] == seed], other["accuracy"]


def _first_apart(table: pd.DataFrame) -> int:
    """The first epoch in which any two of these runs differ; 0 where none do."""
    return min(table.loc[table["apart"] > 0, "apart"], default=0)


@kdkit_style()
def draw_noise(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """The curves of one seed at rates that are alike, and where they end, beside other seeds.
    table, reference: of `noise_table`."""
    same, other = _parts(table, reference)
    fig = Figure(figsize=(9.2, 3.5))
    left, right = fig.subplots(1, 2, width_ratios=(1.5, 1))
    curves = same[[name for name in same.columns if name.startswith("epoch ")]].to_numpy(float)
    epochs = np.arange(1, curves.shape[1] + 1)
    for number, curve in enumerate(curves):
        left.plot(epochs, curve, color=PALETTE[number], marker="", ls="-", lw=1.3, alpha=0.85)
    if apart := _first_apart(same):
        left.axvline(apart, color=FAINT_COLOUR, lw=0.8, ls=":")
        left.text(
            apart,
            1.02,
            f" apart from epoch {apart} on",
            fontsize=9,
            transform=left.get_xaxis_transform(),
        )
    left.set(xlabel="epoch", ylabel="probe accuracy (%)")
    left.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for number, value in enumerate(same["accuracy"]):
        right.plot(value, 0, "o", color=PALETTE[number], markersize=7, alpha=0.85)
    right.plot(other, [1] * len(other), "o", color=REFERENCE_COLOUR, markersize=7, mec="#777777")
    names = [SAME.format(table["run"].min()), f"{OTHER} (n = {len(other)})"]
    right.set_yticks([0, 1], [name.replace(", ", ",\n") for name in names])
    right.set(ylim=(1.6, -0.6), xlabel="test accuracy (%)")
    return fig


def say_noise(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> list[str]:
    """How far apart the same seed ends, and how far other seeds."""
    same, other = _parts(table, reference)
    n, mean, sd = statistics.summary(same["accuracy"])
    apart = _first_apart(same)
    sentences = [
        f"{n} runs of one seed whose learning rates differ by millionths: probe accuracies "
        f"{f'differ from epoch {apart} on' if apart else 'never differ'}; test accuracies from "
        f"{same['accuracy'].min():.2f} to {same['accuracy'].max():.2f} %, mean {mean:.2f} %, "
        f"deviation {sd:.2f}."
    ]
    if len(other) > 1:
        n, mean, spread = statistics.summary(other)
        sentences.append(
            f"{n} other seeds at the first rate: mean {mean:.2f} %, deviation {spread:.2f}; the "
            f"same seed spreads {'at least half as far' if sd > spread / 2 else 'less than half'}"
            f"{'' if sd > spread / 2 else ' as far'}."
        )
    return sentences


@figure("noise", notebook="01", runs=noise_runs)
class Noise:
    table = noise_table
    draw = draw_noise
    say = say_noise
