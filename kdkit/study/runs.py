"""`get`: the finished record of a run, from the store or trained now by the engine's `fit`."""

import copy
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from .. import train
from ..callbacks import NotFinite
from ..data import Data
from ..device import choose_device, plain_modes, use_threads
from ..fields import choose
from ..randomness import own_draws, seed_of
from . import fingerprint, store
from .callbacks import Checkpoint, Interrupted, Progress, ProgressFile, raise_if_stopped, stoppable
from .plans import Plan, Run, build_students, plan


def get(
    run: Run | Plan, fresh: bool = False, on_epoch: Callable[[train.State], None] | None = None
) -> store.Record:
    """The finished record of a run: from the store where it is there, else trained now.

    fresh: train again and replace the stored one.  on_epoch: called with the engine's state after
    each epoch. Two processes that ask for one run: one trains, the other waits. Raises Interrupted
    (what was done is saved), NotFinite, and ValueError for what does not fit.
    """
    planned = plan(run)
    record = None if fresh else store.find(planned)
    if record is None:
        with store.lock(planned):
            # Another process may have done it meanwhile.
            record = store.find(planned, quarantine_damaged=True)
            if record is None or fresh:
                return train_and_store(planned, on_epoch)
    if record.meta["code"] != fingerprint.class_digest(type(planned.method)):
        store.say(
            f"{planned.run.method} (run {record.id}) was trained with other code of its class; "
            "fresh=True trains it again"
        )
    return record


def load_images(planned: Plan, device: torch.device) -> Data:
    """The images of a run, on the device, without the training images of the classes that it
    hides. ValueError: an unknown class, or no image is left."""
    data = fingerprint.load_data(planned.run.data).subset(planned.run.n_train)
    if planned.run.hide:
        hidden = [
            data.class_names.index(choose(name, data.class_names, f"class of {data.name}"))
            for name in planned.run.hide.split(",")
        ]
        seen = ~torch.isin(data.y, torch.tensor(hidden, device=data.y.device))
        if not seen.any():
            raise ValueError(f"hide={planned.run.hide!r}: no training image is left")
        kept = seen.nonzero()[:, 0]
        data = replace(data, x=data.x[kept], y=data.y[kept])
    return data.to(device)


def check_fit(runs: Iterable[Plan]) -> None:
    """Rehearse the runs that are not stored; of those that differ in nothing but their seeds one.
    ValueError, in one line, for the first that does not fit."""
    seen, loaded = set(), {}
    for planned in runs:
        if store.find(planned):
            continue
        alike = planned.run.replace(seed=0, teacher_seed=0)
        if alike not in seen:
            seen.add(alike)
            images = (alike.data, alike.n_train, alike.hide)
            if images not in loaded:
                loaded = {images: load_images(planned, choose_device())}  # one at a time in memory
            rehearse(planned, loaded[images])


def train_and_store(planned: Plan, on_epoch: Callable | None = None) -> store.Record:
    """Train a run from its checkpoint or its start, and store it."""
    recipe, device = planned.run, choose_device()  # a Run is a Recipe with names
    with stoppable() as stop:
        data = load_images(planned, device)
        untaught = planned.teacher is not None and store.find(planned.teacher) is None
        if recipe.epochs and (untaught or fingerprint.user_code(recipe)):
            rehearse(planned, data)
        teacher = _teacher(planned, data, stop)
        with own_draws(seed_of(recipe.seed, "init")):
            students = build_students(planned, data.shape, data.classes)
        checkpoint = Checkpoint(planned, stop)
        fitted = train.fit(
            copy.deepcopy(planned.method),
            students,
            data,
            teacher=teacher,
            recipe=recipe,
            seed=recipe.seed,
            device=device,
            callbacks=[
                checkpoint,
                Progress(planned.title, quiet=store.quiet()),
                ProgressFile(planned, on_epoch),
            ],
        )
        record = store.save(planned, fitted, data, checkpoint.resumed_at)
        raise_if_stopped(stop, planned.title)
    return record


def _teacher(planned: Plan, data, stop: threading.Event) -> nn.Module | None:
    """The trained teacher of a run, from the store or trained now, with its test logits.

    A teacher's run hears signals for itself: Interrupted where `stop` is set before it begins.
    """
    if planned.teacher is None:
        return None
    teacher_run = planned.teacher.run
    if store.find(planned.teacher) is None:
        if stop.is_set():
            raise Interrupted(
                f"stopped before the teacher of {planned.title} was trained: run the same again "
                "to begin"
            )
        what = "training" if teacher_run.epochs else "testing"
        store.say(
            f"{planned.run.method} needs a teacher: {what} {teacher_run.student} "
            f"({teacher_run.method}, seed {teacher_run.seed}) first"
        )
    record = get(planned.teacher)
    teacher, kept = record.model(), record.test_logits
    if "students_classes" not in kept:  # several students: their ensemble
        teacher.test_logits = kept["students"].astype(np.float32).mean(0)
    return teacher


def rehearse(planned: Plan, data: Data) -> None:
    """One step of every stage on a few images, with untrained networks that are thrown away.

    ValueError, in one line, where networks, data and method do not fit together: so that this is
    known before a teacher is trained.
    """
    with own_draws(0):
        teacher = planned.teacher and build_students(planned.teacher, data.shape, data.classes)
        students = build_students(planned, data.shape, data.classes)
    method = copy.deepcopy(planned.method)
    recipe = planned.run.replace(batch=min(planned.run.batch, 8), epochs=max(1, planned.run.epochs))
    n = max(16, 2 * data.classes)
    few = data.subset(n) if n < len(data.y) else data
    with use_threads(recipe.threads), plain_modes(data.y.device):
        try:
            state = train.assemble(method, students, few, teacher, recipe, 0, data.y.device)
            # Of all images and for the batch of the run itself.
            train.training_positions(method, data, planned.run)
            state.positions = torch.arange(recipe.batch, device=state.device)
            for epoch in sorted({state.epoch, 0}):
                state.epoch, state.step = epoch, 0
                train.train_epoch(state)
        except (ValueError, OSError, NotFinite):
            raise
        except Exception as e:  # in a user's method or network anything may go wrong
            why = f"{type(e).__name__}: {' '.join(str(e).split())}"
            raise ValueError(f"{method.title} does not fit these networks: {why}") from e
