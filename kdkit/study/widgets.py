"""Knobs over pure draw functions and stored runs. A widget holds no logic of its own.

Each function shows a panel: controls on top, a picture with alt text below, one line of numbers.
Under KDKIT_BATCH=1 it shows the picture and the line once, without controls. Displays change by
trait assignment only, so that a callback on any thread works; core ipywidgets only.
"""

import dataclasses
import html
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import ipywidgets as W
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display
from traitlets import TraitError, validate

from .. import metrics
from ..fields import Field, fields
from ..methods import list_methods, method_class
from . import figures, store
from .figures import tables
from .hidden import hidden_numbers
from .papers import runs
from .plans import Plan, control, plan
from .store import Record
from .sweep import WORKER_ENV, own_names, run_on_worker, start_worker
from .teach import Lab

WIDE = {"description_width": "110px"}
KNOB_STEPS = 20  # of a slider from its low end to its high end, unless the default lies beyond


class _Bounds:
    """A slider that widens for a value beyond its ends, and refuses one beyond its field's."""

    field = Field()

    @validate("value")
    def _validate_value(self, proposal):
        value = proposal["value"]
        try:
            self.field._check_bounds(value, value)
        except ValueError as e:
            raise TraitError(str(e)) from None
        if value > self.max:
            self.max = value
        if value < self.min:
            self.min = value
        return value


class IntKnob(_Bounds, W.IntSlider):
    """Whole numbers."""


class FloatKnob(_Bounds, W.FloatSlider):
    """Any numbers."""


def slider(text: str, value, low, high, step, field: Field | None = None) -> W.Widget:
    """A slider that acts on release; whole steps give whole numbers. field: bounds of the values
    that it may ever take, by default low and high."""
    kind = IntKnob if isinstance(step, int) else FloatKnob
    made = kind(
        value=value,
        min=min(low, value),
        max=max(high, value),
        step=step,
        description=text,
        continuous_update=False,
        style=WIDE,
    )
    made.field = field or Field(low, high, name=text)
    return made


def choice(text: str, options, value=None) -> W.Widget:
    """A button for each of the options, values or (label, value) pairs; above thirty a slider over
    them. No drop-down list: JupyterLab takes the arrow keys away from one."""
    given = {} if value is None else {"value": value}
    if len(options) > 30:
        return W.SelectionSlider(
            options=options, description=text, continuous_update=False, style=WIDE, **given
        )
    return W.ToggleButtons(
        options=options,
        description=text,
        layout=W.Layout(max_width="100%"),
        style=WIDE | {"button_width": "auto"},
        **given,
    )


def panel(name: str, draw: Callable, **controls: W.Widget) -> W.VBox:
    """Controls over a picture and a line of text, from `draw(fig, **values) -> (Figure, text)`.

    A change draws again; `fig` is the figure of the last time, to be changed instead of made anew,
    or None. Errors are shown in the line; under KDKIT_BATCH=1 they are raised.
    """
    picture, line, fig = W.HTML(), W.HTML(), None

    def redraw(_=None):
        nonlocal fig
        with figures.kdkit_style():  # one at a time: two quick changes may come on two threads
            try:
                values = {k: c.value for k, c in controls.items()}  # rounded: 0.3, not 0.1 + 0.2
                fig, text = draw(
                    fig,
                    **{k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()},
                )
                line.value = f"<p>{html.escape(text)}</p>"  # before the picture, which takes longer
                picture.value = figures.html(fig, text)
            except Exception as e:
                line.value = f"<p>{html.escape(f'{type(e).__name__}: {e}')}</p>"
                if store.quiet():
                    raise

    redraw()
    for key, knob in controls.items():
        knob.add_class(f"kd-{name}-{key}")
        knob.observe(redraw, "value")
    picture.add_class(f"kd-{name}-picture")
    line.add_class(f"kd-{name}-line")
    row = W.HBox(list(controls.values()), layout=W.Layout(flex_flow="row wrap"))
    box = W.VBox([row, picture, line])
    box.redraw = redraw
    return box


