"""Knobs over pure draw functions and stored runs. A widget holds no logic of its own.

Each function shows a panel: controls on top, a picture with alt text below, one line of numbers.
Under KDKIT_BATCH=1 it shows the picture and the line once, without controls. Displays change by
trait assignment only, so that a callback on any thread works; core ipywidgets only.
"""

import html
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import ipywidgets as W
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

from . import metrics, plots, store, tables
from .config import Run
from .methods import DCKD, fields, make, method_class, methods, resolve
from .papers import runs
from .store import Record
from .teach import Lab

WIDE = {"description_width": "110px"}
RANGES = {"m": (2, 8, 1), "T": (0.5, 10.0, 0.5), "tau": (0.5, 10.0, 0.5)}  # of knobs


def slider(text: str, value, low, high, step) -> W.Widget:
    """A slider that acts on release; whole steps give whole numbers."""
    kind = W.IntSlider if isinstance(step, int) else W.FloatSlider
    return kind(
        value=value,
        min=low,
        max=high,
        step=step,
        description=text,
        continuous_update=False,
        style=WIDE,
    )


def choice(text: str, options, value=None) -> W.ToggleButtons:
    """A button for each of the options, values or (label, value) pairs. No drop-down list:
    JupyterLab takes the arrow keys away from one."""
    given = {} if value is None else {"value": value}
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
        with plots.look():  # one at a time: two quick changes may come on two threads
            try:
                values = {k: c.value for k, c in controls.items()}  # rounded: 0.3, not 0.1 + 0.2
                fig, text = draw(
                    fig,
                    **{k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()},
                )
                line.value = f"<p>{html.escape(text)}</p>"  # before the picture, which takes longer
                picture.value = plots.html(fig, text)
            except Exception as e:
                line.value = f"<p>{html.escape(f'{type(e).__name__}: {e}')}</p>"
                if store.quiet():
                    raise

    redraw()
    for key, control in controls.items():
        control.add_class(f"kd-{name}-{key}")
        control.observe(redraw, "value")
    picture.add_class(f"kd-{name}-picture")
    line.add_class(f"kd-{name}-line")
    row = W.HBox(list(controls.values()), layout=W.Layout(flex_flow="row wrap"))
    box = W.VBox([row, picture, line])
    box.redraw = redraw
    return box


