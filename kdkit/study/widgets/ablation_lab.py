"""The ablation lab: a method's knobs, the whole method beneath the changed one, what was tried."""

import html
import json
from collections.abc import Iterator
from contextlib import suppress

import ipywidgets as W
import pandas as pd

from ...fields import fields
from ...methods import list_methods, method_class
from .. import figures, reference, store
from ..plans import Plan, control, plan
from ..store import Record
from ..teach import Lab
from .controls import choice, knobs
from .panels import Panel, present
from .training import Trainer, history_so_far

STYLE = "<style>.kd-lab-side label {text-align: right; padding-right: 8px}</style>"
HOVER = "Hold the pointer over a name to read what it is, or turn its knob."
WHOLE = "whole method"


class Bench:
    """What is finished of one method under a lab's recipe, in the store and in the reference."""

    def __init__(self, lab: Lab, method: str):
        self.lab, self.method = lab, method
        self.whole = self.run()
        self.stored: dict[str, Record] = {}  # run id -> record, once it was seen in the store
        self.tried: dict[str, Plan] = {}  # run id -> finished run of this method
        for run_id, params in (*self.in_reference(), *self.in_store()):
            with suppress(ValueError):  # fields that the method has no more
                run = self.run(**params)  # of another recipe it is another one
                if run.id == run_id and self.find(run):
                    self.tried[run_id] = run

    def run(self, **params) -> Plan:
        """The lab's run of the method, with fields of its own changed."""
        return plan(self.lab.run(method=self.method, seed=self.lab.seeds[0], **params))

    def find(self, run: Plan) -> Record | None:
        """The run's record in the store, else its row of the reference."""
        if run.id not in self.stored and (record := store.find(run)):
            self.stored[run.id] = record
        return self.stored.get(run.id) or reference.load().find(run)

    def control_of(self, run: Plan) -> Record | None:
        """The finished run that a run is fairly compared with."""
        other = control(run)
        return other and self.find(other)

    def in_reference(self) -> Iterator[tuple[str, dict]]:
        """(run id, the method's own fields) of the reference's rows of this method."""
        for row in reference.load().rows.values():
            if row["method"] == self.method:
                run = reference.run_of(self.method, row["fields"], int(row["seed"]))
                yield row["id"], dict(run.params)

    def in_store(self) -> Iterator[tuple[str, dict]]:
        """The same of the store. Their descriptions alone are read: to check whole records takes
        too long here."""
        for path in store.root().glob("*/record.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # damaged
                run = json.loads(path.read_bytes())["run"]
                if run["method"] == self.method:
                    yield path.parent.name, dict(run["params"])


def changed_fields(run: Plan, whole: Plan) -> str:
    """The fields in which a run differs from the whole method: "m=6, detach=True"."""
    usual = whole.method.values()
    changed = {k: v for k, v in run.method.values().items() if v != usual[k]}
    return ", ".join(f"{k}={v:g}" if type(v) is float else f"{k}={v}" for k, v in changed.items())


def ablation_lab(lab: Lab, method: str = "") -> None:
    """Turn a method's knobs; stored runs and rows of the project's reference answer at once, a
    missing run can be trained here.

    Its curves lie over those of the whole method, and a table keeps what was tried. Training runs
    in a child process: progress bar, growing curve, stop and resume.
    """
    pick = choice("method", list_methods(), method_class(method).name).add_class("kd-lab-method")
    place, explained, tried = W.HBox(), W.HTML().add_class("kd-lab-field"), W.HTML()
    place.layout.flex_flow = "row wrap"
    tried.add_class("kd-lab-tried")
    trainer = Trainer(lambda: shown["panel"].redraw(), most=3)
    shown = {}

    def draw(fig, **values):
        bench, run = shown["bench"], shown["bench"].run(**values)
        runs = {"this run": run, f"the {WHOLE}": bench.whole}
        if other := control(run):
            runs[f"its control, {figures.label(other)}"] = other
        found = {what: bench.find(planned) for what, planned in runs.items()}
        record, whole, against = (*found.values(), None)[:3]
        trainer.offer(
            {what: (planned, planned.id in bench.stored) for what, planned in runs.items()}
        )
        if record:
            bench.tried[run.id] = run
        table = figures.tried_table(
            {
                changed_fields(one, bench.whole) or WHOLE: (bench.find(one), bench.control_of(one))
                for one in bench.tried.values()
            },
            whole,
        )
        changed = changed_fields(run, bench.whole)
        tried.value = _table_html(table, changed or WHOLE)
        curves = {changed or WHOLE: record.history if record else history_so_far(run)}
        if changed:
            curves[WHOLE] = whole.history if whole else history_so_far(bench.whole)
        text = _say(run, record, whole if changed else None, against)
        return figures.draw_overlay(curves, run.run.epochs, fig), text

    def rebuild(_=None):
        shown["bench"] = Bench(lab, pick.value)
        made = knobs(shown["bench"].whole.method)
        panel = shown["panel"] = Panel("lab", draw, **made)
        described = fields(method_class(pick.value))
        explained.value = STYLE + (HOVER if made else "It has no knob.")
        for name, knob in made.items():
            knob.layout.width, knob.style.description_width = "100%", "72px"
            text = f"{STYLE}<b>{name}</b>: {html.escape(described[name].description)}"
            knob.observe(lambda _, text=text: setattr(explained, "value", text), "value")
        side = W.VBox([*made.values(), explained, trainer.box], layout={"flex": "0 1 284px"})
        side.add_class("kd-lab-side")
        seen = W.VBox([panel.picture, panel.line], layout={"flex": "1 1 560px"})
        place.children = side, seen

    rebuild()
    pick.observe(rebuild, "value")
    present(shown["panel"], W.VBox([pick, place, tried]))


def _say(run: Plan, record: Record | None, whole: Record | None, against: Record | None) -> str:
    """How good a run is, against the whole method and against its control, as far as these are
    finished."""
    name = figures.label(run)
    if record is None:
        epochs = len(history_so_far(run))
        begun = f"has {epochs} of its {run.run.epochs} epochs" if epochs else "is not trained yet"
        return f"{name} {begun} (run {run.id} is not in the store)"
    parts = [f"{name}: {record.result['top1_deployed']:.2f} %"]
    for other, who in ((whole, f"the {WHOLE}"), (against, against and figures.label(against.run))):
        if other:
            gap = record.result["top1_deployed"] - other.result["top1_deployed"]
            parts.append(f"{gap:+.2f} points against {who}")
    where = ", a row of the reference" if isinstance(record, reference.ReferenceRecord) else ""
    return f"{', '.join(parts)} (one seed{where})"


def _table_html(table: pd.DataFrame, current: str) -> str:
    """A table of `figures.tried_table` as HTML; the row of the current run is marked."""
    if table.empty:
        return ""
    head = "fields changed", "accuracy (%)", f"− {WHOLE}", "− control", "control", "from"
    rows = ["".join(f"<th>{text}</th>" for text in head)]
    for _, row in table.iterrows():
        name = ("▸ " if row["changed"] == current else "") + row["changed"]
        numbers = f"{row['top1']:.2f}", *map(_signed, row[["against_whole", "against_control"]])
        cells = name, *numbers, row["control"], row["whose"]
        look = ' style="font-weight:bold"' if row["changed"] == current else ""
        texts = "".join(f"<td{look}>{html.escape(cell)}</td>" for cell in cells)
        rows.append(texts)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        '<div tabindex="0" class="jp-RenderedHTMLCommon" style="max-height:15em; overflow:auto">'
        f"<table><caption>What was tried, one seed each</caption>{body}</table></div>"
    )


def _signed(number: float) -> str:
    """A difference with its sign; nothing where there is none."""
    return figures.mean_sd_text(number, float("nan"), "+") if number == number else ""