def present(box: W.VBox) -> None:
    """Show a panel; under KDKIT_BATCH=1 its picture and line, without controls."""
    display(HTML(box.children[1].value + box.children[2].value) if store.quiet() else box)


def temperature(record: Record, T: float = 4.0, image: int | None = None) -> None:
    """Softened predictions of teacher and first student for one test image, by temperature.

    image: position in the test set; None: one that the teacher is sure of and right, with one
    clear rival.
    """
    (z, z_t), names = record.logits(), record.meta["class_names"]
    if z_t is None:
        raise ValueError(f"run {record.id} ({record.run.method}) has no teacher to show")
    x, y = tables.test_images(record.run.data), record.labels
    if image is None:
        image = clear_rival(z_t, y)

    def draw(fig, image, T):
        p, q = metrics.softmax(z_t[image], T), metrics.softmax(z[0, image], T)
        text = (
            f"image {image} ({names[y[image]]}), T = {T:g}: entropy {metrics.entropy(p):.3f} "
            f"(teacher), {metrics.entropy(q):.3f} (student) nats; classes above 1/K "
            f"{int(metrics.correlation_number(p))} and {int(metrics.correlation_number(q))}; "
            f"KL(teacher‖student) {metrics.kl_divergence(p, q):.4f}, "
            f"KL(student‖teacher) {metrics.kl_divergence(q, p):.4f}"
        )
        shown = x[image], int(y[image])
        return figures.draw_temperature(z_t[image], z[0, image], T, names, *shown, fig), text

    present(
        panel(
            "temperature",
            draw,
            T=slider("temperature T", T, 0.5, 20.0, 0.5),
            image=slider("test image", image, 0, z.shape[1] - 1, 1),
        )
    )


def clear_rival(z: np.ndarray, y: np.ndarray) -> int:
    """The image with the greatest distance from the second to the third logit among those that are
    named rightly with at least 95 %; of all, where there is none. z (N, K), y (N,)."""
    _, second, third = -np.sort(-np.pad(z, ((0, 0), (0, 1)), constant_values=z.min())).T[:3]
    sure = (z.argmax(-1) == y) & (metrics.softmax(z).max(-1) >= 0.95)
    return int(np.where(sure, second - third, (second - third) - 1e6).argmax())


def attention(record: Record) -> None:
    """OKDDip's attention matrix by epoch, and what each peer is taught."""
    A = record.arrays.get("attention")  # (E, n, n)
    if A is None:
        raise ValueError(f"run {record.id} ({record.run.method}) kept no attention")

    def draw(fig, epoch):
        a = A[epoch - 1].astype(float)
        gap = np.abs(a - a.T).max()
        taught = "; ".join(
            f"peer {i} learns most from peer {row.argmax() + 1} ({row.max():.2f})"
            for i, row in enumerate(a, 1)
        )
        return figures.draw_matrices([(f"epoch {epoch}", a)], fig), (
            f"epoch {epoch}: {taught}; largest asymmetry |A - Aᵀ| {gap:.3f}"
        )

    present(panel("attention", draw, epoch=slider("epoch", len(A), 1, len(A), 1)))


