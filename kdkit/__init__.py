"""kdkit: a notebook-first study kit for knowledge distillation.

import kdkit as kd
lab = kd.lab("lesson")
record = lab.get(method="okddip", seed=0)
"""

from . import losses, machine, metrics, models, plots, store, train, widgets
from .config import PRESETS, Run, preset
from .data import datasets, load
from .methods import (
    AT,
    CC,
    CLILR,
    CRD,
    CRDKD,
    DCKD,
    DML,
    EDCKD,
    FT,
    KD,
    KDCL,
    OFD,
    ONE,
    RKD,
    Baseline,
    EnsembledStudent,
    FitNet,
    Ind,
    Method,
    OKDDip,
    OKDDipKD,
    ReviewKD,
    method_class,
    methods,
)
from .papers import cells
from .store import Record
from .teach import check, lab, predict, show
from .train import fit, get

__version__ = "0.1.0"
__all__ = [
    "AT",
    "CC",
    "CLILR",
    "CRD",
    "CRDKD",
    "DCKD",
    "DML",
    "EDCKD",
    "FT",
    "KD",
    "KDCL",
    "OFD",
    "ONE",
    "PRESETS",
    "RKD",
    "Baseline",
    "EnsembledStudent",
    "FitNet",
    "Ind",
    "Method",
    "OKDDip",
    "OKDDipKD",
    "Record",
    "ReviewKD",
    "Run",
    "cells",
    "check",
    "datasets",
    "fit",
    "get",
    "lab",
    "load",
    "losses",
    "machine",
    "method_class",
    "methods",
    "metrics",
    "models",
    "plots",
    "predict",
    "preset",
    "show",
    "store",
    "train",
    "widgets",
]
