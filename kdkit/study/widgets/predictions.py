"""What is said of single test images: softened, collected, by attention, by class."""

import ipywidgets as W
import numpy as np
import torch
from traitlets import Any

from ... import metrics
from .. import figures
from ..figures import tables
from ..store import Record
from .controls import WIDE, choice, class_box, matching_classes, slider
from .images import ImagePicker, Thumbnails
from .panels import Panel, present

PEAKS = 12  # that the class map offers as thumbnails


def _pick_image(record: Record, z, z_teacher, order: str, first: int | None) -> ImagePicker:
    """A picker of a record's test images; ValueError where there is no image `first`."""
    x, y, names = tables.test_images(record.run.data), record.labels, record.meta["class_names"]
    if first is not None and not 0 <= first < len(y):
        raise ValueError(f"image={first}: must be from 0 to {len(y) - 1}")
    return ImagePicker(x, y, names, z, z_teacher, order, first)


def temperature(record: Record, T: float = 4.0, image: int | None = None) -> None:
    """Softened predictions of teacher and first student for one test image, by temperature.

    image: position in the test set; None: one that the teacher is sure of and right, with one
    clear rival.
    """
    (z, z_teacher), names = record.logits(), record.meta["class_names"]
    if z_teacher is None:
        raise ValueError(f"run {record.id} ({record.run.method}) has no teacher to show")
    picker = _pick_image(record, z, z_teacher, "clear rival", image)

    def draw(fig, image, T):
        true, z_t, z_s = int(picker.labels[image]), z_teacher[image], z[0, image]
        p, q = metrics.softmax(z_t, T), metrics.softmax(z_s, T)
        text = (
            f"image {image} ({names[true]}), T = {T:g}: entropy {metrics.entropy(p):.3f} "
            f"(teacher), {metrics.entropy(q):.3f} (student) nats; classes above 1/K "
            f"{int(metrics.correlation_number(p))} and {int(metrics.correlation_number(q))}; "
            f"KL(teacher‖student) {metrics.kl_divergence(p, q):.4f}, "
            f"KL(student‖teacher) {metrics.kl_divergence(q, p):.4f}"
        )
        return figures.draw_temperature(z_t, z_s, T, names, picker.images[image], true, fig), text

    present(Panel("temperature", draw, image=picker, T=slider("temperature T", T, 0.5, 20.0, 0.5)))


def attention(record: Record) -> None:
    """OKDDip's attention matrix by epoch, and what each peer is taught. It opens with the epoch
    whose matrix is least symmetric."""
    A = record.arrays.get("attention")  # (E, n, n)
    if A is None:
        raise ValueError(f"run {record.id} ({record.run.method}) kept no attention")
    A = A.astype(float)
    gaps = np.abs(A - A.transpose(0, 2, 1)).max((1, 2))  # (E,)

    def draw(fig, epoch):
        taught = "; ".join(
            f"peer {i} learns most from {'itself' if row.argmax() == i - 1 else 'peer '}"
            f"{'' if row.argmax() == i - 1 else row.argmax() + 1} ({row.max():.2f})"
            for i, row in enumerate(A[epoch - 1], 1)
        )
        return figures.draw_attention_epoch(A, epoch, fig), (
            f"epoch {epoch}: {taught}; largest asymmetry |A - Aᵀ| {gaps[epoch - 1]:.3f}"
        )

    start = int(gaps.argmax()) + 1
    present(Panel("attention", draw, epoch=slider("epoch", start, 1, len(A), 1)))


def collection(record: Record, image: int | None = None) -> None:
    """What each student receives from the others, image by image, from a method that collects.

    image: position in the test set; None: where the students disagree most.
    """
    z, names = record.logits()[0], record.meta["class_names"]
    if not hasattr(record.method, "collect"):
        raise ValueError(f"run {record.id} ({record.run.method}) has no collection")
    picker = _pick_image(record, z, None, "students differ", image)

    def draw(fig, image, student, kind, reverse, tau):
        true, one = int(picker.labels[image]), torch.tensor(z[:, image : image + 1])  # (m, 1, K)
        method = type(record.method)(**(record.method.values() | {"collection": kind}))
        m = method.collect(one)[student - 1, 0].numpy()
        p, q = metrics.softmax(z[student - 1, image], tau), metrics.softmax(m, tau)
        kl = metrics.kl_divergence(p, q) if reverse else metrics.kl_divergence(q, p)
        text = (
            f"image {image} ({names[true]}), tau = {tau:g}: student {student} receives {kind}; "
            f"{'reverse' if reverse else 'forward'} KL {kl:.4f}; classes above 1/K "
            f"{int(metrics.correlation_number(q))} in the collection, "
            f"{int(metrics.correlation_number(p))} in the student"
        )
        shown = picker.images[image], true
        return figures.draw_collection(z[:, image], m, student - 1, tau, names, *shown, fig), text

    kinds = [("logit max", "lmax"), ("probability max", "pmax"), ("average", "avg")]
    present(
        Panel(
            "collection",
            draw,
            image=picker,
            student=slider("student", 1, 1, len(z), 1),
            tau=slider("temperature tau", 2.0, 0.5, 10.0, 0.5),
            kind=choice("collection", kinds),
            reverse=W.Checkbox(value=True, description="reverse KL", style=WIDE),
        )
    )


