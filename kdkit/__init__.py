"""kdkit: a notebook-first study kit for knowledge distillation.

    import kdkit as kd
    lab = kd.lab("lesson")
    record = lab.get(method="okddip", seed=0)
"""

from . import losses, metrics, models, plots, store, train, widgets
from .config import PRESETS, Run, preset
from .data import datasets, load
from .methods import (
    CLILR,
    DCKD,
    DML,
    EDCKD,
    KD,
    ONE,
    Baseline,
    EnsembledStudent,
    Ind,
    Method,
    OKDDip,
    OKDDipKD,
    method_class,
    methods,
)
from .papers import cells
from .store import Record
from .teach import check, lab, predict, show
from .train import fit, get

__version__ = "0.1.0"
__all__ = [
    "CLILR", "DCKD", "DML", "EDCKD", "KD", "ONE", "PRESETS", "Baseline", "EnsembledStudent", "Ind",
    "Method", "OKDDip", "OKDDipKD", "Record", "Run", "cells", "check", "datasets", "fit", "get",
    "lab", "load", "losses", "method_class", "methods", "metrics", "models", "plots", "predict",
    "preset", "show", "store", "train", "widgets",
]
