"""The frozen description of one run, the presets, and the run id.

A run's id is a hash of every field that changes its result. Presets are `Run` objects: the lesson
is the default, each paper's preset is that paper's recipe. Values marked "choice" are not in the
papers' text; methods' own hyperparameters stand in their classes.
"""

import dataclasses
import difflib
import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

FORMAT = 1  # of records and checkpoints; a new number makes every stored id a new one


@dataclass(frozen=True)
class Run:
    """Everything that decides a result. Fractions are "of the epochs", so that a recipe scales.

    Fields marked * do not change the result and are not part of the id.
    """

    method: str = ""  # registry name; "" is the default method
    seed: int = 0  # of initial weights, data order, augmentation and every draw of the method
    data: str = "lesson"
    student: str = "resnet8_w0.5"  # a network, or several "a,b,c" for a mixed group
    teacher: str = "resnet8"  # the network a method's teacher run trains, if it needs one
    teacher_seed: int = 0
    teacher_lr: float = 0.0  # the learning rate of the teacher's run; 0: the same as lr
    pretrained: bool = False  # start from torchvision's ImageNet weights; epochs may then be 0
    teacher_pretrained: bool = False  # the teacher is torchvision's, as it is
    preset: str = "lesson"  # * where the other fields come from
    n_train: int = 0  # train on a fixed, class-balanced part; 0 is all
    epochs: int = 30
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["step", "sgdr"] = "step"
    milestones: tuple[float, ...] = (0.5, 0.75)  # of the epochs: the rate is divided by 10
    T_0: float = 1 / 7  # of the epochs: SGDR's first cycle
    T_mult: int = 2  # SGDR: each cycle is so many times longer
    augment: Literal["none", "flip", "crop", "crop_flip"] = "none"
    full_tests: int = 0  # epochs, besides the last, after which the whole test set is read
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    threads: int = 1  # of the processor; 0 leaves torch's number
    compile: bool = False  # torch.compile the students
    params: tuple[tuple[str, Any], ...] = ()  # the method's own fields, sorted by name

    def __post_init__(self):
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, typed(f.name, getattr(self, f.name), f.type))
        for name, low in (_LOWEST | {"epochs": 1 - self.pretrained}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be at least {low}")
        if not all(0 < m <= 1 for m in (*self.milestones, self.T_0)):
            raise ValueError(
                f"milestones={self.milestones}, T_0={self.T_0}: fractions of the "
                "epochs, above 0 and at most 1"
            )
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr!r}: must be above 0")

    def but(self, **changes) -> "Run":
        """A copy with fields changed; names that are no field of Run go to `params`."""
        known = {f.name for f in dataclasses.fields(self)}
        params = dict(self.params) | {k: v for k, v in changes.items() if k not in known}
        ours = {k: v for k, v in changes.items() if k in known and k != "params"}
        params |= dict(changes.get("params", ()))
        return replace(self, **ours, params=tuple(sorted(params.items())))


_LOWEST = dict(
    batch=1,
    threads=0,
    n_train=0,
    full_tests=0,
    weight_decay=0.0,
    momentum=0.0,
    T_mult=1,
    seed=0,
    teacher_seed=0,
    teacher_lr=0.0,
)


def lr_at(run: Run, epoch: int) -> float:
    """The learning rate during `epoch` (from 0).

    step: divided by 10 from each milestone on (RepDistiller, OKDDip).  sgdr: cosine with warm
    restarts, one step an epoch, to 0 (Loshchilov and Hutter 2017; torch's scheduler agrees).
    """
    if run.schedule == "step":
        return run.lr * 0.1 ** sum(epoch >= round(m * run.epochs) for m in run.milestones)
    length, at = max(1, round(run.T_0 * run.epochs)), epoch
    while at >= length:
        at, length = at - length, length * run.T_mult
    return run.lr * (1 + math.cos(math.pi * at / length)) / 2


def typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type, from Python or from text; ValueError names what is allowed."""
    if get_origin(kind) is Literal:
        return choose(value, get_args(kind), name)
    if get_origin(kind) is tuple:
        if isinstance(value, str):
            value = [v for v in value.strip("()[] ").split(",") if v.strip()]
        item = get_args(kind)[0]
        return tuple(v if get_origin(item) else typed(name, v, item) for v in value)
    text = str(value).strip()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int and float(text) == int(float(text)):
            return int(float(text))
        if kind is float and float(text) - float(text) == 0:  # finite
            return float(text)
        if kind is str:
            return value if isinstance(value, str) else text
    except (KeyError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name}={value!r}: must be a {kind.__name__}")


def choose(value: Any, known, what: str) -> Any:
    """`value` if it is in `known`, else a ValueError with the nearest valid names."""
    known = list(known)
    if value not in known:
        near = difflib.get_close_matches(str(value), map(str, known), 3, 0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown {what} {value!r}: {hint}known: {', '.join(map(str, known))}")
    return value


def seed_of(*keys) -> int:
    """A 63-bit seed from any values: each draw of a run has its own generator, so nothing in a
    kernel can disturb it and no generator has a state to save."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def content(run: Run) -> dict:
    """The fields that change the result and are not at their default, ready for JSON: a field
    that is added later leaves the ids of stored runs as they are."""
    values = {
        f.name: getattr(run, f.name)
        for f in dataclasses.fields(run)
        if f.name != "preset" and getattr(run, f.name) != f.default
    }
    return json.loads(json.dumps(values))


def digest(*values: Any) -> str:
    """Twelve hexadecimal digits that stand for JSON-able `values`."""
    return hashlib.sha256(json.dumps([FORMAT, *values], sort_keys=True).encode()).hexdigest()[:12]


PRESETS: dict[str, Run] = {
    # For tests: a second or two each, with few test images, which take most of the time.
    "smoke": Run(
        preset="smoke", data="lesson_few", n_train=200, epochs=3, batch=50, teacher="resnet8_w0.5"
    ),
    # Chosen on validation images and seeds 100 and 101 (benchmarks/lesson_search.csv).
    "lesson": Run(n_train=2000, epochs=20, batch=64),
    # OKDDip, Sec. "Settings" and its code (wd 5e-4; crop and flip).
    "okddip_paper": Run(
        preset="okddip_paper",
        data="cifar100",
        student="resnet32",
        teacher="resnet110_bottleneck",
        epochs=300,
        augment="crop_flip",
        full_tests=5,
        precision="auto",
        threads=0,
    ),
    # DCKD, Sec. 4 "Setup"; batch, weight decay, momentum and the meaning of the stripped SGDR
    # numbers are choices (RepDistiller's recipe, which the paper follows; budgets 30 (2^n - 1)).
    "dckd_paper": Run(
        preset="dckd_paper",
        data="cifar100",
        student="resnet32",
        teacher="resnet110",
        epochs=930,
        batch=64,
        lr=0.05,
        nesterov=False,
        schedule="sgdr",
        T_0=30 / 930,
        augment="crop_flip",
        full_tests=5,
        precision="auto",
        threads=0,
    ),
}


def preset(name: str, **changes) -> Run:
    """The preset `name` with fields changed: `preset("lesson", method="kd", T=2.0)`."""
    return PRESETS[choose(name, PRESETS, "preset")].but(**changes)