class PeakPicker(W.VBox):
    """Two classes that are typed: whose images are looked at, and at which peak. The highest peaks
    are thumbnails of the images behind them. `value`: the numbers of both."""

    value = Any()

    def __init__(self, images, labels, names, z: np.ndarray, of: int, peak: int, tau: float):
        """images (N, C, H, W), labels (N,), names of the K classes, logits z (N, K); the classes to
        open with; tau: the peaks that are offered are the highest at this temperature."""
        self.images, self.labels, self.names, self.z, self.tau = images, labels, names, z, tau
        self.of = class_box("images of class", names, names[of])
        self.peak = class_box("peak at class", names, names[peak])
        self.thumbnails, self.note = Thumbnails(), W.HTML()
        for key in ("of", "peak", "thumbnails", "note"):
            getattr(self, key).add_class(f"kd-peaks-{key}")
        super().__init__([W.HBox([self.of, self.peak, self.note]), self.thumbnails])
        self.value = of, peak
        self.offer()
        self.of.observe(self.turn, "value")
        self.peak.observe(self.turn, "value")
        self.thumbnails.observe(self.press, "value")

    def turn(self, change: dict) -> None:
        """Another class was typed; of another one's images the highest peak is shown."""
        found = matching_classes(change["new"], self.names) if change["new"] else []
        self.note.value = "" if found else "no class begins so"
        if found and change["owner"] is self.of:
            self.value = found[0], self.highest(found[0])[0][0]
            self.peak.value = self.names[self.value[1]]
            self.offer()
        elif found and change["owner"] is self.peak and found[0] != self.value[1]:
            self.value = self.value[0], found[0]
            self.offer()

    def highest(self, of: int) -> list[tuple[int, float, int]]:
        """(class, probability, number of the image behind it) of the highest peaks."""
        top, behind = figures.class_peaks(self.z, self.labels, of, self.tau)
        order = [int(n) for n in np.argsort(-top, kind="stable") if n != of][:PEAKS]
        return [(n, float(top[n]), int(behind[0, n])) for n in order]

    def offer(self) -> None:
        """Show the highest peaks of the class."""
        of, peak = self.value
        items = [
            (
                number,
                self.images[image],
                f"{self.names[number]} {p:.2f}",
                f"test image {image}, {self.names[of]}: {self.names[number]} with {p:.2f}",
            )
            for number, p, image in self.highest(of)
        ]
        self.thumbnails.show(items, peak)

    def press(self, change: dict) -> None:
        if change["new"] is not None and change["new"] != self.value[1]:
            self.value = self.value[0], change["new"]
            self.peak.value = self.names[change["new"]]


def class_map(record: Record, tau: float = 4.0) -> None:
    """Class maxima of teacher and student for one class, and the images behind a peak (DCKD's
    Figures 2 and 3; their temperature is not in the text: `tau` is a choice). It opens with the
    peak that the student has most above its teacher."""
    z, z_teacher = record.logits()
    if z_teacher is None:
        raise ValueError(f"run {record.id} ({record.run.method}) has no teacher to show")
    names, x, y = record.meta["class_names"], tables.test_images(record.run.data), record.labels
    table = figures.class_maximum_table([record], tau=tau)
    of = names.index(table["true"].iloc[0])
    peak = int(table["above"].where(table.index != of).idxmax())

    def draw(fig, classes, tau):
        of, peak = classes
        student, behind = figures.class_peaks(z[0], y, of, tau)
        teacher, _ = figures.class_peaks(z_teacher, y, of, tau)
        like = figures.class_peaks(z[0], y, peak, tau)[1][:, peak]
        text = (
            f"largest p({names[peak]}) over the {(y == of).sum()} images of {names[of]}, tau = "
            f"{tau:g}: student {student[peak]:.3f}, teacher {teacher[peak]:.3f}; test images "
            f"{', '.join(map(str, behind[:, peak]))}"
        )
        strips = x[behind[:, peak]], names, x[like]
        return figures.draw_class_map(student, teacher, of, peak, *strips, fig), text

    picker = PeakPicker(x, y, names, z[0], of, peak, tau)
    present(
        Panel("class-map", draw, classes=picker, tau=slider("temperature tau", tau, 0.5, 10.0, 0.5))
    )
