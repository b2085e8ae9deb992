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
CAPTION = "What was tried, here (store) or before (reference), one seed each"


class Bench:
    """What is finished of one method under a lab's recipe, in the store and in the reference."""

    def __init__(self, lab: Lab, method: str):
        self.lab, self.method = lab, method
        self.whole = self.run()
        self.stored: dict[str, Record] = {}  # run id -> record, once it was seen in the store
        self.tried: dict[str, Plan] = {}  # run id -> finished run of this method
        for run_id, params in (*self.in_reference(), *self.in_store()):
            with suppress(ValueError):  # fields that the method has no more
                run = self.run(**params)  # another one, where the recipe was another one
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
                with suppress(ValueError):
                    run = reference.run_of(self.method, row["fields"], int(row["seed"]))
                    yield row["id"], dict(run.params)

    def in_store(self) -> Iterator[tuple[str, dict]]:
        """The same of the store. Their descriptions alone are read: to check whole records takes
        too long here."""
        stores = store.root(), *store.shared_stores()
        for path in (path for folder in stores for path in folder.glob("*/record.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):  # damaged
                run = json.loads(path.read_bytes())["run"]
                if run["method"] == self.method:
                    yield path.parent.name, dict(run["params"])


def changed_fields(run: Plan, whole: Plan) -> str:
    """The fields in which a run differs from the whole method: "m=6, detach=True"."""
    usual = whole.method.values()
    changed = {k: v for k, v in run.method.values().items() if v != usual[k]}
    return ", ".join(f"{k}={v:g}" if type(v) is float else f"{k}={v}" for k, v in changed.items())


class AblationLab:
    """The controls and displays of one lab; `panel` is that of the method that is looked at."""

    def __init__(self, lab: Lab, method: str):
        self.lab = lab
        self.pick = choice("method", list_methods(), method_class(method).name)
        self.explained, self.tried, self.place = W.HTML(), W.HTML(), W.HBox()
        for key, part in {
            "method": self.pick,
            "field": self.explained,
            "tried": self.tried,
        }.items():
            part.add_class(f"kd-lab-{key}")
        self.place.layout.flex_flow = "row wrap"
        self.trainer = Trainer(lambda: self.panel.redraw(), most=3)
        self.look_at_method()
        self.pick.observe(self.look_at_method, "value")
        style = W.HTML(STYLE, layout=W.Layout(display="none"))
        self.box = W.VBox([style, self.pick, self.place, self.tried])

    def look_at_method(self, _=None) -> None:
        """Other knobs, and all that is finished of another method."""
        self.bench = Bench(self.lab, self.pick.value)
        made, described = knobs(self.bench.whole.method), fields(method_class(self.pick.value))
        self.explained.value = HOVER if made else "It has no knob."
        self.panel = Panel("lab", self.draw, **made)
        for name, knob in made.items():
            knob.layout.width, knob.style.description_width = "100%", "72px"
            text = f"<b>{name}</b>: {html.escape(described[name].description)}"
            knob.observe(lambda _, text=text: setattr(self.explained, "value", text), "value")
        side = W.VBox([*made.values(), self.explained, self.trainer.box])
        seen = W.VBox([self.panel.picture, self.panel.line])
        side.layout.flex, seen.layout.flex = "0 1 284px", "1 1 560px"
        self.place.children = side.add_class("kd-lab-side"), seen

    def draw(self, fig, **values):
        """The chosen run over the whole method, and how good it is."""
        bench = self.bench
        run, whole = bench.run(**values), bench.whole
        runs = {"this run": run, f"the {WHOLE}": whole}
        if other := control(run):
            runs[f"its control, {figures.label(other)}"] = other
        record, whole_record, *against = map(bench.find, runs.values())
        self.trainer.offer({what: (one, one.id in bench.stored) for what, one in runs.items()})
        for one, finished in ((run, record), (whole, whole_record)):
            if finished:
                bench.tried[one.id] = one
        changed = changed_fields(run, whole)
        table = figures.tried_table(
            {
                changed_fields(one, whole) or WHOLE: (bench.find(one), bench.control_of(one))
                for one in bench.tried.values()
            },
            whole_record,
        )
        self.tried.value = _table_html(table, changed or WHOLE)
        curves = {changed or WHOLE: record.history if record else history_so_far(run)}
        if changed:
            curves[WHOLE] = whole_record.history if whole_record else history_so_far(whole)
        text = _say(run, record, whole_record if changed else None, *against)
        return figures.draw_overlay(curves, run.run.epochs, fig), text


def ablation_lab(lab: Lab, method: str = "") -> None:
    """Turn a method's knobs; stored runs and rows of the project's reference answer at once, a
    missing run can be trained here.

    Its curves lie over those of the whole method, and a table keeps what was tried. Training runs
    in a child process: progress bar, growing curve, stop and resume.
    """
    made = AblationLab(lab, method)
    present(made.panel, made.box)


def _say(
    run: Plan, record: Record | None, whole: Record | None, against: Record | None = None
) -> str:
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
    rows = ["<tr>" + "".join(f'<th scope="col">{text}</th>' for text in head) + "</tr>"]
    for _, row in table.iterrows():
        is_current = row["changed"] == current
        numbers = f"{row['top1']:.2f}", *map(_signed, row[["against_whole", "against_control"]])
        cells = "▸ " * is_current + row["changed"], *numbers, row["control"], row["whose"]
        texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        look = ' aria-current="true" style="font-weight:bold"' if is_current else ""
        rows.append(f"<tr{look}>{texts}</tr>")
    return (
        '<div tabindex="0" class="jp-RenderedHTMLCommon" style="max-height:15em; overflow:auto">'
        f"<table><caption>{CAPTION}</caption>{''.join(rows)}</table></div>"
    )


def _signed(number: float) -> str:
    """A difference with its sign; nothing where there is none."""
    return figures.mean_sd_text(number, float("nan"), "+") if number == number else ""
