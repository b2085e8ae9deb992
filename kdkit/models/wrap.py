"""`wrap`: any torch module as a network; its features are read while it runs."""

from collections.abc import Sequence
from functools import partial
from itertools import count
from threading import local

import torch
from torch import Tensor, nn

from ..fields import choose
from .base import Out, as_out

# What the forwards of `Wrapped` under way in this thread have read: (role, name, number) -> calls.
# Hooks stay on their layers, but read nothing unless such a forward asks for it.
_THREAD = local()
_NUMBERS = count()  # each wanted tensor has its own: a module may be wrapped twice


def _version(value):
    """How often it was changed in place; torch.compile and torch.inference_mode do not tell."""
    known = not torch.compiler.is_compiling() and not value.is_inference()
    return value._version if known else None


def _read(key, *given):
    """As a forward hook or a forward pre-hook: its last argument."""
    role, name, _ = key
    value = given[-1]
    if role == "head" and isinstance(value, tuple):  # a pre-hook gets all arguments of the layer
        value = (*value, None)[0]
    for reader in getattr(_THREAD, "readers", ()):
        if key in reader:
            if not isinstance(value, Tensor):
                raise ValueError(f"{role} {name!r} is a {type(value).__name__}, not a tensor")
            value = value.clone() if role == "preactivation" else value
            reader[key].append((value, _version(value)))


class Wrapped(nn.Module):
    """A module under the contract of `base.Out`; made by `wrap`."""

    def __init__(self, module, keys):
        super().__init__()
        self.module, self.keys = module, keys

    def stage_bns(self) -> list[nn.BatchNorm2d]:
        """The batch norms that give the preacts, the stem's left out, from which OFD derives its
        margins. ValueError where one is another layer."""
        layers = dict(self.module.named_modules())
        names = [name for role, name, _ in self.keys if role == "preactivation"]
        for name in names[1:]:
            if not isinstance(layers[name], nn.BatchNorm2d):
                raise ValueError(f"preactivation {name!r} is no BatchNorm2d, which OFD needs")
        return [layers[name] for name in names[1:]]

    def forward(self, x: Tensor) -> Out:
        reader = {key: [] for key in self.keys}
        outer = getattr(_THREAD, "readers", ())
        _THREAD.readers = (*outer, reader)
        try:
            logits = as_out(self.module(x)).logits
        finally:
            _THREAD.readers = outer
        found = {"feature": [], "preactivation": [], "head": []}
        for (role, name, _), calls in reader.items():
            if len(calls) != 1:
                raise ValueError(
                    f"{role} {name!r} ran {len(calls)} times in one forward, not once: name "
                    "another layer"
                )
            [(value, version)] = calls
            if version != _version(value):
                raise ValueError(
                    f"{role} {name!r} was changed in place after it was read: name the layer that "
                    "changes it, or set inplace=False there"
                )
            if role == "head" and value.ndim != 2:
                raise ValueError(
                    f"head {name!r} takes {tuple(value.shape)}, not (B, D): name the classifier "
                    'with head=..., or give head="" for no pooled feature'
                )
            found[role].append(value)
        feats, preacts, pooled = found.values()
        return Out(logits, tuple(feats), tuple(preacts), *pooled or [None])


def wrap(
    module: nn.Module,
    features: Sequence[str] = (),
    head: str | None = None,
    preacts: Sequence[str] | None = None,
) -> Wrapped:
    """Any module with `module(x) -> logits (B, K)` as a network: `forward(x) -> Out`.

    features: names of layers, as in `named_modules()`, in order, the stem first; their outputs
    are Out.feats, (B, C, H, W) where methods compare maps.  preacts: as many names for
    Out.preacts, copied as they are read, so that an in-place ReLU after them does no harm; without
    them Out.preacts is ().  head: the classifier, whose input (B, D) is Out.pooled; None: the last
    nn.Linear; "": none, and pooled is None.

    The keys of its state_dict are the module's, after "module.".

        >>> import torch, torchvision
        >>> resnet = torchvision.models.resnet18(num_classes=10)
        >>> net = wrap(resnet, ["relu", "layer1", "layer2", "layer3", "layer4"])
        >>> out = net(torch.zeros(2, 3, 64, 64))
        >>> [tuple(f.shape[1:]) for f in out.feats][-2:], tuple(out.pooled.shape)
        ([(256, 4, 4), (512, 2, 2)], (2, 512))

    ValueError: for an unknown name, with the nearest ones, and another number of preacts than of
    features; in forward, for a result that is not logits, a layer that does not run exactly once
    or gives no tensor, a feature that is changed in place later (not seen under
    torch.compile and torch.inference_mode), a head whose input is not (B, D).
    """
    layers = dict(module.named_modules())
    del layers[""]
    if preacts and len(preacts) != len(features):
        raise ValueError(f"{len(preacts)} preacts for {len(features)} features: give one for each")
    if head is None:
        head = next((n for n in reversed(layers) if isinstance(layers[n], nn.Linear)), "")
    heads = [head] if head else []
    roles = {"feature": features, "preactivation": preacts or (), "head": heads}
    keys = [(role, name, next(_NUMBERS)) for role, names in roles.items() for name in names]
    for key in keys:
        choose(key[1], layers, "layer")
        when = "forward_pre" if key[0] == "head" else "forward"
        getattr(layers[key[1]], f"register_{when}_hook")(partial(_read, key))
    return Wrapped(module, keys)
