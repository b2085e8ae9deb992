"""What an ensemble of students gains over the single ones, and whether diversity pays."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import statistics
from ..store import Record
from . import tables
from .index import figure
from .style import (
    REFERENCE_COLOUR,
    end_labels,
    kdkit_style,
    margin_text,
    mean_sd_text,
    method_style,
)
from .tables import count_text, each_row, seeds_text, verdict


def ensemble_table(records: list[Record]) -> pd.DataFrame:
    """Groups of students: the mean accuracy of the single peers and that of their ensemble (mean
    logits), both in percent, the peers' diversity, and the ensemble's gain in points (mean, sd and
    the seeds' columns)."""
    rows = []
    for name, group in tables.grouped(records).items():
        single, ensemble = {}, {}
        for record in group:
            peers = record.result["top1"][: record.method.peers()]
            single[record.run.seed] = float(np.mean(peers))
            ensemble[record.run.seed] = record.result["ensemble"]
        gain = {seed: ensemble[seed] - single[seed] for seed in single}
        rows.append(
            {
                "method": group[0].run.method,
                "label": name,
                "single": np.mean(list(single.values())),
                "ensemble": np.mean(list(ensemble.values())),
                "diversity": np.mean([record.result["diversity"] for record in group]),
                **tables.paired(ensemble, single),
                **tables.spread(gain),
            }
        )
    return tables.frame(rows, records)


@kdkit_style()
def draw_ensembles(table: pd.DataFrame, reference: pd.DataFrame | None = None) -> Figure:
    """Single students and their ensemble, and the gain against the peers' diversity.
    table: of `ensemble_table`; reference: likewise, its means in grey beneath."""
    fig = Figure(figsize=(9.2, max(3.2, 0.9 + 0.4 * len(table))))
    left, right = fig.subplots(1, 2, width_ratios=(1.15, 1))
    ends = []
    for y, (_, row) in enumerate(table.iterrows()):
        look = method_style(row["method"]) | {"linestyle": "none"}
        colour = look["color"]
        if (grey := tables.row_of(reference, row["label"])) is not None:
            half = statistics.half_width(grey["sd"], int(grey["n"]))
            style = {"color": REFERENCE_COLOUR, "zorder": 1, "marker": ""}
            left.plot([grey["single"], grey["ensemble"]], [y, y], lw=6, **style)
            right.errorbar(grey["diversity"], grey["mean"], half, elinewidth=5, **style)
        left.annotate(
            "",
            (row["ensemble"], y),
            (row["single"], y),
            arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6},
        )
        left.plot(row["single"], y, **look | {"markerfacecolor": "white"})
        left.plot(row["ensemble"], y, **look)
        margin_text(left, y, mean_sd_text(row["mean"], row["sd"], "+"))
        right.errorbar(row["diversity"], row["mean"], np.nan_to_num(row["sd"]), **look, capsize=3)
        ends.append((row["mean"], row["label"], colour))
    left.set_yticks(range(len(table)), [fill(text, 30) for text in table["label"]])
    left.set(
        ylim=(len(table) - 0.4, -0.6),
        xlabel=f"test accuracy (%), {count_text(table)}",
        title="Mean single student (hollow) → ensemble",
    )
    right.set(
        xlabel="diversity of the peers",
        ylabel="gain of the ensemble (points)",
        title="Does diversity pay?",
    )
    end_labels(right, ends, table["diversity"].tolist())
    return fig


def say_ensembles(table: pd.DataFrame) -> list[str]:
    """What each ensemble gains, and whether the most diverse group gains most."""
    most_diverse = table.loc[table["diversity"].idxmax(), "label"]
    largest_gain = table.loc[table["mean"].idxmax(), "label"]
    same = "the same" if most_diverse == largest_gain else "another"
    rank_correlation = table["diversity"].rank().corr(table["mean"].rank())
    return [
        f"Mean accuracy of single students and of their ensemble in percent, {seeds_text(table)}: "
        f"{each_row(table, '{label} {single:.2f} → {ensemble:.2f}')}.",
        *(
            verdict(f"{row['label']}'s ensemble", "its single students", row)
            for _, row in (table if table["n"].max() > 1 else table[:0]).iterrows()
        ),
        f"The most diverse peers are {most_diverse}'s; the largest gain is {largest_gain}'s "
        f"({same} group). Rank correlation of diversity and gain over {len(table)} groups: "
        f"{rank_correlation:+.2f}.",
    ]


@figure(
    "diversity_ensemble",
    notebook="09",
    runs=[{"method": m} for m in ("ind", "cl_ilr", "one", "okddip", "dml", "dckd")],
)
class Ensembles:
    table = ensemble_table
    draw = draw_ensembles
    say = say_ensembles
