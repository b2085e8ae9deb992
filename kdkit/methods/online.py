"""Students that teach each other without a teacher: Ind (the control), DML, CL-ILR, ONE."""

from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ..losses import kl_T, others_mean, scale_grad
from .base import Epsilon, Group, Method, Rampup, Temperature, Weight
from .logit import Baseline

Based = Annotated[Literal["branch", "network"], "branches on a shared trunk, or whole networks"]
BranchesOnly = Annotated[Literal["branch"], "branches on a shared trunk"]
EPS = 1e-7  # OKDDip's code adds it to every target's probabilities


class Ind(Method):
    """m students that do not teach each other: the control of all group methods (OKDDip's "Ind").

    L = sum_i CE(z_i, y)

    | symbol | code     | shape     |
    |--------|----------|-----------|
    | z_i    | s.logits | (m, B, K) |

    Gradient stops nowhere; branches sum their m gradients in the shared trunk.

    Differences from the paper:
    1. `based="network"` gives m independent networks, the control of network-based groups.
    """

    name, title = "ind", "Ind"

    m: Group = 4
    based: Based = "branch"

    def control(self):
        return Baseline, {}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        return {"ce": step.ce(s.logits, y).sum()}


class DML(Method):
    """Deep Mutual Learning: Zhang, Xiang, Hospedales, Lu; CVPR 2018; arXiv 1706.00384.

    L = sum_i [ CE(z_i, y) + alpha T^2 KL(softmax(t_i/T) || softmax(z_i/T)) ],
    t_i = mean of z_j, j != i; `pairwise`: the mean of the KLs to each z_j instead.

    | symbol | code     | shape     |
    |--------|----------|-----------|
    | z_i    | s.logits | (m, B, K) |
    | t_i    | target   | (m, B, K) |

    Gradient stops nowhere: targets pass it on to the other networks (`detach` stops it there); a
    teacher is frozen.

    Differences from the paper:
    1. T = 3 with T^2, eps = 1e-7 on the target and one joint backward, as in OKDDip's code; the
       paper has T = 1, eps = 0, constant targets and alternating updates (`detach` for the target).
    2. The default target averages logits first, as OKDDip's script does; the paper is `pairwise`.
    3. `teacher_weight` adds a teacher's term to each network, as in DCKD's Table 5; that its T
       is DML's, without ramp-up, is a choice.
    """

    name, title = "dml", "DML"

    m: Group = 4
    T: Temperature = 3.0
    alpha: Annotated[Weight, "weight of the mutual term"] = 1.0
    pairwise: Annotated[
        bool, "the mean of the KLs to each other network, in place of one to their mean"
    ] = False
    detach: Annotated[bool, "stop the gradient at the target"] = False
    eps: Epsilon = EPS
    teacher_weight: Annotated[
        Weight, "of KL to a teacher's prediction; 0: no teacher is trained"
    ] = 0.0

    @property
    def needs_teacher(self) -> bool:
        return self.teacher_weight > 0

    def control(self):
        return Ind, {"m": self.m, "based": "network"}

    def weights(self) -> dict[str, float]:
        teacher = {"teacher": self.teacher_weight} if self.needs_teacher else {}
        return {"ce": 1.0, "mutual": self.alpha} | teacher

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        z = s.logits
        fixed = z.detach() if self.detach else z  # the paper: the other's prediction is constant
        if self.pairwise:
            pairs = [kl_T(z, fixed.roll(k, 0), self.T, self.eps).sum() for k in range(1, self.m)]
            mutual = sum(pairs) / len(pairs)
        else:
            target = others_mean(fixed)  # (m, B, K)
            mutual = kl_T(z, target, self.T, self.eps).sum()
        out = {"ce": step.ce(z, y).sum(), "mutual": mutual}
        if self.needs_teacher:
            out["teacher"] = kl_T(z, t.logits.expand_as(z), self.T, self.eps).sum()
        return out


