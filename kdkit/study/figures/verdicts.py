"""How a verdict on a claim is read: five made-up seeds, their mean and its interval."""

import pandas as pd
from matplotlib.figure import Figure

from .. import statistics
from ..papers import claims
from ..store import Record
from . import tables
from .index import figure
from .ledger import LOOKS
from .style import FAINT_COLOUR, TEXT_COLOUR, kdkit_style, margin_text, mean_sd_text

EXAMPLES = {  # by how many points the better side is ahead, seed by seed
    "every seed says so": (1.2, 0.8, 1.6, 1.0, 1.4),
    "every seed says the opposite": (-0.9, -0.5, -1.3, -0.7, -1.1),
    "next to nothing, and well measured": (0.3, -0.2, 0.1, -0.1, 0.2),
    "it may be much, and is badly measured": (2.6, -1.4, 0.9, -0.6, 1.8),
}


def example_table(records: list[Record] = ()) -> pd.DataFrame:
    """Each example with its mean, the half width of its 95 % interval and the verdict. Computed
    from no run."""
    rows = []
    for name, seeds in EXAMPLES.items():
        n, mean, half = statistics.paired(seeds, [0] * len(seeds))
        rows.append(
            {
                "example": name,
                "difference": mean,
                "half_width": half,
                "verdict": claims.verdict(mean, half),
                **tables.spread(dict(enumerate(seeds))),
            }
        )
    return tables.frame(rows, records)


@kdkit_style()
def draw_examples(table: pd.DataFrame) -> Figure:
    """A line for each example: seeds as dots, the mean and its interval above them, the verdict in
    its colour. table: of `example_table`."""
    fig = Figure(figsize=(8.4, 3.5))
    ax = fig.subplots()
    ax.axvline(0, color=TEXT_COLOUR, lw=0.9, zorder=0)
    for y, (_, row) in enumerate(table.iterrows()):
        colour, marker, filled = LOOKS[row["verdict"]]
        values = list(tables.seed_values(row).values())
        ax.plot(values, [y + 0.2] * len(values), ".", color=FAINT_COLOUR, ms=6, ls="none")
        face = colour if filled else "white"
        look = {"color": colour, "markerfacecolor": face, "capsize": 4, "elinewidth": 2}
        ax.errorbar(row["difference"], y - 0.12, xerr=row["half_width"], fmt=marker, **look)
        text = mean_sd_text(row["difference"], row["half_width"], "+")
        margin_text(ax, y, f"{text}\n{row['verdict']}", colour)
    ax.set_yticks(range(len(table)), table["example"])
    ax.set(
        ylim=(len(table) - 0.4, -0.6),
        xlabel="claimed better less claimed worse, points (small dots: seeds; bar: 95 % interval)",
    )
    return fig


def say_examples(table: pd.DataFrame) -> list[str]:
    """Each example's verdict."""
    return [
        "Four made-up claims of five seeds each: the seeds' differences as dots, their mean with "
        "its 95 % interval, and the verdict.",
        *(
            f"{row['example'].capitalize()}: "
            f"{mean_sd_text(row['difference'], row['half_width'], '+')}, {row['verdict']}."
            for _, row in table.iterrows()
        ),
    ]


@figure("diagram_verdict", notebook="10")
class Examples:
    table = example_table
    draw = draw_examples
    say = say_examples
