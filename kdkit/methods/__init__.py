"""All methods. A new one is a class in one file here, or in a notebook: defining it registers
it."""
# ruff: noqa: I001  the order of the imports is the order of the registry

from .base import (
    Method, Probe, Step, effective, fields, is_ours, make, method_class, methods, resolve,
    source_digest,
)
from .logit import KD, Baseline
from .online import CLILR, DML, ONE, Ind
from .okddip import OKDDip, OKDDipKD
from .collective import DCKD, EDCKD, EnsembledStudent

__all__ = [
    "CLILR", "DCKD", "DML", "EDCKD", "KD", "ONE", "Baseline", "EnsembledStudent", "Ind", "Method",
    "OKDDip", "OKDDipKD", "Probe", "Step", "effective", "fields", "is_ours", "make",
    "method_class", "methods",
    "resolve", "source_digest",
]
