"""Hints from a teacher's feature maps: FitNet, AT, FT."""

from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from ..fields import Field, choose
from ..losses import map_difference
from .base import Epochs, LabelWeight, Method, Weight
from .logit import Baseline


class Hinted(Method):
    """Base of the methods that match a teacher's maps: L = r CE(z, y) + beta (its own term)."""

    needs_teacher = True
    student_needs = teacher_needs = ("feats",)

    r: LabelWeight = 1.0
    beta: Annotated[Weight, "weight of the method's own term"] = 1.0

    def control(self):
        return Baseline, {}


def stages(maps_s: tuple, maps_t: tuple, z: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Student's and teacher's maps f1..fn side by side, without the stem, in the precision of the
    logits z (maps are bf16 under autocast). Raises ValueError unless both have n stages."""
    if len(maps_s) != len(maps_t):
        raise ValueError(
            "maps are compared one to one: student and teacher need equally many "
            f"after the stem, these have {len(maps_s) - 1} and {len(maps_t) - 1}"
        )
    return [(f.to(z), g.to(z)) for f, g in zip(maps_s[1:], maps_t[1:], strict=True)]


def regressor(f_s: Tensor, f_t: Tensor) -> nn.Sequential:
    """Convolution, BN and ReLU from the student's map (B, C, H, W) to the size of the teacher's.

    Raises ValueError where the student's is smaller, except by half.
    """
    (c_s, *s), (c_t, *t) = f_s.shape[1:], f_t.shape[1:]
    if s == [2 * n for n in t]:
        conv = nn.Conv2d(c_s, c_t, 3, 2, 1)
    elif [2 * n for n in s] == t:
        conv = nn.ConvTranspose2d(c_s, c_t, 4, 2, 1)
    elif s[0] >= t[0] and s[1] >= t[1]:
        conv = nn.Conv2d(c_s, c_t, (1 + s[0] - t[0], 1 + s[1] - t[1]))
    else:
        raise ValueError(
            f"no regressor takes a student's map of {s[0]}x{s[1]} to the teacher's "
            f"{t[0]}x{t[1]}: it must be as large, larger, or half as large"
        )
    return nn.Sequential(conv, nn.BatchNorm2d(c_t), nn.ReLU())


class FitNet(Hinted):
    """FitNets: Hints for Thin Deep Nets: Romero, Ballas, Kahou, Chassang, Gatta, Bengio;
    ICLR 2015; arXiv 1412.6550.

    L = r CE(z, y) + beta mean (R(f_s) - f_t)^2, R = ReLU(BN(conv)), the regressor

    | symbol | code                | shape            |
    |--------|---------------------|------------------|
    | z      | s.logits            | (B, K)           |
    | f_s    | s.feats[layer]      | (B, C_s, H_s, W_s) |
    | f_t    | t.feats[layer]      | (B, C_t, H, W)   |
    | R      | regressor           | (B, C_s, H_s, W_s) -> (B, C_t, H, W) |

    Gradient stops at f_t: the teacher is frozen.

    Differences from the paper:
    1. The hint is matched in the same stage as the labels are, not in a stage before, with the
       second stage's map as hint and beta = 100, as in RepDistiller; the lesson's 10 is chosen
       there.
    2. The regressor has batch norm; its convolution follows from the two sizes (RepDistiller).
    """

    name, title = "fitnet", "FitNet"
    presets = {"lesson": dict(beta=10.0)}

    beta: Annotated[Weight, "weight of the hint"] = 100.0
    layer: Annotated[
        int, Field(0, 1000, step=1), "which map is the hint: 0 the stem, 1..n the stages"
    ] = 2

    def build(self, probe) -> None:
        s, t = probe.s.feats, probe.t.feats
        i = choose(self.layer, range(min(len(s), len(t))), "layer")
        self.regressor = regressor(s[i], t[i])

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "hint": self.beta}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        f_s, f_t = (o.feats[self.layer].to(s.logits) for o in (s, t))
        return {"ce": step.ce(s.logits, y), "hint": F.mse_loss(self.regressor(f_s), f_t)}


class AT(Hinted):
    """Paying More Attention to Attention: Zagoruyko, Komodakis; ICLR 2017; arXiv 1612.03928.

    L = r CE(z, y) + beta sum_i mean (Q(f_s^i) - Q(f_t^i))^2, Q(f) = mean_c f_c^2 / ||mean_c f_c^2||
    (the norm over H and W)

    | symbol | code          | shape        |
    |--------|---------------|--------------|
    | z      | s.logits      | (B, K)       |
    | f_s^i  | s.feats[i]    | (B, C, H, W) |
    | f_t^i  | t.feats[i]    | (B, C, H, W) |
    | Q(f)   | attention_map | (B, HW)      |

    Gradient stops at f_t: the teacher is frozen.

    Differences from the paper:
    1. The mean of squared differences with beta = 1000, as in RepDistiller; the paper has their
       norm and beta / 2. The lesson's beta of 100 is chosen there: 1000 costs accuracy.
    2. All stages, not chosen ones; the larger of two maps is average-pooled first (RepDistiller).
    """

    name, title = "at", "AT"
    presets = {"lesson": dict(beta=100.0)}

    beta: Annotated[Weight, "weight of the attention maps"] = 1000.0

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "attention": self.beta}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        pairs = stages(s.feats, t.feats, s.logits)
        attention = sum(map_difference(f_s, f_t).square().mean() for f_s, f_t in pairs)
        return {"ce": step.ce(s.logits, y), "attention": attention}


def convolutions(*widths: int, conv: type = nn.Conv2d, norm: type = nn.Identity) -> nn.Sequential:
    """3x3 convolutions from width to width, each with `norm` and LeakyReLU of slope .1."""
    return nn.Sequential(
        *(
            nn.Sequential(conv(a, b, 3, 1, 1), norm(b), nn.LeakyReLU(0.1))
            for a, b in pairwise(widths)
        )
    )


class FT(Hinted):
    """Paraphrasing Complex Network: Network Compression via Factor Transfer: Kim, Park, Kwak;
    NeurIPS 2018; arXiv 1802.04977.

    First stage, the paraphraser alone: L_P = mean (dec(enc(f_t)) - f_t)^2. Then
    L = r CE(z, y) + beta mean |Q(trans(f_s)) - Q(enc(f_t))|, Q as in AT

    | symbol | code        | shape            |
    |--------|-------------|------------------|
    | z      | s.logits    | (B, K)           |
    | f_s    | s.feats[-1] | (B, C_s, H, W)   |
    | f_t    | t.feats[-1] | (B, C_t, H, W)   |
    | enc    | encoder     | (B, C_t, H, W) -> (B, k C_t, H, W), of the paraphraser |
    | dec    | decoder     | back             |
    | trans  | translator  | (B, C_s, H, W) -> (B, k C_t, H, W) |

    Gradient stops at the teacher's factor enc(f_t): the paraphraser is frozen after its stage.

    Differences from the paper:
    1. Factors are compared by their attention maps, the larger average-pooled first, with
       beta = 200, as in RepDistiller; the paper normalises the flattened factors themselves. The
       lesson's beta of 2 is chosen there: 200 costs accuracy.
    2. The first stage takes 30/240 of the epochs (30 in DCKD's preset), RepDistiller's learning
       rate and no batch norm.
    """

    name, title = "ft", "FT"
    presets = {"dckd_paper": dict(first=30 / 930), "lesson": dict(beta=2.0)}
    pairs = {
        ("", student): dict(first_lr=0.0)
        for student in "vgg8 vgg11 vgg13 vgg16 vgg19 mobilenetv2 shufflenetv1 shufflenetv2".split()
    }

    beta: Annotated[Weight, "weight of the factors"] = 200.0
    k: Annotated[
        float, Field(1e-3, 10, step=0.1), "width of the factor, as a share of the teacher's map's"
    ] = 0.5
    first: Annotated[Epochs, "length of the first stage"] = 30 / 240
    first_lr: Annotated[
        float, Field(0, 1e3, knob=False), "learning rate of the first stage; 0: the recipe's"
    ] = 0.01

    def build(self, probe) -> None:
        c_s, c_t = (o.feats[-1].shape[1] for o in (probe.s, probe.t))
        c = max(1, int(self.k * c_t))
        self.encoder = convolutions(c_t, c_t, c, c)
        self.decoder = convolutions(c, c, c_t, c_t, conv=nn.ConvTranspose2d)
        self.translator = convolutions(c_s, c_s, c, c, norm=nn.BatchNorm2d)

    def pretrain_epochs(self, epochs: int) -> int:
        n = self.first * epochs
        return max(round(n), int(n > 0))

    def pretrain_rate(self, lr: float) -> float:
        return self.first_lr or lr

    def pretrain_terms(self, t, y, step) -> dict[str, Tensor]:
        f_t = t.feats[-1].to(t.logits)
        return {"reconstruction": F.mse_loss(self.decoder(self.encoder(f_t)), f_t)}

    def weights(self) -> dict[str, float]:
        return {"ce": self.r, "factor": self.beta}

    def terms(self, s, y, t, step) -> dict[str, Tensor]:
        f_s, f_t = (o.feats[-1].to(s.logits) for o in (s, t))
        factor_t = self.encoder(f_t).detach()  # the paraphraser has learned in the first stage
        factor = map_difference(self.translator(f_s), factor_t).abs().mean()
        return {"ce": step.ce(s.logits, y), "factor": factor}
