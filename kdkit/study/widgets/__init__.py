"""Knobs over pure draw functions and stored runs. A widget holds no logic of its own.

Each function shows a panel: controls on top, a picture with alt text below, one line of numbers.
Under KDKIT_BATCH=1 it shows the picture and the line once, without controls. Displays change by
trait assignment only, so that a callback on any thread works; core ipywidgets only.
"""

from .ablations import ablation_lab
from .chance import by_chance, seeds_needed
from .controls import choice, knob_range, knobs, slider
from .hidden import unseen
from .images import ImagePicker, Thumbnails, clear_rival, image_orders
from .panels import Panel, present
from .predictions import attention, class_map, collection, temperature
from .tables import paper_tables
from .training import Trainer

__all__ = [
    "ImagePicker",
    "Panel",
    "Thumbnails",
    "Trainer",
    "ablation_lab",
    "attention",
    "by_chance",
    "choice",
    "class_map",
    "clear_rival",
    "collection",
    "image_orders",
    "knob_range",
    "knobs",
    "paper_tables",
    "present",
    "seeds_needed",
    "slider",
    "temperature",
    "unseen",
]
