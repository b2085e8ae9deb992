"""Networks and groups of networks; see `base.Out` for the one contract."""

from . import resnet  # noqa: F401  registers its networks
from .base import Net, Out, build, count, memory_format, models, register
from .multi import Branches, Peers

__all__ = ["Branches", "Net", "Out", "Peers", "build", "count", "memory_format", "models",
           "register"]
