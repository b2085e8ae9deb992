"""What happens beside the mathematics of the loop: history and finiteness.

A callback subclasses `Callback` and overrides any of its methods; `fit` calls them with its
`State`. What one keeps between steps stands in its `state_dict`, so that a checkpoint can hold it.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor

from . import metrics


class Callback:
    """Base of all callbacks; every method does nothing unless it is overridden."""

    def start(self, state) -> None:
        """Before the first step. Here a checkpoint is loaded: state.epoch and state.step change."""

    def step(self, state) -> None:
        """After an optimiser step; state.step counts those of the epoch that are done."""

    def epoch(self, state) -> None:
        """After an epoch; state.epoch is the one that ended, below 0 in the pretraining stage."""

    def end(self, state) -> None:
        """At the end, also when an error ends it."""

    def check(self, state) -> None:
        """Raise if what has been computed is not fit to be kept; a checkpoint asks before."""

    def state_dict(self) -> dict:
        """What a continuation needs: tensors, numbers, text, lists and dicts of them."""
        return {}

    def load_state_dict(self, kept: dict) -> None:
        """Take back what `state_dict` gave."""


class NotFinite(ArithmeticError):
    """A loss term or a logit became infinite or not a number."""


def not_finite(state, what: str, step: int) -> NotFinite:
    """The error for what is not finite, first at this step of the epoch. In the first step of all
    no weight has changed yet, so the fields and the teacher are to blame, not the learning rate."""
    where = f"{state.method.title}: {what} not finite at epoch {state.epoch}, step {step}"
    if step == 0 and state.epoch == -state.method.pretrain_epochs(state.recipe.epochs):
        return NotFinite(f"{where}, before any weight has changed: {state.method!r}")
    rate = state.optimizer.param_groups[0]["lr"]
    return NotFinite(f"{where}, with learning rate {rate:g}; a smaller lr may help")


class Finite(Callback):
    """Notes, without a transfer in the step, at which step a term was first not finite."""

    def __init__(self):
        self.first_nonfinite_step: dict[str, Tensor] = {}

    def step(self, state) -> None:
        for name, value in state.terms.items():
            step = torch.full_like(value, math.inf)
            step = step.masked_fill(~torch.isfinite(value), float(state.step - 1))
            seen = self.first_nonfinite_step.get(name)
            self.first_nonfinite_step[name] = step if seen is None else torch.minimum(seen, step)

    def check(self, state) -> None:
        steps = {name: step.item() for name, step in self.first_nonfinite_step.items()}
        first = min(steps.values(), default=math.inf)
        if math.isfinite(first):
            names = [repr(name) for name, step in steps.items() if step == first]
            what = f"the term {names[0]} is" if len(names) == 1 else f"terms {', '.join(names)} are"
            raise not_finite(state, what, int(first))

    def epoch(self, state) -> None:
        self.check(state)
        self.first_nonfinite_step = {}

    def state_dict(self) -> dict:
        return {"first_nonfinite_step": self.first_nonfinite_step}

    def load_state_dict(self, kept: dict) -> None:
        self.first_nonfinite_step = kept["first_nonfinite_step"]


class History(Callback):
    """One row per epoch (`rows`), and one array per epoch for each name in `arrays`.

    A row: epoch, lr, ramp, terms (unweighted means), train_top1 and probe_top1 (% of each student),
    probe_ensemble, diversity, seconds, and test_top1 where `full_tests` asks for it.
    """

    def __init__(self):
        self.rows: list[dict] = []
        self.arrays: dict[str, list[np.ndarray]] = {}
        self.sums: dict[str, dict[str, Tensor]] = {}  # of this epoch, on the device
        self.seconds, self.started = 0.0, time.monotonic()  # of earlier sessions; of this one

    def start(self, state) -> None:
        self.started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training, earlier sessions included."""
        return self.seconds + time.monotonic() - self.started

    def step(self, state) -> None:
        seen = {"terms": state.terms, "watched": getattr(state.method, "seen", {}), "right": {}}
        if state.logits is not None:  # (m, B, K)
            right = state.logits.argmax(-1) == state.y  # (m, B)
            seen["right"] = {"students": right.float().mean(-1)}
        for kind, values in seen.items():
            sums = self.sums.setdefault(kind, {})
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value.clone()

    def epoch(self, state) -> None:
        sums, self.sums = self.sums, {}
        if state.epoch < 0:  # no row is kept of the pretraining stage
            return
        means = {
            kind: {name: value.cpu() / state.step for name, value in values.items()}
            for kind, values in sums.items()
        }
        peers, probe = state.method.peers(), state.data.probe()
        z, y = state.test_logits(probe), state.data.y_test[probe].cpu().numpy()
        row = {
            "epoch": state.epoch,
            "lr": state.learning_rate(),
            "ramp": state.method.ramp(state.epoch, state.recipe.epochs),
            "terms": {name: float(v) for name, v in means["terms"].items()},
            "train_top1": (100 * means["right"]["students"]).tolist(),
            "probe_top1": (100 * metrics.top(z, y)).tolist(),
            "probe_ensemble": 100 * float(metrics.top(metrics.ensemble(z[:peers]), y)),
            "diversity": metrics.diversity(z[:peers]) if peers > 1 else None,
            "seconds": round(self.elapsed(), 2),
        }
        if state.epoch + 1 in full_test_epochs(state.recipe):
            y_test = state.data.y_test.cpu().numpy()
            row["test_top1"] = (100 * metrics.top(state.test_logits(), y_test)).tolist()
        kept = {name: value.numpy() for name, value in means["watched"].items()}
        kept["pair_distance"] = metrics.pair_distance(z)
        kept["probe_logits"] = to_half(z[:, :: followed(len(probe))][:, :64])
        for name, value in kept.items():
            self.arrays.setdefault(name, []).append(np.asarray(value))
        self.rows.append(row)

    def state_dict(self) -> dict:
        arrays = {name: torch.from_numpy(np.stack(v)) for name, v in self.arrays.items()}
        return {
            "rows": self.rows,
            "arrays": arrays,
            "sums": self.sums,
            "seconds": self.elapsed(),
        }

    def load_state_dict(self, kept: dict) -> None:
        self.rows, self.sums, self.seconds = kept["rows"], kept["sums"], kept["seconds"]
        self.arrays = {name: list(v.cpu().numpy()) for name, v in kept["arrays"].items()}
        self.started = time.monotonic()


def full_test_epochs(recipe) -> set[int]:
    """After how many epochs, besides the last, the whole test set is read."""
    n = recipe.full_tests
    return {round((k + 1) * recipe.epochs / (n + 1)) for k in range(n)} - {recipe.epochs}


def followed(n: int) -> int:
    """Of n probe images one in so many is followed, so that 64 are spread over them."""
    return max(1, n // 64)


def to_half(v: np.ndarray) -> np.ndarray:
    """In half precision, or in single where a value overflows it, as untrained networks' may."""
    return v.astype(np.float16 if np.abs(v).max() < np.finfo(np.float16).max else np.float32)
