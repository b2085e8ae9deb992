"""A panel: controls over a picture and a line of text, drawn by one pure function."""

import html
from collections.abc import Callable

import ipywidgets as W
from IPython.display import HTML, display

from .. import figures, store


class Panel(W.VBox):
    """Controls over a picture and a line, from `draw(fig, **values) -> (Figure or None, text)`.

    A change draws again; `fig` is the figure of the last time, to be changed instead of made anew,
    or None. Where `draw` gives no figure, no picture is shown. Errors are shown in the line; under
    KDKIT_BATCH=1 they are raised.
    """

    def __init__(self, name: str, draw: Callable, /, **controls: W.Widget):
        self.draw, self.controls = draw, controls
        self.picture, self.line = W.HTML(), W.HTML()
        self.fig = self.shown = None
        self.picture.add_class(f"kd-{name}-picture")
        self.line.add_class(f"kd-{name}-line")
        row = W.HBox(list(controls.values()), layout=W.Layout(flex_flow="row wrap"))
        super().__init__([row, self.picture, self.line])
        self.redraw()
        for key, control in controls.items():
            control.add_class(f"kd-{name}-{key}")
            control.observe(self.redraw, "value")

    def redraw(self, change: dict | None = None) -> None:
        """Draw what the controls say now. After a `change` that a quicker thread has drawn already
        nothing is to be done: while a picture is drawn only the newest of all changes waits."""
        with figures.kdkit_style():  # one at a time: two quick changes may come on two threads
            values = {key: control.value for key, control in self.controls.items()}
            if change is not None and values == self.shown:
                return
            self.shown = values
            # Rounded: 0.3, not 0.1 + 0.2.
            values = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
            try:
                self.fig, text = self.draw(self.fig, **values)
                self.say(text)  # first: a picture takes longer
                self.picture.value = figures.html(self.fig, text) if self.fig else ""
            except Exception as e:
                self.say(f"{type(e).__name__}: {e}")
                if store.quiet():
                    raise

    def say(self, text: str) -> None:
        """Show a line of text."""
        self.line.value = f'<div style="line-height:1.5">{html.escape(text)}</div>'


def present(panel: Panel, box: W.Widget | None = None) -> None:
    """Show a panel, within `box` where one is given; under KDKIT_BATCH=1 its picture and line,
    without controls."""
    quiet = store.quiet()
    display(HTML(panel.picture.value + panel.line.value) if quiet else box or panel)
