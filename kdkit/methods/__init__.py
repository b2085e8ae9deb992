"""All methods. A new one is a class in one file here, or in a notebook: defining it registers
it."""
# ruff: noqa: I001  the order of the imports is the order of the registry

from .base import (
    Method,
    Probe,
    Step,
    effective,
    fields,
    is_ours,
    make,
    method_class,
    methods,
    resolve,
    scales,
    source_digest,
)
from .logit import KD, Baseline
from .hints import AT, FT, FitNet
from .review import ReviewKD
from .ofd import OFD
from .relation import CC, RKD
from .crd import CRD, CRDKD
from .online import CLILR, DML, ONE, Ind
from .kdcl import KDCL
from .okddip import OKDDip, OKDDipKD
from .collective import DCKD, EDCKD, EnsembledStudent

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
    "RKD",
    "Baseline",
    "EnsembledStudent",
    "FitNet",
    "Ind",
    "Method",
    "OKDDip",
    "OKDDipKD",
    "Probe",
    "ReviewKD",
    "Step",
    "effective",
    "fields",
    "is_ours",
    "make",
    "method_class",
    "methods",
    "resolve",
    "scales",
    "source_digest",
]
