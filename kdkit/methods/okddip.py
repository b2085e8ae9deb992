"""Online Knowledge Distillation with Diverse Peers."""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..fields import Field
from ..losses import entropy, kl, kl_T
from ..randomness import integers
from .base import Group, Method, Rampup, Temperature, Weight
from .logit import KD
from .online import EPS, Based, Ind


def mix(z: Tensor, A: Tensor, T: float, aggregate: str) -> Tensor:
    """Target probabilities at temperature T (Eq. 5): for each row of the weights A (B, n', n) a
    mixture of the peers' logits z (n, B, K), or of their predictions. -> (n', B, K)"""
    if aggregate == "logits":
        return F.softmax(torch.einsum("bac,cbk->abk", A, z) / T, -1)
    return torch.einsum("bac,cbk->abk", A, F.softmax(z / T, -1))


def attend(h: Tensor, kind: str, L: nn.Module, E: nn.Module, draw: torch.Generator) -> Tensor:
    """The weights A (B, n, n) of the peers with pooled features h (n, B, D); row a is peer a's.

    kind "learned": softmax_b((L h_a) . (E h_b)) (Eq. 9, 10); the others are Table 5's ablations:
    "symmetric" has L = E = identity, "random" draws anew at each step, "entropy" is the identity.
    """
    if isinstance(h, tuple) and len({f.shape for f in h}) == 1:
        h = torch.stack(h)  # the leader alone is of another width
    if isinstance(h, tuple):
        raise ValueError(
            "OKDDip's attention compares pooled features: its peers need one width, "
            f"these have {[f.shape[-1] for f in h]}"
        )
    n, B, _ = h.shape
    if kind == "random":
        A = torch.rand(B, n, n, generator=draw, dtype=torch.float32, device="cpu").to(h)
        return A / A.sum(-1, keepdim=True)
    if kind in ("mean", "entropy"):
        A = (
            h.new_full((n, n), 1 / n)
            if kind == "mean"
            else torch.eye(n, dtype=h.dtype, device=h.device)
        )
        return A.expand(B, n, n)
    return F.softmax(torch.einsum("abd,cbd->bac", L(h), E(h)), -1)


class OKDDip(Method):
    """Online Knowledge Distillation with Diverse Peers: Chen, Mei, Wang, Feng, Chen; AAAI 2020;
    arXiv 1912.00350.

    L = sum_a CE(z_a, y) + CE(z_L, y)
        + alpha w(e) T^2 [ sum_a KL(q_a || s(z_a/T)) + KL(q || s(z_L/T)) ]
    q_a = s(sum_b A_ab z_b / T), A_ab = softmax_b((Wq h_a) . (Wk h_b)), q = s(mean_b z_b / T)
    (Eq. 5 to 10; a, b run over the m-1 auxiliary peers, L is the leader, s is softmax)

    | symbol | code             | shape         |
    |--------|------------------|---------------|
    | z, z_L | z, s.logits[-1]  | (m-1, B, K), (B, K) |
    | h      | s.pooled         | (m, B, D); the leader's is unused |
    | A      | A                | (B, m-1, m-1) |
    | Wq, Wk | L, E in Eq. 9    | (D/8, D)      |

    Gradient stops nowhere: targets and attention pass it to peers, Wq and Wk (`detach` stops
    both levels' targets).

    Differences from the paper:
    1. Targets mix *logits*, as the authors' code does; Eq. 5 mixes predictions
       (`aggregate="probs"`).
    2. 1e-7 is added to each target's probabilities; the ramp-up w(e) counts epochs (both: code).
    3. "entropy" adds T^2 H(q_a); its sign and weight are not in the text: a choice.
    4. Without the second level there are m peers and the seed draws the deployed one: a choice.
    """

    name, title = "okddip", "OKDDip"
    ramped = ("peers", "leader")
    student_needs = ("pooled",)

    m: Annotated[Group, "students: m-1 auxiliary peers and the leader, which is the last"] = 4
    based: Based = "branch"
    T: Temperature = 3.0
    alpha: Annotated[Weight, "weight of both distillation terms"] = 1.0
    rampup: Rampup = 80 / 300
    aggregate: Annotated[Literal["logits", "probs"], "what the targets mix"] = "logits"
    detach: Annotated[bool, "stop the gradient at both levels' targets"] = False
    attention: Annotated[
        Literal["learned", "random", "entropy", "mean", "symmetric"], "how the peers are weighted"
    ] = "learned"
    two_level: Annotated[bool, "peers teach one another, then the leader"] = True
    entropy_sign: Annotated[
        Literal["+", "-"],
        Field(knob=False),
        "sign of the entropy term, which only attention=entropy has",
    ] = "+"

    def control(self):
        return Ind, {"m": self.m, "based": self.based}

    def peers(self) -> int:
        return self.m - self.two_level

    def deployed(self, seed: int) -> int:
        draw = torch.Generator().manual_seed(seed)
        return self.m - 1 if self.two_level else int(integers(self.m, (), draw))

    def build(self, probe) -> None:
        D, learned = probe.s.pooled[0].shape[-1], self.attention == "learned"
        self.Wq, self.Wk = (
            nn.Linear(D, max(1, D // 8), bias=False) if learned else nn.Identity() for _ in range(2)
        )

    def weights(self) -> dict[str, float]:
        leader = {"ce_leader": 1.0, "leader": self.alpha} if self.two_level else {}
        return {"ce": 1.0, "peers": self.alpha} | leader

    def distil(self, z: Tensor, q: Tensor) -> Tensor:
        """T^2 KL(q || softmax(z/T)), q constant if `detach`."""
        q = q.detach() if self.detach else q
        return self.T**2 * kl(q + EPS, F.log_softmax(z / self.T, -1))

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        n = self.peers()
        z, h = s.logits[:n], s.pooled[:n]
        A = attend(h, self.attention, self.Wq, self.Wk, step.generator)  # (B, n, n)
        self.watch(attention=A.mean(0))
        q = mix(z, A, self.T, self.aggregate)  # (n, B, K)
        if self.attention == "entropy":
            peers = (1 if self.entropy_sign == "+" else -1) * self.T**2 * entropy(q).mean(-1).sum()
        else:
            peers = self.distil(z, q).sum()
        out = {"ce": step.ce(z, y).sum(), "peers": peers}
        if self.two_level:
            mean = mix(z, z.new_full((z.shape[1], 1, n), 1 / n), self.T, self.aggregate)[0]
            out |= {"ce_leader": step.ce(s.logits[n], y), "leader": self.distil(s.logits[n], mean)}
        return out


class OKDDipKD(OKDDip):
    """OKDDip with a teacher ("OKDDip+KD": OKDDip's Tables 6 and 10).

    L = L_OKDDip + beta sum_i T^2 KL(softmax(z_T/T) || softmax(z_i/T)), i over all m students

    | symbol | code     | shape     |
    |--------|----------|-----------|
    | z_i    | s.logits | (m, B, K) |
    | z_T    | t.logits | (B, K)    |

    Gradient stops at z_T.

    Differences from the paper:
    1. Weight 1 and no ramp-up of the teacher's term are choices: no code was published.
    """

    name, title = "okddip_kd", "OKDDip+KD"
    needs_teacher = True

    beta: Annotated[Weight, "weight of the teacher"] = 1.0

    def control(self):
        return KD, {}

    def weights(self) -> dict[str, float]:
        return super().weights() | {"teacher": self.beta}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        teacher = kl_T(s.logits, t.logits.expand_as(s.logits), self.T, EPS).sum()
        return super().terms(s, y, t, step) | {"teacher": teacher}
