"""Test images to choose from: small pictures that are buttons, lined up by what is of interest."""

import html
import secrets

import ipywidgets as W
import numpy as np
from traitlets import Any

from ... import metrics
from ..figures.predictions import thumbnail
from .controls import choice, class_box, matching_classes

SHOWN = 12  # thumbnails at a time
SIZE = 52  # of a thumbnail on the page, in pixels
STYLE = f"""<style>
.MARK button {{width: {SIZE + 14}px; height: {SIZE + 30}px; padding: {SIZE + 6}px 2px 0;
 font-size: 11px; line-height: 22px; color: #222; border: 1px solid #ccc;
 background: #fff no-repeat center 4px / auto {SIZE}px}}
.MARK button.mod-active {{background-color: #dcebfa; outline: 3px solid #3f90da}}
.MARK > div {{display: flex; flex-flow: row wrap}}
PICTURES</style>"""


def rivalry(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N,): the distance from the second to the third logit, where an image is named rightly with
    at least 95 %; all others stand below those. z (N, K), y (N,)."""
    _, second, third = -np.sort(-np.pad(z, ((0, 0), (0, 1)), constant_values=z.min())).T[:3]
    sure = (z.argmax(-1) == y) & (metrics.softmax(z).max(-1) >= 0.95)
    return np.where(sure, second - third, (second - third) - 1e6)


def clear_rival(z: np.ndarray, y: np.ndarray) -> int:
    """The image with the greatest distance from the second to the third logit among those that are
    named rightly with at least 95 %; of all, where there is none. z (N, K), y (N,)."""
    return int(rivalry(z, y).argmax())


def image_orders(
    z: np.ndarray, z_teacher: np.ndarray | None, y: np.ndarray
) -> dict[str, np.ndarray]:
    """Ways to line up test images, most fitting first: name -> numbers of images.

    "clear rival", "sure", "unsure" and "wrong" are the teacher's answers, or the students' mean
    where there is no teacher. On the first pages is one image of each class; "all" is the order of
    the test set. z (m, N, K), z_teacher (N, K): logits; y (N,).
    """
    students = metrics.softmax(z)  # (m, N, K)
    judge = z.mean(0) if z_teacher is None else z_teacher
    p = metrics.softmax(judge)
    wrong = p.argmax(-1) != y
    scores = {
        "clear rival": rivalry(judge, y),
        "sure": p.max(-1),
        "unsure": -p.max(-1),
        "wrong": np.where(wrong, p.max(-1), -np.inf),
    }
    if z_teacher is not None:
        scores["teacher ≠ student"] = np.abs(p - students[0]).sum(-1)
    if len(z) > 1:
        scores["students differ"] = students.var(0).sum(-1)
    orders = {name: one_of_each(np.argsort(-s, kind="stable"), y) for name, s in scores.items()}
    orders["wrong"] = orders["wrong"][wrong[orders["wrong"]]]
    return {name: order for name, order in orders.items() if len(order)} | {
        "all": np.arange(len(y))
    }


def one_of_each(order: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Images in this order (N,), but first the first of each class, then each second, and so on."""
    by_class = np.argsort(y[order], kind="stable")
    classes = y[order][by_class]
    starts = np.searchsorted(classes, classes)  # where the class of each begins
    place = np.empty_like(by_class)
    place[by_class] = np.arange(len(order)) - starts
    return order[np.argsort(place, kind="stable")]


class Thumbnails(W.VBox):
    """Small pictures that are buttons, a word below each; `value` is that of the pressed one."""

    value = Any(None)

    def __init__(self):
        self.buttons = W.ToggleButtons(options=[], layout=W.Layout(width="auto", height="auto"))
        self.look = W.HTML(layout=W.Layout(display="none"))  # its style sheet acts all the same
        self.mark, self.filling = f"kd-{secrets.token_hex(4)}", False
        self.buttons.add_class(self.mark).add_class("kd-thumbnails")
        self.buttons.observe(self.take, "value")
        super().__init__([self.look, self.buttons])

    def show(self, items: list[tuple], pressed=None) -> None:
        """Show (value, image (C, H, W), word, tooltip) of each; press the one with the value
        `pressed`, by default the first. None is pressed where it is not among them."""
        values = [item[0] for item in items]
        if pressed is None and values:
            pressed = values[0]
        pictures = "\n".join(
            f".MARK button:nth-of-type({place}) {{background-image: url({thumbnail(image)})}}"
            for place, (_, image, _, _) in enumerate(items, 1)
        )
        self.look.value = STYLE.replace("PICTURES", pictures).replace("MARK", self.mark)
        self.filling = True
        with self.buttons.hold_sync():  # the page gets words and tooltips at once
            self.buttons.tooltips = [tooltip for *_, tooltip in items]
            # ipywidgets mistakes equal words for one another: spaces without width tell them apart.
            self.buttons.options = [
                (word + "\u200b" * place, value) for place, (value, _, word, _) in enumerate(items)
            ]
            self.buttons.value = pressed if pressed in values else None
        self.filling = False
        self.value = pressed

    def take(self, change) -> None:
        if not self.filling and change["new"] is not None:
            self.value = change["new"]