class CLILR(Method):
    """Collaborative Learning for Deep Neural Networks: Song, Chai; NeurIPS 2018; arXiv 1805.11761.

    L = sum_i CE(z_i, y) + alpha w(e) T^2 sum_i KL(softmax(t_i/T) || softmax(z_i/T)),
    t_i = mean of z_j, j != i; intermediate-level representation (ILR): the gradient that enters
    the shared trunk is divided by m.

    | symbol | code       | shape     |
    |--------|------------|-----------|
    | z_i    | s.logits   | (m, B, K) |
    | t_i    | target     | (m, B, K) |
    | w(e)   | ramp       |           |

    Gradient stops nowhere (targets are not constants, as in OKDDip's code).

    Differences from the paper:
    1. One branch point (ILR at one depth), T = 3, ramp-up and eps = 1e-7 as in OKDDip's code.
    """

    name, title = "cl_ilr", "CL-ILR"
    ramped = ("mutual",)

    m: Group = 4
    based: BranchesOnly = "branch"
    T: Temperature = 3.0
    alpha: Annotated[Weight, "weight of the mutual term"] = 1.0
    rampup: Rampup = 80 / 300

    def control(self):
        return Ind, {"m": self.m}

    def at_split(self, f: Tensor) -> Tensor:
        return scale_grad(f, 1 / self.m)

    def weights(self) -> dict[str, float]:
        return {"ce": 1.0, "mutual": self.alpha}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        target = others_mean(s.logits)  # (m, B, K)
        mutual = kl_T(s.logits, target, self.T, EPS).sum()
        return {"ce": step.ce(s.logits, y).sum(), "mutual": mutual}


class ONE(Method):
    """Knowledge Distillation by On-the-Fly Native Ensemble: Lan, Zhu, Gong; NeurIPS 2018;
    arXiv 1806.04606.

    L = sum_i CE(z_i, y) + CE(z_e, y) + alpha w(e) T^2 sum_i KL(softmax(z_e/T) || softmax(z_i/T)),
    z_e = sum_i g_i z_i, g = softmax(ReLU(BN(FC(GAP(trunk)))))

    | symbol | code          | shape        |
    |--------|---------------|--------------|
    | z_i    | s.logits      | (m, B, K)    |
    | trunk  | s.feats[-1]   | (B, C, H, W) |
    | g      | gate          | (B, m)       |
    | z_e    | z_e           | (B, K)       |

    Gradient stops nowhere by default; `detach` stops it at the target z_e.

    Differences from the paper:
    1. z_e is not detached, as in OKDDip's port; the authors' own code detaches it (`detach`).
    2. eps = 1e-7 on the target, ramp-up as in OKDDip's code. Reported: the mean of the branches.
    """

    name, title = "one", "ONE"
    ramped = ("ensemble",)
    student_needs = ("feats",)

    m: Group = 4
    based: BranchesOnly = "branch"
    T: Temperature = 3.0
    alpha: Annotated[Weight, "weight of the distillation"] = 1.0
    rampup: Rampup = 80 / 300
    detach: Annotated[bool, "stop the gradient at the target"] = False

    def control(self):
        return Ind, {"m": self.m}

    def build(self, probe) -> None:
        self.fc = nn.Linear(probe.s.feats[-1].shape[1], self.m)
        self.bn = nn.BatchNorm1d(self.m)

    def weights(self) -> dict[str, float]:
        return {"ce": 1.0, "ce_ensemble": 1.0, "ensemble": self.alpha}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        trunk = s.feats[-1].mean((2, 3)).to(s.logits.dtype)  # (B, C)
        gate = F.softmax(F.relu(self.bn(self.fc(trunk))), -1)  # (B, m)
        z_e = (gate.T.unsqueeze(-1) * s.logits).sum(0)  # (m, B, 1) * (m, B, K) -> (B, K)
        target = z_e.detach() if self.detach else z_e
        self.watch(gate=gate.mean(0))
        return {
            "ce": step.ce(s.logits, y).sum(),
            "ce_ensemble": step.ce(z_e, y),
            "ensemble": kl_T(s.logits, target.expand_as(s.logits), self.T, EPS).sum(),
        }