def present(box: W.VBox) -> None:
    """Show a panel; under KDKIT_BATCH=1 its picture and line, without controls."""
    display(HTML(box.children[1].value + box.children[2].value) if store.quiet() else box)


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p||q) in nats, (K,) each."""
    return float((p * (np.log(p) - np.log(q))).sum())


def temperature(record: Record, T: float = 4.0, image: int | None = None) -> None:
    """Softened predictions of teacher and first student for one test image, by temperature.

    image: position in the test set; None: the teacher's least certain one.
    """
    (z, z_t), names = tables.logits(record), record.meta["class_names"]
    if z_t is None:
        raise ValueError(f"run {record.id} ({record.run.method}) has no teacher to show")
    if image is None:
        image = int(metrics.softmax(z_t).max(-1).argmin())

    def draw(fig, image, T):
        p, q = metrics.softmax(z_t[image], T), metrics.softmax(z[0, image], T)
        text = (
            f"image {image}, T = {T:g}: entropy {metrics.entropy(p):.3f} (teacher), "
            f"{metrics.entropy(q):.3f} (student) nats; classes above 1/K "
            f"{int(metrics.correlation_number(p))} and {int(metrics.correlation_number(q))}; "
            f"KL(teacher‖student) {_kl(p, q):.4f}, KL(student‖teacher) {_kl(q, p):.4f}"
        )
        return plots.draw_temperature(z_t[image], z[0, image], T, names, fig), text

    present(
        panel(
            "temperature",
            draw,
            T=slider("temperature T", T, 0.5, 20.0, 0.5),
            image=slider("test image", image, 0, z.shape[1] - 1, 1),
        )
    )


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
        return plots.draw_matrices([(f"epoch {epoch}", a)], fig), (
            f"epoch {epoch}: {taught}; largest asymmetry |A - Aᵀ| {gap:.3f}"
        )

    present(panel("attention", draw, epoch=slider("epoch", len(A), 1, len(A), 1)))


def collection(record: Record, image: int | None = None) -> None:
    """DCKD's collections: what each student receives from the others, image by image.

    image: position in the test set; None: where the students disagree most.
    """
    z, names = tables.logits(record)[0], record.meta["class_names"]
    if len(z) < 2:
        raise ValueError(f"run {record.id} ({record.run.method}) has one student: no collection")
    if image is None:
        image = int(metrics.softmax(z).var(0).sum(-1).argmax())

    def draw(fig, image, student, kind, reverse, tau):
        one = torch.tensor(z[:, image : image + 1])  # (m, 1, K)
        m = DCKD(m=len(z), collection=kind).collect(one)[student - 1, 0].numpy()
        p, q = metrics.softmax(z[student - 1, image], tau), metrics.softmax(m, tau)
        kl = _kl(p, q) if reverse else _kl(q, p)
        text = (
            f"image {image}, tau = {tau:g}: student {student} receives {kind}; "
            f"{'reverse' if reverse else 'forward'} KL {kl:.4f}; classes above 1/K "
            f"{int(metrics.correlation_number(q))} in the collection, "
            f"{int(metrics.correlation_number(p))} in the student"
        )
        return plots.draw_collection(z[:, image], m, student - 1, tau, names, fig), text

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
    names, (x, y) = record.meta["class_names"], tables.test_set(record.run.data)
    pairs = [(name, i) for i, name in enumerate(names)]

    def draw(fig, of, peak, tau):
        table = tables.class_maximum([record], of, 0, tau)
        p, q, behind = table.loc[peak, ["student", "teacher", "images"]]
        text = (
            f"largest p({names[peak]}) over the {(y == of).sum()} images of {names[of]}, tau = "
            f"{tau:g}: student {p:.3f}, teacher {q:.3f}; test images "
            f"{behind.replace(' ', ', ')}"
        )
        return plots.draw_class_map(
            table["student"],
            table["teacher"],
            of,
            peak,
            x[[int(i) for i in behind.split()]],
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
    rows, notes = runs.listed(told)
    table = pd.DataFrame(rows, columns=runs.TOLD).set_index(["row", "column"])
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
    for key, (kind, start) in fields(method_class(method)).items():
        allowed = [a for a in getattr(kind, "__args__", ()) if isinstance(a, str)]
        if key in ("rampup", "warmup", "eps", "entropy_sign"):
            continue
        if len(allowed) > 1:
            made[key] = choice(key, allowed, start)
        elif isinstance(start, bool):
            made[key] = W.Checkbox(value=start, description=key, style=WIDE)
        elif not isinstance(start, str):
            low, high, step = RANGES.get(key, (0.0, 3.0, 0.1))
            if type(start) is not type(step) or start and not 0.1 <= start <= high:
                low = step = start // 8 or 1 if isinstance(start, int) else start / 10
                high = 2 * start
            made[key] = slider(key, start, low, high, step)
    return made


def command(run: Run) -> list[str]:
    """The command line that trains `run` in another process."""
    given = {k: v for k, v in vars(run).items() if k not in ("method", "preset", "params")}
    args = []
    for key, value in (given | dict(run.params)).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        args += ["--set", f"{key}={text}"]
    return [sys.executable, "-m", "kdkit", "train", run.method, "--preset", run.preset, *args]


def spawn(run: Run, said) -> subprocess.Popen:
    """A process of its own that trains `run` and writes what it says to the file `said`."""
    env = os.environ | {"KDKIT_BATCH": "1", "KDKIT_RUNS": str(store.root())}
    return subprocess.Popen(command(run), env=env, stderr=said, stdout=subprocess.DEVNULL)


class Trainer:
    """Train, stop and go on with one run in a child process; the kernel stays free."""

    def __init__(self, finished: Callable[[], None]):
        self.finished, self.child, self.run, self.lock = finished, None, None, threading.Lock()
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

    def offer(self, run: Run, finished: bool) -> None:
        """The run that the button would train, unless it is there or another one is training."""
        if self.child is None:
            begun = (store.root() / store.run_id(run) / "checkpoint.pt").exists()
            self.run, self.go.disabled = run, finished
            self.go.description = "Resume" if begun else "Train"

    def start(self) -> None:
        with self.lock:  # two quick clicks may come on two threads
            if self.child is None and not self.go.disabled:
                self.go.disabled, self.halt.disabled, self.note.value = True, False, "starting"
                self.bar.max, self.bar.value = self.run.epochs, 0
                self.said = tempfile.TemporaryFile("w+")
                self.child = spawn(self.run, self.said)
                threading.Thread(target=self.watch, daemon=True).start()

    def stop(self) -> None:
        if child := self.child:
            self.halt.disabled, self.note.value = True, "stopping"
            child.send_signal(signal.SIGTERM)  # it saves and ends

    def watch(self) -> None:
        child, run = self.child, self.run  # `run` may change while it trains
        path = store.root() / store.run_id(run) / "progress.json"
        while child.poll() is None:
            time.sleep(0.4)
            with suppress(OSError):  # not begun, its teacher is trained first, or just finished
                history = json.loads(path.read_bytes())
                if len(history) > self.bar.value and not self.halt.disabled:
                    text = f"epoch {len(history)} of {run.epochs}"
                    picture = plots.html(plots.draw_progress(history, text), f"curves, {text}")
                    self.curve.value, self.bar.value, self.note.value = picture, len(history), text
        self.said.seek(0)
        note = ["stopped before anything was trained", *self.said][-1]
        if store.find(run):
            self.bar.value, self.curve.value, note = run.epochs, "", "done"  # it is drawn above
        self.child, self.halt.disabled, self.note.value = None, True, html.escape(note)
        self.finished()


def ablation_lab(lab: Lab, method: str = "") -> None:
    """Turn a method's knobs; stored runs answer at once, a missing one can be trained here.

    Training runs in a child process: progress bar, growing curve, stop and resume.
    """
    pick = choice("method", methods(), method_class(method).name)
    pick.add_class("kd-lab-method")
    place = W.VBox()
    trainer = Trainer(lambda: place.children[0].redraw())

    def draw(fig, **values):
        run = resolve(lab.run(method=pick.value, seed=lab.seeds[0], **values))
        record = store.find(run)
        trainer.offer(run, record is not None)
        if record is None:
            return plots.draw_progress([], "not trained yet", fig), (
                f"run {store.run_id(run)} is not in the store: train it, or turn a knob back"
            )
        text = f"{plots.label(record)}: {record.result['top1_deployed']:.2f} %"
        against = make(run).control()
        control = against and store.find(
            lab.run(method=against[0].name, seed=run.seed, **against[1])
        )
        if control:
            gap = record.result["top1_deployed"] - control.result["top1_deployed"]
            text += f", {gap:+.2f} points against {plots.label(control)} (one seed)"
        return plots.draw_progress(record.history, text, fig), text

    def rebuild(_=None):
        place.children = (panel("lab", draw, **knobs(pick.value)),)

    rebuild()
    if store.quiet():
        present(place.children[0])
        return
    pick.observe(rebuild, "value")
    buttons = W.HBox([trainer.go, trainer.halt, trainer.bar])
    display(W.VBox([pick, place, buttons, trainer.note, trainer.curve]))
