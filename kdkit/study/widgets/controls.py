"""Sliders, rows of buttons and names that are typed; a knob for each field of a method."""

from dataclasses import replace

import ipywidgets as W
from traitlets import TraitError, validate

from ...fields import Field, fields
from ...methods import Method

WIDE = {"description_width": "110px"}
KNOB_STEPS = 20  # of a slider from its low end to its high end, unless the default lies beyond


class _Bounds:
    """A slider that widens for a value beyond its ends, and refuses one beyond its field's."""

    field = Field()

    @validate("value")
    def _validate_value(self, proposal):
        value = proposal["value"]
        try:
            self.field._check_bounds(value, value)
        except ValueError as e:
            raise TraitError(str(e)) from None
        if value > self.max:
            self.max = value
        if value < self.min:
            self.min = value
        return value


class IntKnob(_Bounds, W.IntSlider):
    """Whole numbers."""


class FloatKnob(_Bounds, W.FloatSlider):
    """Any numbers."""


def slider(
    text: str, value, low, high, step, field: Field | None = None, live: bool = True
) -> W.Widget:
    """A slider; whole steps give whole numbers. field: bounds of the values that it may ever take,
    by default low and high. live: does it act while it moves, or when it is let go?"""
    kind = IntKnob if isinstance(step, int) else FloatKnob
    made = kind(
        value=value,
        min=min(low, value),
        max=max(high, value),
        step=step,
        description=text,
        continuous_update=live,
        layout=W.Layout(width="400px"),
        style=WIDE,
    )
    made.field = field or Field(low, high, name=text)
    return made


def choice(text: str, options, value=None) -> W.ToggleButtons:
    """A button for each of the options, values or (label, value) pairs. No drop-down list:
    JupyterLab takes the arrow keys away from one."""
    return W.ToggleButtons(
        options=options,
        description=text,
        layout=W.Layout(  # the text beside its buttons, which wrap
            max_width="100%", display="grid", grid_template_columns="max-content 1fr"
        ),
        style=WIDE | {"button_width": "auto"},
        **({} if value is None else {"value": value}),
    )


def class_box(text: str, names: list[str], value: str = "", placeholder: str = "") -> W.Combobox:
    """A box in which a class is typed; what begins like it is offered."""
    return W.Combobox(
        value=value,
        options=tuple(dict.fromkeys(names)),
        description=text,
        placeholder=placeholder,
        style={"description_width": "initial"},
        layout=W.Layout(width="170px"),
    )


def matching_classes(text: str, names: list[str]) -> list[int]:
    """Numbers of the classes that are called `text`, else of those whose names begin with it."""
    exact = [number for number, name in enumerate(names) if name == text]
    small = text.casefold()
    return exact or [n for n, name in enumerate(names) if name.casefold().startswith(small)]


def knobs(method: Method) -> dict[str, W.Widget]:
    """A control for each field of a method that is worth one, at the method's own value; what the
    field is stands in its tooltip."""
    made, values = {}, method.values()
    for name, field in fields(type(method)).items():
        field = replace(field, default=values[name])
        if not field.knob or len(field.options) == 1:
            continue
        if field.options or field.kind is bool:
            # Not a check box: ipywidgets shows no tooltip for one that has a description.
            options = field.options or [("off", False), ("on", True)]
            made[name] = choice(name, options, field.default)
        elif field.kind in (int, float):
            made[name] = slider(name, field.default, *knob_range(field), field, live=False)
        else:
            continue
        made[name].tooltip = field.description
    return made


def knob_range(field: Field) -> tuple[float, float, float]:
    """(low, high, step) of a number's slider, within the field's bounds: twenty steps, or up to
    twice the default where that is more. The step is the field's where the default is one to twenty
    of them, else a part of the default: a weight of 1000 does not turn in steps of .1."""
    whole, start, step = field.kind is int, field.default, field.step
    if not step or (start and not step <= start <= KNOB_STEPS * step):
        step = max(1, start // 8) if whole else start / 10 or 0.1
    low = start - KNOB_STEPS * step if field.low is None else field.low
    low = step if 0 < low < step else low
    high = max(2 * start, 0 if whole else KNOB_STEPS * step)
    high = high if field.high is None else min(high, field.high)
    return low, high, int(step) if whole else float(step)
