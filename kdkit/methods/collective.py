"""Deep Collective Knowledge Distillation, its second generation and the student of its ensemble."""

from typing import Annotated, Literal

from torch import Tensor
from torch.nn import functional as F

from ..losses import kl_T, others_max, others_mean
from .base import Group, LabelWeight, Method, Temperature, Weight
from .logit import KD


class DCKD(Method):
    """Deep Collective Knowledge Distillation: Seo, Oh, Min, Yun, Cho; 2023; arXiv 2304.08878.

    L = sum_k [ a CE(z_k, y) + b T^2 KL(s(z_T/T) || s(z_k/T))
                + c tau^2 KL(s(z_k/tau) || s(m_k/tau)) ]
    m_k, the collection of the others (j != k): lmax max_j z_j (Eq. 10), pmax max_j log s(z_j)
    (Eq. 11), avg mean_j z_j (Eq. 12); s is softmax (Eq. 3 to 9)

    | symbol  | code        | shape     |
    |---------|-------------|-----------|
    | z_k     | s.logits    | (m, B, K) |
    | z_T     | t.logits    | (B, K)    |
    | m_k     | collection  | (m, B, K) |
    | a, b, c | alpha, beta, gamma |    |

    Gradient stops at z_T; it passes through m_k to the other students (`detach_collection` stops
    it there), as "simultaneous training" says.

    Differences from the paper, which does not say these numbers:
    1. a = b = c = 1, T = 4, tau = 2 and the factor tau^2 are choices.
    2. `avg` averages logits: a choice. `reverse=False` is the ablation "w/o Rev. KL".
    """

    name, title = "dckd", "DCKD"
    needs_teacher = True

    m: Annotated[Group, "students, whole networks (the paper's N)"] = 3
    T: Annotated[Temperature, "temperature of the teacher's term"] = 4.0
    tau: Annotated[Temperature, "temperature of the collection's term"] = 2.0
    alpha: LabelWeight = 1.0
    beta: Annotated[Weight, "weight of the teacher"] = 1.0
    gamma: Annotated[Weight, "weight of the collection"] = 1.0
    collection: Annotated[
        Literal["lmax", "pmax", "avg"], "what a student receives from the others"
    ] = "lmax"
    reverse: Annotated[bool, "the student is the first argument of KL"] = True
    detach_collection: Annotated[bool, "stop the gradient at the collection"] = False

    def control(self):
        return KD, {}

    def weights(self) -> dict[str, float]:
        return {"ce": self.alpha, "teacher": self.beta, "collection": self.gamma}

    def collect(self, z: Tensor) -> Tensor:
        """m_k for each student: (m, B, K) -> (m, B, K)."""
        if self.collection == "avg":
            return others_mean(z)
        return others_max(z if self.collection == "lmax" else F.log_softmax(z, -1))

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        z = s.logits
        collection = self.collect(z)
        if self.detach_collection:
            collection = collection.detach()
        p, q = (z, collection) if self.reverse else (collection, z)
        return {
            "ce": step.ce(z, y).sum(),
            "teacher": kl_T(z, t.logits.expand_as(z), self.T).sum(),
            "collection": kl_T(q, p, self.tau).sum(),  # KL(softmax(p) || softmax(q))
        }


class EDCKD(DCKD):
    """eDCKD: DCKD taught by the ensemble of DCKD's students (DCKD, Sec. 4.4 and Table 8).

    L as DCKD's, with z_T the mean of the logits of the first generation's students.

    | symbol | code     | shape     |
    |--------|----------|-----------|
    | z_T    | t.logits | (B, K)    |

    Gradient stops at z_T.

    Differences from the paper:
    1. The ensemble is the mean of logits, since Eq. 6 needs logits: a choice.
    """

    name, title = "edckd", "eDCKD"

    def control(self):
        return DCKD, self.values()

    def teacher_method(self):
        return self.control()


class EnsembledStudent(KD):
    """Ensembled student: one network taught by the ensemble of DCKD's students (Table 8).

    L = alpha CE(z, y) + beta T^2 KL(softmax(z_T/T) || softmax(z/T)), z_T as in eDCKD.

    | symbol | code     | shape  |
    |--------|----------|--------|
    | z      | s.logits | (B, K) |
    | z_T    | t.logits | (B, K) |

    Gradient stops at z_T.

    Differences from the paper:
    1. r = alpha = 1 and T = 4, DCKD's own weights: a choice.
    """

    name, title = "ensembled_student", "Ensembled student"
    presets = {}

    r: LabelWeight = 1.0
    alpha: Annotated[Weight, "weight of the teacher"] = 1.0

    def control(self):
        return KD, {}

    def teacher_method(self):
        return DCKD, {}
