"""What chance does to comparisons, with other numbers: nothing is trained."""

import ipywidgets as W

from ..figures import chance
from .controls import WIDE, slider
from .panels import Panel, present


def seeds_needed(gap: float = chance.GAP, spread: float = chance.USUAL_SPREAD) -> None:
    """In what share of experiments a true difference is shown, by the number of seeds.

    gap: the difference, spread: the deviation of a paired difference from seed to seed, both in
    points.
    """

    def draw(fig, gap, spread):
        table = chance.seeds_table(gap=gap, spreads=[spread])
        return chance.draw_seeds(table, fig), " ".join(chance.say_seeds(table))

    present(
        Panel(
            "seeds-needed",
            draw,
            gap=slider("difference", gap, 0.1, 3.0, 0.1),
            spread=slider("deviation", spread, 0.05, 2.0, 0.05),
        )
    )


def by_chance(questions: int = 20, n: int = 3) -> None:
    """Comparisons of things that do not differ: how many are shown by chance, drawn again and
    again. questions: how many; n: seeds of each."""

    def draw(fig, **values):
        table = chance.chance_table(**values)
        return chance.draw_chance(table, fig), " ".join(chance.say_chance(table))

    present(
        Panel(
            "by-chance",
            draw,
            draw=slider("drawing", 0, 0, 99, 1),
            questions=slider("comparisons", questions, 1, 40, 1),
            n=slider("seeds n", n, 2, 20, 1),
            corrected=W.Checkbox(value=False, description="corrected (Bonferroni)", style=WIDE),
        )
    )
