"""A prediction before the answer: a question with an empty box, and an answer that stays hidden
until something was entered there."""

import html
import json
import time
from typing import Any

import ipywidgets as W
from IPython.display import display
from traitlets import Float, HasTraits

from . import store

HIDDEN = "Enter your guess above: the answer appears here."
_asked: dict[tuple, "Guess"] = {}  # a question asked again is the same one, with its open answers
_hiding: list[W.Output] = []  # of the blocks that run now


def hiding() -> bool:
    """Does what is displayed now go where nobody sees it yet?"""
    return bool(_hiding)


class Guess(HasTraits):
    """A question, and the guess of somebody who was asked it: `value`, None until there is one.

    `with guess:` hides what is displayed in the block until then; errors are raised as ever.
    """

    value = Float(None, allow_none=True)

    def __init__(self, question: str, unit: str, low: float, high: float, step: float):
        super().__init__()
        self.question, self.unit, self.low, self.high, self.step = question, unit, low, high, step
        self.when = 0.0  # seconds since 1970
        self.blocks: list[W.Output | None] = []  # of the `with` statements under way
        self.panel: W.VBox | None = None

    def ask(self) -> None:
        """Show the question with its box, and what was said to it before the kernel started."""
        if self.panel is None:
            self._build()
            self._recall()
        display(self.panel)

    def _build(self) -> None:
        self.box = W.Text(
            placeholder=f"a number from {self.low:g} to {self.high:g}",
            description="your guess",
            layout=W.Layout(width="22em"),
        )
        self.button = W.Button(
            description="That is my guess", tooltip="store it, and show the answer"
        )
        self.note = W.HTML()
        for key, part in (("box", self.box), ("button", self.button), ("note", self.note)):
            part.add_class(f"kd-guess-{key}")
        self.button.on_click(lambda _: self.enter())
        self.box.on_msg(self._on_key)
        row = [self.box, W.Label(self.unit), self.button]
        row = W.HBox(row, layout=W.Layout(flex_flow="row wrap"))
        self.panel = W.VBox([W.HTML(f"<b>{html.escape(self.question)}</b>"), row, self.note])

    def _on_key(self, _, content: dict, buffers: list) -> None:
        if content.get("event") == "submit":  # the Enter key
            self.enter()

    def enter(self) -> None:
        """Take and store what stands in the box, or say what is wrong with it."""
        text = self.box.value
        number = text.strip().removesuffix(self.unit).strip()
        try:
            given = float(number.replace(",", ".").replace("\N{MINUS SIGN}", "-"))
            if not self.low <= given <= self.high:
                raise ValueError
        except ValueError:
            what = repr(text) if text.strip() else "nothing"
            allowed = f"a number from {self.low:g} to {self.high:g} is expected"
            self.note.value = html.escape(f"{allowed}; {what} was entered.")
            return
        value, when = round(round(given / self.step) * self.step, 6), float(round(time.time()))
        why = self._store(value, when)
        self.when, self.value, self.box.value = when, value, ""
        self._tell(why)

    def _store(self, value: float, when: float) -> str:
        """Write the guess into the run store; why it could not be done, else nothing."""
        kept = _kept() | {self.question: {"said": value, "unit": self.unit, "time": when}}
        try:
            store.write(_path(), json.dumps(kept, indent=1).encode())
        except OSError as e:  # as in a class folder that is read-only
            return f" It is kept for this session alone: {e}."
        return ""

    def _recall(self) -> None:
        entry = _kept().get(self.question)
        if isinstance(entry, dict) and entry.get("unit") == self.unit:
            said, when = entry.get("said"), entry.get("time")
            if isinstance(said, int | float) and isinstance(when, int | float):
                self.when, self.value = float(when), float(said)
                self._tell()

    def _tell(self, more: str = "") -> None:
        """Say in the panel what was guessed and when."""
        day = time.localtime(self.when)
        date = f"{day.tm_mday} {time.strftime('%B %Y', day)}"
        text = f"you said {self.amount(self.value)} on {date}; another number replaces it.{more}"
        self.note.value = html.escape(text)

    def amount(self, value: float) -> str:
        """A number with its unit; with its sign where it may have either."""
        return f"{value:{'+' if self.low < 0 else ''}.2f} {self.unit}".strip()

    def compare(self, actual: float) -> None:
        """Show guess, outcome and how far apart they are; a guess that comes later is added to
        it. Under KDKIT_BATCH=1 they are printed."""
        line = W.HTML().add_class("kd-guess-line")

        def draw(_=None):
            text = html.escape(self.outcome(actual))
            line.value = f'<div style="white-space:pre-line; line-height:1.4">{text}</div>'

        if store.quiet():
            print(self.outcome(actual))
            return
        draw()
        self.observe(draw, "value")
        display(line)

    def outcome(self, actual: float) -> str:
        """The text of `compare`."""
        if self.value is None:
            return f"{self.question}\n  it is {self.amount(actual)}; nobody guessed"
        apart = self.amount(abs(actual - self.value)).lstrip("+")
        text = (
            f"{self.question}\n  you said {self.amount(self.value)}, it is {self.amount(actual)}: "
            f"{apart} apart"
        )
        if self.low >= 0 or not self.value * actual:
            return text
        return f"{text}, in {'the same' if self.value * actual > 0 else 'the other'} direction"

    def __enter__(self) -> "Guess":
        hidden = self.value is None and not store.quiet()
        self.blocks.append(self._hidden_output() if hidden else None)
        return self

    def __exit__(self, *error) -> None:
        if output := self.blocks.pop():
            _hiding.remove(output)
            output.__exit__(None, None, None)  # else it would swallow an error and show it itself

    def _hidden_output(self) -> W.Output:
        """Where everything goes that is displayed from now on; it is shown with the guess."""
        output, place = W.Output(layout=W.Layout(display="none")), W.HTML(HIDDEN)
        output.add_class("kd-guess-answer")
        place.add_class("kd-guess-hidden")

        def show(_):
            output.layout.display, place.layout.display = None, "none"

        self.observe(show, "value")
        display(W.VBox([place, output]))
        output.__enter__()
        _hiding.append(output)
        return output


def predict(
    question: str, unit: str = "points", low: float = -10, high: float = 10, step: float = 0.1
) -> Guess:
    """Ask for a number before the answer is seen. Nothing is predicted until somebody enters one.

        guess = kd.predict("KD minus baseline, test accuracy")
        with guess:  # in another cell: hidden until a guess is entered
            lab.figure("kd_gain")
            guess.compare(gain)

    unit, low, high, step: of the number. A guess is kept in the run store (guesses.json) over a
    restart of the kernel and may be replaced. Under KDKIT_BATCH=1 nobody is asked and nothing is
    hidden. ValueError for bounds that hold no number.
    """
    if not (low < high and step > 0):
        raise ValueError(f"low={low!r}, high={high!r}, step={step!r}: low < high and step > 0")
    if store.quiet():
        print(f"{question}: nobody guessed, for KDKIT_BATCH=1 asks nobody")
        return Guess(question, unit, low, high, step)
    key = (_path(), question, unit, low, high, step)
    if key not in _asked:
        _asked[key] = Guess(question, unit, low, high, step)
    _asked[key].ask()
    return _asked[key]


def _path():
    return store.root() / "guesses.json"


def _kept() -> dict[str, Any]:
    """The stored guesses by question."""
    try:
        kept = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