def collection(record: Record, image: int | None = None) -> None:
    """What each student receives from the others, image by image, from a method that collects.

    image: position in the test set; None: where the students disagree most.
    """
    z, names = record.logits()[0], record.meta["class_names"]
    if not hasattr(record.method, "collect"):
        raise ValueError(f"run {record.id} ({record.run.method}) has no collection")
    x, y = tables.test_images(record.run.data), record.labels
    if image is None:
        image = int(metrics.softmax(z).var(0).sum(-1).argmax())

    def draw(fig, image, student, kind, reverse, tau):
        one = torch.tensor(z[:, image : image + 1])  # (m, 1, K)
        method = type(record.method)(**(record.method.values() | {"collection": kind}))
        m = method.collect(one)[student - 1, 0].numpy()
        p, q = metrics.softmax(z[student - 1, image], tau), metrics.softmax(m, tau)
        kl = metrics.kl_divergence(p, q) if reverse else metrics.kl_divergence(q, p)
        text = (
            f"image {image} ({names[y[image]]}), tau = {tau:g}: student {student} receives {kind}; "
            f"{'reverse' if reverse else 'forward'} KL {kl:.4f}; classes above 1/K "
            f"{int(metrics.correlation_number(q))} in the collection, "
            f"{int(metrics.correlation_number(p))} in the student"
        )
        shown = x[image], int(y[image])
        return figures.draw_collection(z[:, image], m, student - 1, tau, names, *shown, fig), text

    present(
        panel(
            "collection",
            draw,
            image=slider("test image", image, 0, z.shape[1] - 1, 1),
            student=slider("student", 1, 1, len(z), 1),
            kind=choice(
                "collection",
                [("logit max", "lmax"), ("probability max", "pmax"), ("average", "avg")],
            ),
            reverse=W.Checkbox(value=True, description="reverse KL", style=WIDE),
            tau=slider("temperature tau", 2.0, 0.5, 10.0, 0.5),
        )
    )


def class_map(record: Record, tau: float = 4.0) -> None:
    """Class maxima of teacher and student for one class, and the images behind a peak (DCKD's
    Figures 2 and 3; their temperature is not in the text: `tau` is a choice)."""
    names, x = record.meta["class_names"], tables.test_images(record.run.data)
    y = record.labels
    pairs = [(name, i) for i, name in enumerate(names)]

    def draw(fig, of, peak, tau):
        table = figures.class_maximum_table([record], of, 0, tau)
        p, q, behind = table.loc[peak, ["student", "teacher", "images"]]
        text = (
            f"largest p({names[peak]}) over the {(y == of).sum()} images of {names[of]}, tau = "
            f"{tau:g}: student {p:.3f}, teacher {q:.3f}; test images "
            f"{behind.replace(' ', ', ')}"
        )
        return figures.draw_class_map(
            table["student"],
            table["teacher"],
            of,
            peak,
            x[figures.image_numbers(behind)],
            names,
            fig=fig,
        ), text

    present(
        panel(
            "class-map",
            draw,
            of=choice("class", pairs),
            peak=choice("peak", pairs, 6 % len(names)),
            tau=slider("temperature tau", tau, 0.5, 10.0, 0.5),
        )
    )


def paper_tables(which: str = "okddip:2", **changes) -> None:
    """Both papers' tables, cell by cell: published, ours, difference, values behind ours, notes.

    which: "paper:table" to start with; changes: fields of another recipe than the paper's. Runs
    that finish later are seen when it is called again (`papers.runs.compare`).
    """
    told, (first, start) = {}, which.split(":")
    for c in runs.compare(which if store.quiet() else None, **changes):
        told.setdefault(c["paper"], {}).setdefault(c["table"], []).append(c)
    paper, table = choice("paper", list(told), first), choice("table", list(told[first]), start)
    page = W.HTML().add_class("jp-RenderedHTMLCommon")

    def redraw(change=None):
        if change and change["owner"] is paper:
            table.options = list(told[paper.value])
        page.value = _cells(told[paper.value][table.value], **changes)

    redraw()
    for knob in (paper, table):
        knob.add_class(f"kd-tables-{knob.description}").observe(redraw, "value")
    box = W.VBox([paper, table, page.add_class("kd-tables-page")])
    display(HTML(page.value) if store.quiet() else box)


def _cells(told: list[dict], **changes) -> str:
    """One table's cells (of `runs.compare`) as HTML; grey where no run stands behind one."""
    rows, notes = runs.table_rows(told, **changes)
    table = pd.DataFrame(rows, columns=runs.TABLE_COLUMNS).set_index(["row", "column"])
    text = table.rename_axis([None] * 2).to_html(border=0)
    text = text.replace("<td>not run", '<td style="opacity:.6">not run')
    return (
        f'<p>{html.escape(runs.heading(told, **changes))}</p><div tabindex="0" '
        f'style="max-height:36em; overflow:auto">{text}</div>'
        f"<ol>{''.join(f'<li>{html.escape(n)}</li>' for n in notes)}</ol>"
    )


