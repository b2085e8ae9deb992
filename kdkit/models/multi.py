"""Groups of students: `Peers`, whole networks side by side, and `Branches` on a shared trunk."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .base import Net, Out, as_out


def _stack(parts: list[Tensor | None]) -> Tensor | tuple | None:
    """(m, B, D) where all widths are equal, else the tuple; None where one has no such feature."""
    if any(p is None for p in parts):
        return None
    same = len({p.shape for p in parts}) == 1
    return torch.stack(parts) if same else tuple(parts)


class Peers(nn.Module):
    """m networks, of one or of different architectures; logits (m, B, K).

    nets: any modules that return logits (B, K) or an Out.  x: (B, C, H, W), or (m, B, C, H, W), a
    view of the batch for each. ValueError for a module that returns something else (`as_out`).
    """

    def __init__(self, nets: list[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Out:
        views = x if x.ndim == 5 else [x] * len(self.nets)
        outs = [as_out(net(v)) for net, v in zip(self.nets, views, strict=True)]
        return Out(
            torch.stack([o.logits for o in outs]),  # (m, B, K)
            tuple(o.feats for o in outs),
            tuple(o.preacts for o in outs),
            _stack([o.pooled for o in outs]),  # (m, B, D)
        )


class Branches(nn.Module):
    """m students that share the early parts of one architecture (Lan et al. 2018; OKDDip).

    nets: m networks of one architecture; the first gives the trunk `parts[:split]`, each gives
    its own later parts and classifier. `at_split`: a function of the trunk's last feature map,
    where the branches take it (CL-ILR rescales its gradient there); identity if not given.
    `feats` and `preacts` of the output are the trunk's. Dropout, which OKDDip's VGG-16 has, is 0
    in single networks and .5 in branches, as in OKDDip's scripts. ValueError for a network that
    is not made of parts; `Net` makes one of any modules.
    """

    def __init__(self, nets: list[Net], at_split: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        for net in nets:
            missing = [k for k in ("parts", "split", "run_parts", "head") if not hasattr(net, k)]
            if missing:
                raise ValueError(
                    f"{type(net).__name__} cannot be split into trunk and branches: it has no "
                    f"{', '.join(missing)}; `Net` makes such a network of any modules"
                )
        self.split, self.at_split = nets[0].split, at_split
        for net in nets[1:]:
            for i in range(self.split):
                net.parts[i] = nets[0].parts[i]  # the same module: real sharing
        self.nets = nn.ModuleList(nets)
        for m in self.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.5

    def forward(self, x: Tensor) -> Out:
        feats, preacts, f = self.nets[0].run_parts(x, stop=self.split)
        f = self.at_split(f) if self.at_split else f
        heads = [net.head(net.run_parts(f, start=self.split)[-1]) for net in self.nets]
        z, h = zip(*heads, strict=True)
        return Out(torch.stack(z), feats, preacts, torch.stack(h))  # (m, B, K), (m, B, D)
