"""All methods, one class each. A new one is a class in a file of this folder, in a file of yours or
in a notebook: defining it registers it."""

import pkgutil
from importlib import import_module

from .base import (
    METHODS,
    Epochs,
    Group,
    Method,
    Probe,
    Size,
    Step,
    Temperature,
    Weight,
    list_methods,
    method_class,
    plain_method,
    term_weights,
)

# Lists and figures show the methods in the order of these files; files that are added come last.
_FIRST = "logit hints review ofd relation crd online kdcl okddip collective".split()
_FILES = [module.name for module in pkgutil.iter_modules(__path__)]
for _name in sorted(_FILES, key=lambda name: (_FIRST + [name]).index(name)):
    import_module(f"{__name__}.{_name}")
globals().update({cls.__name__: cls for cls in METHODS.values()})

__all__ = [
    "METHODS",
    "Epochs",
    "Group",
    "Method",
    "Probe",
    "Size",
    "Step",
    "Temperature",
    "Weight",
    "list_methods",
    "method_class",
    "plain_method",
    "term_weights",
]
