"""A button that trains a run in a process of its own, and what it says meanwhile."""

import dataclasses
import html
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress

import ipywidgets as W

from .. import figures, store
from ..plans import Plan
from ..sweep import WORKER_ENV, own_names, run_on_worker, start_worker


def history_so_far(planned: Plan) -> list[dict]:
    """The epochs of a run that is under way or was stopped."""
    try:
        return json.loads((store.folder(planned) / "progress.json").read_bytes())
    except (OSError, ValueError):  # none was begun, or it was just finished
        return []


def is_begun(planned: Plan) -> bool:
    """Does a checkpoint of the run wait to go on?"""
    return (store.folder(planned) / "checkpoint.pt").exists()


class Trainer:
    """Train, stop and go on with one run in a worker process; the kernel stays free.

    All that it shows belongs to the run that is training, or else to the one that was chosen last.
    redraw: called after each epoch of the chosen run, and when a run has ended.
    """

    def __init__(self, redraw: Callable[[], None], most: int = 1):
        """most: how many runs may be offered at a time, each by a button."""
        self.redraw, self.worker, self.training = redraw, None, None
        self.offered: tuple[Plan, ...] = ()  # the first is the chosen one
        self.notes: dict[str, str] = {}  # run id -> how its training ended
        self.lock = threading.Lock()
        self.buttons = [W.Button(layout=W.Layout(width="auto")) for _ in range(most)]
        self.halt = W.Button(description="Stop", tooltip="stop and save", disabled=True)
        self.halt.layout.width = "60px"
        self.bar, self.note = W.IntProgress(layout=W.Layout(width="180px")), W.HTML()
        parts = {"stop": self.halt, "bar": self.bar, "note": self.note}
        parts |= {f"train-{number}": button for number, button in enumerate(self.buttons)}
        for key, part in parts.items():
            part.add_class(f"kd-lab-{key}")
        for number, button in enumerate(self.buttons):
            button.on_click(lambda _, number=number: self.start(number))
        self.halt.on_click(lambda _: self.stop())
        self.box = W.HBox([*self.buttons, self.halt, self.bar, self.note])
        self.box.layout.flex_flow = "row wrap"

    def offer(self, runs: dict[str, tuple[Plan, bool]]) -> None:
        """Offer runs: what they are -> (run, is it trained?). The first is the chosen one."""
        with self.lock:
            self.offered = tuple(planned for planned, _ in runs.values())
            chosen, is_trained = next(iter(runs.values()))
            for number, button in enumerate(self.buttons):
                button.layout.display = "none"
                if number < len(runs):
                    text, (planned, trained) = list(runs.items())[number]
                    busy = self.worker is not None
                    button.description = f"{'Resume' if is_begun(planned) else 'Train'} {text}"
                    button.tooltip = f"train {figures.label(planned)} in a process of its own"
                    button.disabled = trained or busy or bool(own_names(planned))
                    # The chosen run has a button always, another one where it is missing.
                    if not number or not (trained or planned.id == chosen.id):
                        button.layout.display = ""
            if self.worker is not None:
                return  # bar and note are about the run that is training
            epochs = chosen.run.epochs
            self.bar.max = epochs
            self.bar.value = epochs if is_trained else len(history_so_far(chosen))
            note = self.notes.get(chosen.id, "trained" if is_trained else "not trained yet")
            if own := own_names(chosen):
                note = (
                    f"{', '.join(own)} is defined in this notebook, which a worker process does "
                    "not see: train it with lab.get"
                )
            self.note.value = html.escape(note)

    def start(self, number: int = 0) -> None:
        """Train the run that the button of this number offers."""
        with self.lock:  # two quick clicks may come on two threads
            if self.worker is not None or self.buttons[number].disabled:
                return
            self.training = self.offered[number]
            for button in self.buttons:
                button.disabled = True
            self.halt.disabled = False
            self.say("starting")
            self.bar.max, self.bar.value = self.training.run.epochs, 0
            self.worker = start_worker(os.environ | WORKER_ENV)
            threading.Thread(target=self.watch, daemon=True).start()

    def say(self, text: str) -> None:
        """A line on the run that is training."""
        name = f"{figures.label(self.training)}, seed {self.training.run.seed}"
        self.note.value = f"training {html.escape(name)}: {html.escape(text)}"

    def stop(self) -> None:
        if worker := self.worker:
            self.halt.disabled = True
            self.say("stopping")
            worker.terminate()  # it saves and ends

    def watch(self) -> None:
        """Listen to the worker until its run has ended."""
        worker, planned = self.worker, self.training  # others may be chosen while it trains
        note = "stopped before anything was trained"
        for text, event in run_on_worker(worker, {"run": dataclasses.asdict(planned.run)}):
            note = event.get("failed") or event.get("stopped") or text or note
            if text and not self.halt.disabled:
                self.say(text)  # such as: its teacher is trained first
            if "epoch" in event and not self.halt.disabled:
                self.bar.value = event["epoch"]
                self.say(f"epoch {event['epoch']} of {planned.run.epochs}")
                if self.offered[0].id == planned.id:
                    self.redraw()
            if "failed" in event:
                break
        with suppress(OSError):
            worker.stdin.close()  # it has nothing more to do
        worker.wait()
        self.notes[planned.id] = "done" if store.find(planned) else note
        self.worker = self.training = None
        self.halt.disabled = True
        self.redraw()
