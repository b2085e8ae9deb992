"""The figures: a file holds one subject, its table, its drawing and its sentences side by side.

index.py says what a figure is and how to add one, style.py how it looks, tables.py what the
subjects share, drawing.py how a diagram is written. `make(name, records)` gives a figure's table,
drawing and sentences.
"""
# ruff: noqa: I001  the order of the imports is the order of the figures within a notebook

import pkgutil
from importlib import import_module

from .index import (
    FIGURES,
    Figure,
    figure,
    figures_root,
    get_figure,
    list_figures,
    make,
    reference_records,
    save,
    wanted,
)
from .style import (
    DASHED,
    PALETTE,
    end_labels,
    html,
    kdkit_style,
    margin_text,
    mean_sd_text,
    method_style,
    text_colour,
)
from .tables import frame, grouped, label, paired, spread, verdict
from .drawing import Diagram, Panel
from .methods_map import map_table
from . import diagrams
from .accuracy import Accuracy, Sweep, accuracy_table, draw_accuracy, say_accuracy
from .attention import attention_table, draw_attention, draw_attention_epoch, draw_matrices
from .ensembles import draw_ensembles, ensemble_table
from .correlation import (
    class_maximum_table,
    class_peaks,
    correlation_table,
    distribution_table,
    draw_class_map,
    draw_correlation,
    draw_distributions,
    image_numbers,
)
from .calibration import draw_reliability, reliability_table
from .curves import Curves, Diversity, curves_table, draw_curves, draw_overlay, draw_progress
from .predictions import draw_collection, draw_images, draw_temperature, show_images
from .knowledge import class_similarity, draw_similarity, peers_table, told_table
from .unseen import (
    answers_table,
    asked_table,
    draw_answers,
    draw_calls,
    few_images_runs,
    hidden_fields,
    hidden_table,
    on_characters,
)
from .ablations import tried_table
from . import results

for _module in pkgutil.iter_modules(__path__):  # files that are added register theirs last
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DASHED",
    "FIGURES",
    "PALETTE",
    "Accuracy",
    "Curves",
    "Diagram",
    "Diversity",
    "Figure",
    "Panel",
    "Sweep",
    "accuracy_table",
    "answers_table",
    "asked_table",
    "attention_table",
    "class_maximum_table",
    "class_peaks",
    "class_similarity",
    "correlation_table",
    "curves_table",
    "diagrams",
    "distribution_table",
    "draw_accuracy",
    "draw_answers",
    "draw_attention",
    "draw_attention_epoch",
    "draw_calls",
    "draw_class_map",
    "draw_collection",
    "draw_correlation",
    "draw_curves",
    "draw_distributions",
    "draw_ensembles",
    "draw_images",
    "draw_matrices",
    "draw_overlay",
    "draw_progress",
    "draw_reliability",
    "draw_similarity",
    "draw_temperature",
    "end_labels",
    "few_images_runs",
    "ensemble_table",
    "figure",
    "figures_root",
    "frame",
    "get_figure",
    "grouped",
    "hidden_fields",
    "hidden_table",
    "html",
    "image_numbers",
    "kdkit_style",
    "label",
    "list_figures",
    "make",
    "map_table",
    "margin_text",
    "mean_sd_text",
    "method_style",
    "on_characters",
    "paired",
    "peers_table",
    "reference_records",
    "reliability_table",
    "results",
    "save",
    "say_accuracy",
    "show_images",
    "spread",
    "text_colour",
    "told_table",
    "tried_table",
    "verdict",
    "wanted",
]
