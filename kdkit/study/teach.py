"""What only notebooks use: the lab, with its live picture, and real source on the page."""

import inspect
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import HTML, Code, display

from . import figures, guess, runs, statistics, store, sweep
from .plans import Plan, Run, plan, preset
from .store import Record


@dataclass(frozen=True)
class Lab:
    """Runs of one preset. `get` and `all` return finished records: from the store, else trained."""

    base: Run
    seeds: tuple[int, ...]
    reference: bool = False  # are figures drawn from the project's reference where that will do?

    def run(self, **fields) -> Run:
        """The run of this lab with fields changed: `lab.run(method="kd", T=2.0)`."""
        return self.base.replace(**fields)

    def get(self, fresh: bool = False, on_epoch: Callable | None = None, **fields) -> Record:
        """One finished run; `seed` is the lab's first if not given.

        on_epoch: called with the engine's state after each epoch, in place of a live picture.
        """
        planned = plan(self.run(**{"seed": self.seeds[0], **fields}))
        if on_epoch is None and not store.quiet() and not guess.hiding():
            on_epoch = _LivePicture(planned)
        return runs.get(planned, fresh, on_epoch)

    def all(self, **fields) -> list[Record]:
        """The finished runs of all the lab's seeds."""
        return [self.get(**{**fields, "seed": seed}) for seed in self.seeds]

    def gain(self, ours: dict, control: dict) -> str:
        """How far the deployed student of `ours` (fields of a run) is above that of `control`:
        the mean over the lab's seeds, paired, and whether its 95 % interval excludes 0."""
        a, b = ([r.result["top1_deployed"] for r in self.all(**f)] for f in (ours, control))
        n, mean, half = statistics.paired(a, b)
        if n == 1:
            return f"{mean:+.2f} points (one seed)"
        return f"{mean:+.2f} ± {half:.2f} (n={n}): {'' if abs(mean) > half else 'not '}shown"

    def train(self, *names: str) -> None:
        """Train what the figures of these names lack, side by side, with a bar and no picture: so
        that nothing is seen before a guess. ValueError for unknown names, RuntimeError where a run
        fails."""
        entries = [figures.get_figure(name) for name in names]
        wanted = {
            planned.id: planned
            for entry in entries
            if not (self.reference and figures.reference_records(entry, self.base))
            for fields in entry.runs(self.base)
            for seed in self.seeds
            for planned in [plan(self.run(**{**fields, "seed": seed}))]
        }
        missing = [planned for planned in wanted.values() if store.find(planned) is None]
        if len(missing) > 1 and sweep.cores() > 1 and not any(map(sweep.own_names, missing)):
            if failed := sweep.sweep(missing):
                raise RuntimeError("; ".join(f"{title}: {why}" for title, why in failed.items()))
        else:
            for planned in missing:
                runs.get(planned)
        print(f"{len(wanted)} run(s) are ready, {len(missing)} of them trained now")

    def figure(self, name: str) -> pd.DataFrame:
        """Get the runs of a figure, draw it, save it, show it with what it says; its numbers.

        Where the project's reference has rows of the same recipe and data, they lie beneath in
        grey, and are said to.
        """
        table, fig, (alt, *findings) = figures.make(name, *self._records(name))
        try:
            figures.save(fig, name, alt, table)
        except OSError as e:  # as in a class folder that is read-only
            warnings.warn(f"the figure is shown and not saved: {e}", stacklevel=2)
        display(HTML(figures.html(fig, alt)))
        display(HTML(f"<p>{alt}</p>" + "".join(f"<p>→ {line}</p>" for line in findings)))
        return table

    def _records(self, name: str) -> tuple[list[Record], list[Record]]:
        """The records that a figure is drawn of, and those beneath it."""
        entry = figures.get_figure(name)
        rows = figures.reference_records(entry, self.base)
        if self.reference and rows:
            return rows, []
        own = [record for fields in entry.runs(self.base) for record in self.all(**fields)]
        return own, rows if len(rows) > len(own) else []


def lab(preset_name: str = "auto", seeds: int | str | None = None, **fields) -> Lab:
    """The lab of a preset; "auto" is $KDKIT_PRESET, or the lesson.

    seeds: how many (0, 1, ...), or "reference": seed 0, and figures of the project's reference; if
    not given $KDKIT_SEEDS, or 1. fields: changes to every run.
    """
    if preset_name == "auto":
        preset_name = os.environ.get("KDKIT_PRESET") or "lesson"
    if seeds is None:
        seeds = os.environ.get("KDKIT_SEEDS") or 1
    if seeds == "reference":
        return Lab(preset(preset_name, **fields), (0,), reference=True)
    if int(seeds) < 1:
        raise ValueError(f"seeds={seeds!r}: must be at least 1, or reference")
    return Lab(preset(preset_name, **fields), tuple(range(int(seeds))))


class _LivePicture:
    """A curve that grows in place while a run trains: at most twice a second."""

    def __init__(self, planned: Plan):
        self.planned, self.handle, self.last = planned, None, 0.0

    def __call__(self, state) -> None:
        epoch, epochs = state.epoch + 1, state.recipe.epochs
        if time.monotonic() - self.last < 0.5 and epoch < epochs:
            return
        self.last = time.monotonic()
        seed = self.planned.run.seed
        title = f"{self.planned.method.title}, seed {seed}, epoch {epoch} of {epochs}"
        picture = HTML(figures.html(figures.draw_progress(state.history, title), title))
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)


def show(obj: Any) -> None:
    """The real source of a class or function, as it runs."""
    display(Code(inspect.getsource(obj), language="python"))