class ImagePicker(W.VBox):
    """Thumbnails of test images, how they are lined up, and of which class; `value` is the number
    of the chosen image."""

    value = Any(0)

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        names: list[str],
        z: np.ndarray,
        z_teacher: np.ndarray | None = None,
        order: str = "clear rival",
        first: int | None = None,
    ):
        """images (N, C, H, W), labels (N,), names of the K classes; z (m, N, K), z_teacher (N, K):
        logits. order: of `image_orders`, the one to open with; first: an image to open with, among
        others of its class; by default the first of the order."""
        self.images, self.labels, self.names, self.begin = images, labels, names, 0
        self.orders = image_orders(z, z_teacher, labels)
        self.who = "the students' mean" if z_teacher is None else "the teacher"
        self.p = metrics.softmax(z).mean(0) if z_teacher is None else metrics.softmax(z_teacher)
        self.order = choice("test images", list(self.orders), order)
        self.order.style.description_width = "84px"
        self.of = class_box("of class", names, placeholder="any")
        self.back = W.Button(description="‹", tooltip="earlier images", layout={"width": "36px"})
        self.more = W.Button(description="›", tooltip="more images", layout={"width": "36px"})
        self.count, self.thumbnails = W.HTML(), Thumbnails()
        for key in ("order", "of", "back", "more", "count", "thumbnails"):
            getattr(self, key).add_class(f"kd-images-{key}")
        turning = W.HBox([self.of, self.back, self.more, self.count])
        row = W.HBox([self.order, turning], layout=W.Layout(flex_flow="row wrap"))
        super().__init__([row, self.thumbnails], layout=W.Layout(width="100%"))
        if first is not None:
            self.of.value = names[labels[first]]
            place = int(np.flatnonzero(self.chosen() == first)[0])
            self.begin = place - place % SHOWN
        self.fill(first)
        self.thumbnails.observe(self.take, "value")
        self.order.observe(lambda _: self.turn(-self.begin), "value")
        self.of.observe(lambda _: self.turn(-self.begin), "value")
        self.back.on_click(lambda _: self.turn(-SHOWN))
        self.more.on_click(lambda _: self.turn(SHOWN))

    def chosen(self) -> np.ndarray:
        """Numbers of the images to show, in order."""
        order = self.orders[self.order.value]
        classes = matching_classes(self.of.value, self.names)
        return order[np.isin(self.labels[order], classes)]

    def turn(self, by: int) -> None:
        """Go on by so many images."""
        self.begin += by
        self.fill()

    def fill(self, pressed: int | None = None) -> None:
        """Show a page of thumbnails."""
        chosen = self.chosen()
        shown = chosen[self.begin : self.begin + SHOWN]
        self.back.disabled, self.more.disabled = self.begin == 0, self.begin + SHOWN >= len(chosen)
        end = self.begin + len(shown)
        self.count.value = (
            f"{self.begin + 1} to {end} of {len(chosen)}"
            if len(shown)
            else f"none of {html.escape(self.of.value)!r}"
        )
        self.thumbnails.show([self.item(int(number)) for number in shown], pressed)
        self.take()

    def item(self, number: int) -> tuple:
        """(number, image, word, tooltip) of a thumbnail."""
        said, true = int(self.p[number].argmax()), int(self.labels[number])
        p, name = self.p[number, said], self.names[true]
        word = f"{name} {p:.2f}" if said == true else f"{name}→{self.names[said]} {p:.2f}"
        tip = f"test image {number}, {name}: {self.who} says {self.names[said]} with {p:.2f}"
        return number, self.images[number], word, tip

    def take(self, _=None) -> None:
        if self.thumbnails.value is not None:
            self.value = self.thumbnails.value
