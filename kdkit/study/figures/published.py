"""What the papers' tables print, as a picture: how far each method is above labels alone."""

import pandas as pd
from matplotlib.figure import Figure

from ..papers import cells
from ..store import Record
from . import tables
from .index import figure
from .style import DASHED, kdkit_style, margin_text, mean_sd_text, method_style

TABLES = ("okddip:2", "dckd:2", "dckd:3")
TITLES = {"okddip": "OKDDip (2020)", "dckd": "DCKD (2023)"}


def gains_table(*names: str) -> pd.DataFrame:
    """Each printed number of these tables beside the same network trained on labels alone, and the
    gain in points, of which more is always better.

    names: "paper:table"; by default those on CIFAR-100. ValueError for a table without a network
    alone: it has no control to take a difference to.
    """
    found = []
    for name in names or TABLES:
        printed = cells(name)
        alone = printed[(printed["method"] == "baseline") & (printed["statistic"] == "student")]
        if alone.empty:
            raise ValueError(f"{name}: this table has no network trained on labels alone")
        key = ["dataset", "student"]
        alone = alone.drop_duplicates(key).set_index(key)["published"].rename("alone")
        printed = printed[printed["method"] != "baseline"].join(alone, on=key)
        sign = printed["metric"].map({"top1_error": -1, "top1": 1})
        printed["gain"] = sign * (printed["published"] - printed["alone"])
        printed["name"] = printed["column" if name.startswith("okddip") else "row"]
        found.append(printed.dropna(subset=["gain"]))
    columns = ["paper", "table", "dataset", "networks", "name", "method", "statistic"]
    return pd.concat(found, ignore_index=True)[[*columns, "published", "alone", "gain"]]


def mean_gains(table: pd.DataFrame) -> pd.DataFrame:
    """The mean gain of each name (rows, by paper) in each table (columns). table: of
    `gains_table`."""
    groups = table.groupby(["paper", "name", "table"], sort=False)["gain"]
    return groups.mean().unstack(sort=False)


@kdkit_style()
def draw_gains(table: pd.DataFrame) -> Figure:
    """A dot for each printed number, a panel for each paper; its second table's dots are hollow,
    and means stand in the margin, table by table. table: of `gains_table`."""
    parts = list(table.groupby("paper", sort=False))
    height = 0.9 + 0.27 * max(part["name"].nunique() for _, part in parts)
    fig = Figure(figsize=(4.6 * len(parts) + 1, height))
    for ax, (paper, part) in zip(fig.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        names, numbers = list(part["name"].unique()), list(part["table"].unique())
        for (name, number), dots in part.groupby(["name", "table"], sort=False):
            look = method_style(dots["method"].iloc[0]) | {"linestyle": "none", "alpha": 0.7}
            filled = "full" if number == numbers[0] else "none"
            ax.plot(dots["gain"], [names.index(name)] * len(dots), **look, fillstyle=filled)
        for y, (_, means) in enumerate(mean_gains(part).iterrows()):
            texts = [mean_sd_text(mean, float("nan"), "+") for mean in means.dropna()]
            margin_text(ax, y, " / ".join(texts))
        ax.axvline(0, **DASHED)
        ax.set_yticks(range(len(names)), names)
        ax.set(
            ylim=(len(names) - 0.4, -0.6),
            xlabel="points above the same network, labels alone",
            title=f"{TITLES[paper]}: Table {' and, hollow, '.join(numbers)}",
        )
    return fig


def say_gains(table: pd.DataFrame) -> list[str]:
    """Each paper's largest mean, and who falls below labels alone."""
    sentences = [
        "Printed gains over the same network trained on labels alone, in points, a dot for each "
        "network or pair of networks; on the right the means."
    ]
    for paper, part in table.groupby("paper", sort=False):
        means = part.groupby("name", sort=False)["gain"].mean()
        below = part[part["gain"] < 0]["name"].unique()
        sentences.append(
            f"{TITLES[paper]}: the largest mean gain is {means.idxmax()}'s, {means.max():.2f} "
            f"points; below labels alone at least once: {', '.join(below) or 'none'}."
        )
    return sentences


@figure("published_gains", notebook="10")
class Gains:
    def table(records: list[Record]) -> pd.DataFrame:
        return tables.frame(gains_table().to_dict("records"), records)

    draw = draw_gains
    say = say_gains