def knobs(method: str) -> dict[str, W.Widget]:
    """A control for each hyperparameter of a method, made from its annotated fields."""
    made = {}
    for name, field in fields(method_class(method)).items():
        if not field.knob or len(field.options) == 1:
            continue
        if field.options:
            made[name] = choice(name, field.options, field.default)
        elif field.kind is bool:
            made[name] = W.Checkbox(value=field.default, description=name, style=WIDE)
        elif field.kind in (int, float):
            made[name] = slider(name, field.default, *knob_range(field), field)
        made[name].tooltip = field.description
    return made


def knob_range(field: Field) -> tuple[float, float, float]:
    """(low, high, step) of a number's slider, within the field's bounds: twenty steps, or up to
    twice the default where that is more. The step is the field's where the default is one to twenty
    of them, else a part of the default: a weight of 1000 does not turn in steps of .1."""
    whole, start, step = field.kind is int, field.default, field.step
    if not step or (start and not step <= start <= KNOB_STEPS * step):
        step = max(1, start // 8) if whole else start / 10 or 0.1
    low = start - KNOB_STEPS * step if field.low is None else field.low
    low = step if 0 < low < step else low
    high = max(2 * start, 0 if whole else KNOB_STEPS * step)
    high = high if field.high is None else min(high, field.high)
    return low, high, int(step) if whole else float(step)


class Trainer:
    """Train, stop and go on with one run in a worker process; the kernel stays free."""

    def __init__(self, finished: Callable[[], None]):
        self.finished, self.worker, self.planned = finished, None, None
        self.lock = threading.Lock()
        self.go = W.Button(description="Train", tooltip="train this run in another process")
        self.halt = W.Button(description="Stop", tooltip="stop and save", disabled=True)
        self.bar, self.note, self.curve = W.IntProgress(description="epochs"), W.HTML(), W.HTML()
        for key, part in (
            ("train", self.go),
            ("stop", self.halt),
            ("bar", self.bar),
            ("note", self.note),
            ("curve", self.curve),
        ):
            part.add_class(f"kd-lab-{key}")
        self.go.on_click(lambda _: self.start())
        self.halt.on_click(lambda _: self.stop())

    def offer(self, planned: Plan, finished: bool) -> None:
        """The run that the button would train, unless it is there or another one is training."""
        if self.worker is None:
            begun = (store.folder(planned) / "checkpoint.pt").exists()
            own = own_names(planned)
            self.planned, self.go.disabled = planned, finished or bool(own)
            self.go.description = "Resume" if begun else "Train"
            if own:
                self.note.value = (
                    f"{html.escape(', '.join(own))} is defined in this notebook, which a worker "
                    "process does not see: train it with lab.get"
                )

    def start(self) -> None:
        with self.lock:  # two quick clicks may come on two threads
            if self.worker is None and not self.go.disabled:
                self.go.disabled, self.halt.disabled, self.note.value = True, False, "starting"
                self.bar.max, self.bar.value = self.planned.run.epochs, 0
                env = os.environ | WORKER_ENV | {"KDKIT_RUNS": str(store.root())}
                self.worker = start_worker(env)
                threading.Thread(target=self.watch, daemon=True).start()

    def stop(self) -> None:
        if worker := self.worker:
            self.halt.disabled, self.note.value = True, "stopping"
            worker.terminate()  # it saves and ends

    def watch(self) -> None:
        worker, planned = self.worker, self.planned  # another may be offered while it trains
        note = "stopped before anything was trained"
        for text, event in run_on_worker(worker, {"run": dataclasses.asdict(planned.run)}):
            note = event.get("failed") or event.get("stopped") or text or note
            if "epoch" in event and not self.halt.disabled:
                self.show(planned, event["epoch"])
            if "failed" in event:
                break
        with suppress(OSError):
            worker.stdin.close()  # it has nothing more to do
        worker.wait()
        if store.find(planned):
            self.bar.value, self.curve.value, note = planned.run.epochs, "", "done"  # drawn above
        self.worker, self.halt.disabled, self.note.value = None, True, html.escape(note)
        self.finished()

    def show(self, planned: Plan, epoch: int) -> None:
        """The curve so far."""
        text = f"epoch {epoch} of {planned.run.epochs}"
        with suppress(OSError, ValueError):  # the run was just finished
            history = json.loads((store.folder(planned) / "progress.json").read_bytes())
            picture = figures.html(figures.draw_progress(history, text), f"curves, {text}")
            self.curve.value = picture
        self.bar.value, self.note.value = epoch, text


def unseen(lab: Lab, hide: str = "é,Q", T: float = 4.0) -> None:
    """A student that never saw the chosen characters: what it calls their test images.

    It learns without labels from its teacher's answers to all other characters, or, with the box
    ticked, from labels alone. Stored runs answer at once; a missing one can be trained here.
    """
    trainer = Trainer(lambda: box.redraw())

    def draw(fig, hide, T, labels, bias):
        fields = figures.on_characters(lab.run())
        fields |= figures.hidden_fields(hide, 0.0 if labels else T)
        run = plan(lab.run(**fields, seed=lab.seeds[0]))
        record = store.find(run)
        trainer.offer(run, record is not None)
        if record is None:
            return figures.draw_progress([], "not trained yet"), (
                f"run {run.id} is not in the store: train it"
            )
        numbers = hidden_numbers(record)
        who = "labels alone" if labels else f"a teacher's answers at T = {T:g}"
        text = (
            f"{record.run.hide}, hidden from a student of {who}: it names "
            f"{numbers['hidden_top1']:.0f} % of their test images, with the fitted bias "
            f"{numbers['hidden_top1_bias']:.0f} %, and {numbers['seen_top1']:.1f} % of all others"
        )
        return figures.draw_answers(figures.answers_table([record], bias)), text

    box = panel(
        "unseen",
        draw,
        hide=W.Text(value=hide, description="hidden", continuous_update=False, style=WIDE),
        T=slider("temperature T", T, 1.0, 20.0, 1.0),
        labels=W.Checkbox(value=False, description="labels alone", style=WIDE),
        bias=W.Checkbox(value=False, description="fitted bias", style=WIDE),
    )
    if store.quiet():
        return present(box)
    buttons = W.HBox([trainer.go, trainer.halt, trainer.bar])
    display(W.VBox([box, buttons, trainer.note, trainer.curve]))


def ablation_lab(lab: Lab, method: str = "") -> None:
    """Turn a method's knobs; stored runs answer at once, a missing one can be trained here.

    Training runs in a child process: progress bar, growing curve, stop and resume.
    """
    pick = choice("method", list_methods(), method_class(method).name)
    pick.add_class("kd-lab-method")
    place = W.VBox()
    trainer = Trainer(lambda: place.children[0].redraw())

    def draw(fig, **values):
        run = plan(lab.run(method=pick.value, seed=lab.seeds[0], **values))
        record = store.find(run)
        trainer.offer(run, record is not None)
        if record is None:
            return figures.draw_progress([], "not trained yet", fig), (
                f"run {run.id} is not in the store: train it, or turn a knob back"
            )
        text = f"{figures.label(record.run)}: {record.result['top1_deployed']:.2f} %"
        other = control(run)
        against = other and store.find(other)
        if against:
            gap = record.result["top1_deployed"] - against.result["top1_deployed"]
            text += f", {gap:+.2f} points against {figures.label(against.run)} (one seed)"
        return figures.draw_progress(record.history, text, fig), text

    def rebuild(_=None):
        place.children = (panel("lab", draw, **knobs(pick.value)),)

    rebuild()
    if store.quiet():
        present(place.children[0])
        return
    pick.observe(rebuild, "value")
    buttons = W.HBox([trainer.go, trainer.halt, trainer.bar])
    display(W.VBox([pick, place, buttons, trainer.note, trainer.curve]))
