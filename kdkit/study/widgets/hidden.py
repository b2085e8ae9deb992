"""A student that never saw the chosen characters, and what it calls them."""

import ipywidgets as W

from .. import figures, hidden, store
from ..plans import Plan, plan
from ..teach import Lab
from .controls import WIDE, slider
from .panels import Panel, present
from .training import Trainer


def unseen(lab: Lab, hide: str = "é,Q", T: float = 4.0) -> None:
    """A student that never saw the chosen characters: what it calls their test images.

    It learns without labels from its teacher's answers to all other characters, or, with the box
    ticked, from labels alone. Stored runs answer at once; a missing one can be trained here.
    """
    trainer = Trainer(lambda: panel.redraw())
    answers = {}  # (run id, with the bias?) -> what was found out of the run

    def answer(run: Plan, bias: bool):
        key = run.id, bias
        if key not in answers and (record := store.find(run)):
            table = figures.answers_table([record], bias)
            answers[key] = table, hidden.hidden_numbers(record, bias)
        return answers.get(key)

    def draw(fig, hide, T, labels, bias):
        fields = figures.on_characters(lab.run())
        fields |= figures.hidden_fields(hide, 0.0 if labels else T)
        run = plan(lab.run(**fields, seed=lab.seeds[0]))
        found = answer(run, bias)
        trainer.offer({"this student": (run, found is not None)})
        who = "labels alone" if labels else f"a teacher's answers at T = {T:g}"
        if found is None:
            text = f"{run.run.hide}, hidden from a student of {who}: it is not trained yet"
            return figures.draw_calls(figures.asked_table(run.run), fig), text
        table, numbers = found
        end = "_bias" if bias else ""
        text = (
            f"{run.run.hide}, hidden from a student of {who}: it names "
            f"{numbers[f'hidden_top1{end}']:.0f} % of their test images"
            f"{' with the fitted bias' if bias else ''}, and "
            f"{numbers[f'seen_top1{end}']:.1f} % of all others"
        )
        return figures.draw_calls(table, fig), text

    panel = Panel(
        "unseen",
        draw,
        hide=W.Text(value=hide, description="hidden", continuous_update=False, style=WIDE),
        T=slider("temperature T", T, 1.0, 20.0, 1.0),
        labels=W.Checkbox(value=False, description="labels alone", style=WIDE),
        bias=W.Checkbox(value=False, description="fitted bias", style=WIDE),
    )
    row, picture, line = panel.children
    present(panel, W.VBox([row, trainer.box, picture, line]))
