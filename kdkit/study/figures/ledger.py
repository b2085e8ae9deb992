"""The claims ledger as a picture: what of the papers' claims is shown on the lesson."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import reference
from ..papers import claims
from ..papers.claims import CONTRADICTED, NOT_SHOWN, SHOWN
from ..plans import label
from ..store import Record
from .index import figure
from .style import FAINT_COLOUR, TEXT_COLOUR, kdkit_style, margin_text, mean_sd_text

LOOKS = {  # of a verdict: colour, marker, filled
    SHOWN: ("#006d5b", "o", True),
    NOT_SHOWN: ("#777777", "o", False),
    CONTRADICTED: ("#bd1f01", "X", True),
    "": ("#b8b8b8", ".", False),
}
WIDEST = 6  # half widths that the axis reaches to; what lies beyond stands at its end
UNITS = {"diversity_over_training": ("diversity", 3), "ensemble": ("ensemble", 2)}
UNITS |= {f"correlation_{what}": ("classes", 2) for what in ("number", "collection")}


def ledger_table(records: list[Record] = ()) -> pd.DataFrame:
    """The ledger, a row a claim; of the reference, whatever `records` are."""
    table = pd.DataFrame(claims.ledger(), columns=list(claims.COLUMNS))
    runs = table.pop("runs")
    table.attrs["runs"] = sorted({run_id for ids in runs for run_id in ids.split()})
    return table


def side_label(text: str) -> str:
    """What a side of a claim is called: "OKDDip (m=6)"."""
    return label(claims.claim_run(text, 0))


@kdkit_style()
def draw_ledger(table: pd.DataFrame) -> Figure:
    """Each claim's difference in half widths of its interval: beyond 1 it is shown, beyond -1 it is
    contradicted. table: of `ledger_table`."""
    parts = [rows.reset_index(drop=True) for _, rows in table.groupby("paper", sort=False)]
    fig = Figure(figsize=(13.5, 0.8 + 0.262 * max(map(len, parts))))
    for ax, rows in zip(fig.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        ax.axvspan(-1, 1, color="#eeeeee", zorder=0)
        ax.axvline(0, color=TEXT_COLOUR, lw=0.9, zorder=0)
        for y, row in rows.iterrows():
            _draw_claim(ax, y, row)
        texts = [
            f"{row['place']}: {side_label(row['better'])} > {side_label(row['worse'])}"
            for _, row in rows.iterrows()
        ]
        ax.set_yticks(range(len(rows)), texts, fontsize=7)
        titles = {"okddip": "OKDDip (2020)", "dckd": "DCKD (2023)"}
        ax.set(
            ylim=(len(rows) - 0.4, -0.6),
            xlim=(-WIDEST - 0.5, WIDEST + 0.5),
            xlabel="difference / half width of its 95 % interval",
            title=f"{titles[rows['paper'][0]]}: {_counts(rows)}",
        )
    return fig


def _draw_claim(ax, y: int, row: pd.Series) -> None:
    """One claim: its place on the axis, and its numbers in the margin."""
    colour, marker, filled = LOOKS[row["verdict"]]
    ratio = row["difference"] / row["half_width"] if row["half_width"] else np.nan
    face = colour if filled else "white"
    x = np.clip(ratio, -WIDEST, WIDEST)
    ax.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6, ls="none")
    unit, digits = UNITS.get(row["metric"], ("", 2))
    text = mean_sd_text(row["difference"], row["half_width"], "+", digits)
    if row["n"]:
        margin_text(ax, y, f"{text} {unit}".strip(), colour if filled else FAINT_COLOUR)
        ax.texts[-1].set_fontsize(7.5)


def _counts(rows: pd.DataFrame) -> str:
    """How many of each verdict: "12 shown, 3 contradicted, 5 not shown"."""
    counts = rows["verdict"].value_counts()
    return ", ".join(f"{counts.get(what, 0)} {what}" for what in (SHOWN, CONTRADICTED, NOT_SHOWN))


def say_ledger(table: pd.DataFrame) -> list[str]:
    """The counts, what chance would give, what is contradicted, and what typefaces may change."""
    judged = table[table["verdict"] != ""]
    if not len(judged):
        n = int(table["n"].max())
        return ["The claims ledger.", f"No verdict yet: {n} seed(s) in the project's reference."]
    n = sorted(set(judged["n"]))
    seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    against = [
        f"{side_label(row['better'])} > {side_label(row['worse'])}"
        for _, row in judged[judged["verdict"] == CONTRADICTED].iterrows()
    ]
    wide = judged[
        (judged["verdict"] == SHOWN) & (judged["half_width_faces"] > judged["difference"])
    ]
    chance = claims.by_chance(judged.to_dict("records"))
    return [
        f"{len(judged)} comparisons that the two papers claim, on the lesson with {seeds} seeds "
        f"each: {_counts(judged)}. Grey: inside the 95 % interval.",
        f"If every difference were 0, chance alone would give {chance:.1f} verdicts other than not "
        "shown.",
        f"Contradicted: {'; '.join(against)}." if against else "Nothing is contradicted.",
        f"Seeds do not carry what other test typefaces would change (a bootstrap over "
        f"{len(reference.sources.glyph_faces()[1])} of them): {len(wide)} of the shown differences "
        "of accuracy are smaller than that uncertainty.",
        "Whose numbers: the project's reference (benchmarks/reference.csv).",
    ]


@figure("claims", notebook="10")
class Ledger:
    table = ledger_table
    draw = draw_ledger
    say = say_ledger
