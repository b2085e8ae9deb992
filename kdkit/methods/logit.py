"""Labels alone, and a teacher's logits."""

from typing import Annotated

from torch import Tensor

from ..losses import kl_T
from .base import Epsilon, LabelWeight, Method, Temperature, Weight


class Baseline(Method):
    """One network trained on labels alone (OKDDip Eq. 1; DCKD's "Student" and "Teacher").

    L = CE(z, y)

    | symbol | code     | shape  |
    |--------|----------|--------|
    | z      | s.logits | (B, K) |

    Gradient stops nowhere.

    Differences from the paper: none.
    """

    name, title = "baseline", "Baseline"
    default = teaches = True

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        return {"ce": step.ce(s.logits, y)}


class KD(Method):
    """Distilling the Knowledge in a Neural Network: Hinton, Vinyals, Dean; NIPS workshop 2014;
    arXiv 1503.02531.

    L = r CE(z, y) + alpha T^2 KL(softmax(z_T/T) || softmax(z/T))

    | symbol | code     | shape  |
    |--------|----------|--------|
    | z      | s.logits | (B, K) |
    | z_T    | t.logits | (B, K) |

    Gradient stops at z_T: the teacher is frozen, in eval mode.

    Differences from the paper:
    1. The weights .1 and .9 and T = 4 are RepDistiller's (DCKD's KD rows follow it); OKDDip's
       preset takes its own: r = alpha = 1, T = 3 and eps = 1e-7 added to the target.
    """

    name, title = "kd", "KD"
    needs_teacher = True
    presets = {"okddip_paper": dict(T=3.0, r=1.0, alpha=1.0, eps=1e-7)}

    T: Temperature = 4.0
    r: LabelWeight = 0.1
    alpha: Annotated[Weight, "weight of the teacher"] = 0.9
    eps: Epsilon = 0.0

    def control(self):
        return Baseline, {}

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "kd": self.alpha}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        kd = kl_T(s.logits, t.logits, self.T, self.eps)
        return {"ce": step.ce(s.logits, y), "kd": kd}
