"""What the kit adds to a training: checkpoints, a bar, a file of its progress, and signals."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
from tqdm.auto import tqdm

from ..callbacks import Callback
from . import fingerprint, store

MAX_CHECKPOINT_SHARE = 1 / 60  # of the time since the last one, that a checkpoint may cost


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside; it is saved and goes on when asked for again."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, in place of the frames that were stopped."""
        return [f"kdkit: {self}"]


@contextmanager
def stoppable():
    """Ctrl-C, a notebook's stop button and SIGTERM set an event; a second Ctrl-C acts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return

    def on_signal(number, frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set from Python


def raise_if_stopped(stop: threading.Event, title: str) -> None:
    """Raise Interrupted where a stop was asked for while the run was ending: it is stored, and what
    would come after it does not start."""
    if stop.is_set():
        raise Interrupted(
            f"stopped; {title} had just finished and is stored: run the same again for what is left"
        )


class Checkpoint(Callback):
    """Saves all that a bit-equal continuation needs, which takes at most 1/60 of the time; goes on
    from what was saved; stops the run when `stop` is set."""

    def __init__(self, plan, stop: threading.Event):
        self.plan, self.stop = plan, stop
        self.resumed_at: int | None = None  # epoch
        self.next_save = 0.0

    def parts(self, state) -> dict:
        """What has a state, by name; there is one callback of a class."""
        own = {"students": state.students, "method": state.method, "optimizer": state.optimizer}
        return own | {type(c).__name__: c for c in state.callbacks if c.state_dict()}

    def signature(self, state) -> list:
        """What a checkpoint must agree in with the code that goes on from it."""
        shapes = [
            [name, list(value.shape)]
            for part in (state.students, state.method)
            for name, value in part.state_dict().items()
        ]
        return [fingerprint.class_digest(type(state.method)), str(state.dtype), shapes]

    def start(self, state) -> None:
        kept = store.read_checkpoint(self.plan)
        if kept is not None and kept.get("fits") != self.signature(state):
            store.say("a checkpoint of other code or precision was found: training from the start")
        elif kept is not None:
            for name, part in self.parts(state).items():
                part.load_state_dict(store.tensors_to(kept[name], state.device))
            state.epoch = self.resumed_at = kept["epoch"]
            state.step = kept["step"]
            store.say(f"{self.plan.title}: going on from epoch {state.epoch}, step {state.step}")
        self.next_save = time.monotonic() + 1

    def step(self, state) -> None:
        if self.stop.is_set() or time.monotonic() > self.next_save:
            self.save(state)
        if self.stop.is_set():
            raise Interrupted(
                f"stopped at epoch {state.epoch}, step {state.step}, and saved: run the "
                "same again and it goes on from there"
            )

    def save(self, state) -> None:
        for callback in state.callbacks:
            callback.check(state)
        began = time.monotonic()
        kept = {name: part.state_dict() for name, part in self.parts(state).items()}
        kept |= {"fits": self.signature(state), "epoch": state.epoch, "step": state.step}
        store.write_checkpoint(self.plan, kept)
        cost = time.monotonic() - began
        self.next_save = time.monotonic() + max(1.0, cost / MAX_CHECKPOINT_SHARE)


class Progress(Callback):
    """A bar of steps on standard error, with the last epoch's sum of unweighted loss terms and its
    mean probe accuracy."""

    def __init__(self, title: str = "", quiet: bool = False):
        self.title, self.quiet, self.bar = title, quiet, None

    def start(self, state) -> None:
        before = state.method.pretrain_epochs(state.recipe.epochs)
        self.bar = tqdm(
            total=(before + state.recipe.epochs) * state.steps,
            initial=(before + state.epoch) * state.steps + state.step,
            desc=self.title or state.method.title,
            unit="step",
            disable=self.quiet,
            leave=False,
        )

    def step(self, state) -> None:
        self.bar.update()

    def epoch(self, state) -> None:
        if state.history:
            row = state.history[-1]
            terms, top1 = sum(row["terms"].values()), np.mean(row["probe_top1"])
            self.bar.set_postfix(terms=f"{terms:.2f}", top1=f"{top1:.1f}")

    def end(self, state) -> None:
        if self.bar is not None:
            self.bar.close()


class ProgressFile(Callback):
    """Writes the history so far after each epoch, for live pictures of the run."""

    def __init__(self, plan, on_epoch: Callable | None = None):
        self.plan, self.on_epoch = plan, on_epoch

    def epoch(self, state) -> None:
        if state.epoch >= 0:
            store.write_progress(self.plan, state.history)
            if self.on_epoch:
                self.on_epoch(state)
