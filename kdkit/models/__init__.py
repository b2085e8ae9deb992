"""Networks and groups of networks; see `base.Out` for the one contract."""

import pkgutil
from importlib import import_module

from .base import (
    Net,
    Out,
    as_out,
    build,
    builder_of,
    count,
    list_models,
    memory_format,
    network,
)
from .multi import Branches, Peers
from .wrap import wrap

for _name in ("resnet", *(module.name for module in pkgutil.iter_modules(__path__))):
    import_module(f"{__name__}.{_name}")  # which registers its networks

__all__ = [
    "Branches",
    "Net",
    "Out",
    "Peers",
    "as_out",
    "build",
    "builder_of",
    "count",
    "list_models",
    "memory_format",
    "network",
    "wrap",
]
