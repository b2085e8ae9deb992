"""kdkit: a compact engine for knowledge distillation, and a study kit on top of it.

    import kdkit as kd
    fitted = kd.fit(kd.DCKD(m=3), kd.models.Peers(nets), data, teacher=big)  # the engine: objects
    record = kd.lab("lesson").get(method="okddip", seed=0)  # the study kit: names

The engine needs torch and numpy. Names of the kit, those of `_KIT`, are imported when they are
first used.
"""

from importlib import import_module

from . import callbacks, data, device, losses, methods, metrics, models
from .callbacks import Callback, NotFinite
from .data import list_datasets
from .data import register_dataset as dataset
from .fields import Field
from .methods import METHODS, Method, list_methods, method_class
from .metrics import list_metrics, metric
from .models import list_models, network
from .recipe import Recipe
from .train import Fitted, evaluate, fit

__version__ = "0.2.0"
globals().update({cls.__name__: cls for cls in METHODS.values()})

_KIT = {  # name -> module of kdkit.study that holds it; "": the module itself
    "PRESETS": "plans",
    "Record": "store",
    "Run": "plans",
    "against": "papers.against",
    "build_students": "plans",
    "cells": "papers",
    "check": "exercises",
    "check_run": "exercises",
    "check_value": "exercises",
    "figure": "figures",
    "figures": "",
    "get": "runs",
    "lab": "teach",
    "list_figures": "figures",
    "load": "sources",
    "plan": "plans",
    "predict": "guess",
    "preset": "plans",
    "show": "teach",
    "sources": "",
    "statistics": "",
    "store": "",
    "sweep": "",
    "widgets": "",
}

__all__ = [name for name in globals() if name[0] != "_" and name != "import_module"] + list(_KIT)


def __getattr__(name: str):
    if name not in _KIT:
        raise AttributeError(f"module 'kdkit' has no attribute {name!r}")
    try:
        module = import_module(f"kdkit.study.{_KIT[name] or name}")
    except ModuleNotFoundError as e:
        raise ImportError(
            f"kd.{name} belongs to the study kit and needs {e.name}, which "
            "`pip install '.[study]'` in the project's folder brings"
        ) from e
    value = getattr(module, name) if _KIT[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
