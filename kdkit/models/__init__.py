"""Networks and groups of networks; see `base.Out` for the one contract."""

from . import classic, mobile  # noqa: F401  register their networks
from .base import Net, Out, build, count, memory_format, models, register
from .multi import Branches, Peers
from .resnet import pretrained

__all__ = [
    "Branches",
    "Net",
    "Out",
    "Peers",
    "build",
    "count",
    "memory_format",
    "models",
    "pretrained",
    "register",
]
