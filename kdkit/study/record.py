"""A finished run as it is read: what it was, what came of it, and its trained networks."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import metrics, models
from ..methods import Method
from ..randomness import own_draws
from . import fingerprint
from .plans import Run, build_students, plan, run_from


class Deployed(nn.Module):
    """A network with its normalisation inside: images (B, C, H, W) in, logits (B, K) out.

    mean, std: per channel, in units of 0..1; images are bytes, or floats from 0 to 1. For data that
    were never bytes all are in the data's own units.
    """

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(
                name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            )  # (C, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return models.as_out(self.network((x - self.mean) / self.std)).logits


@dataclass(frozen=True)
class Record:
    """A finished run. `result`, `history` and the rest of record.json are in `meta`."""

    path: Path
    meta: dict

    @property
    def id(self) -> str:
        return self.meta["id"]

    @property
    def result(self) -> dict:
        """Accuracies in percent and more (`metrics.report`), of the last epoch."""
        return self.meta["result"]

    @property
    def history(self) -> list[dict]:
        """One dict per epoch: epoch, lr, terms, train_top1, probe_top1, diversity, ..."""
        return self.meta["history"]

    @cached_property
    def run(self) -> Run:
        return run_from(self.meta["run"])

    @cached_property
    def method(self) -> Method:
        """The run's method, with its fields. ValueError where a user's is not loaded."""
        return plan(self.run).method

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """For each of E epochs: pair_distance (E, m, m), probe_logits (E, m, 64, K), and what the
        method watched, such as attention (E, m-1, m-1); and probe_index (64,)."""
        return dict(np.load(self.path / "history.npz", allow_pickle=False))

    @cached_property
    def test_logits(self) -> dict[str, np.ndarray]:
        """students (m, N, K) and, where there is one, teacher (N, K), in the test file's order;
        above 200 classes the last axis holds eleven, whose classes are in `*_classes`."""
        kept = np.load(self.path / "test_logits.npz", allow_pickle=False)
        return {name: kept[name] for name in kept.files if name != "labels"}

    @property
    def labels(self) -> np.ndarray:
        """The test images' classes (N,) int64."""
        kept = np.load(self.path / "test_logits.npz", allow_pickle=False)
        if "labels" in kept.files:
            return kept["labels"].astype(np.int64)
        return fingerprint.load_data(self.run.data).y_test.cpu().numpy()  # an old record

    def logits(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The stored test logits: students (m, N, K) and teacher (N, K) or None, float64.

        They were rounded to half precision, by at most 1/2048 of each value. ValueError where the
        store kept only the largest of each image.
        """
        kept = self.test_logits
        if "students_classes" in kept:
            raise ValueError(f"run {self.id}: only the largest logits are stored above 200 classes")
        teacher = kept.get("teacher")
        z = kept["students"].astype(np.float64)
        return z, None if teacher is None else teacher.astype(np.float64)

    def metric(self, name: str) -> float | list[float]:
        """A metric of the test images, computed now from the stored logits: one of
        `metrics.list_metrics()`, also one registered after the run was trained.

            @kd.metric("margin")
            def margin(z, y):  # z: (m, N, K) float64 logits, y: (N,) -> (m,)
                two = np.sort(z, -1)[..., -2:]
                return (two[..., 1] - two[..., 0]).mean(-1)

            record.metric("margin")

        Logits are stored in half precision: they are right to three decimal digits.
        """
        if name not in metrics.METRICS and name in self.result:
            return self.result[name]
        value = metrics.METRICS.find(name)(self.logits()[0], self.labels)
        return np.asarray(value).tolist() if isinstance(value, np.ndarray | np.generic) else value

    def model(self, device: str = "cpu") -> nn.Module:
        """The trained students, in eval mode, frozen: they take normalised images.

        ValueError where a user's network is another one by now than the one that was trained.
        """
        trained = {k: v for k, v in self.meta.get("identity", {}).items() if k != "method"}
        for name, now in fingerprint.network_identity(self.run.student).items():
            if trained.get(name, now) != now:
                raise ValueError(f"run {self.id} was trained with other code of {name}")
        with own_draws(0):  # nobody sees what they were before
            net = build_students(self.run, tuple(self.meta["shape"]), self.meta["classes"])
        state = torch.load(self.path / "weights.pt", map_location="cpu", weights_only=True)
        net.load_state_dict(state["students"])
        return net.to(device).eval().requires_grad_(False)

    def student(self, device: str = "cpu") -> nn.Module:
        """The deployed network alone, as a plain module: images (B, C, H, W) in, as bytes or as
        floats of the data's own range (0 to 1 for bytes), logits (B, K) out."""
        net, index = self.model(), self.result["deployed"] or 0
        if "mean" in self.meta:
            mean, std = self.meta["mean"], self.meta["std"]
        else:  # an old record
            data = fingerprint.load_data(self.run.data)
            mean, std = data.mean, data.std
        single = net.nets[index] if isinstance(net, models.Peers | models.Branches) else net
        return Deployed(single, mean, std).to(device).eval().requires_grad_(False)
