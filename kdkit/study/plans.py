"""A run described by names, and its one canonical plan.

A run's id is a hash of every field that changes its result, of its teacher's id, and of what a
user's own code and data are. Presets are `Run` objects: the lesson is the default, each paper's
preset is that paper's recipe. Values marked "choice" are not in the papers' text; the methods' own
hyperparameters stand in their classes.
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from .. import models
from ..fields import Field, choose, fields
from ..methods import Method, method_class, plain_method
from ..recipe import Recipe
from . import fingerprint, sources
from .pretrained import pretrained

FORMAT = 1  # of records and checkpoints; a new number makes every stored id a new one
Seed = Annotated[int, Field(0, 2**63 - 1)]


@dataclass(frozen=True)
class Run(Recipe):
    """Everything that decides a result, by name. Fractions are "of the epochs", so that a recipe
    scales. `preset` does not change the result by itself and is not part of the id."""

    method: Annotated[str, "registry name; nothing: the default method"] = ""
    seed: Annotated[Seed, "of initial weights, data order, augmentation and every draw"] = 0
    data: Annotated[str, "registry name of the data set"] = "lesson"
    student: Annotated[str, "a network, or several a,b,c for a mixed group"] = "resnet8_w0.5"
    teacher: Annotated[str, "the network of a method's teacher, if it needs one"] = "resnet8"
    teacher_seed: Annotated[
        int, Field(-1, 2**63 - 1), "seed of the teacher's run; -1: the same as seed"
    ] = 0
    teacher_lr: Annotated[
        float, Field(0, 1e30), "learning rate of the teacher's run; 0: the same as lr"
    ] = 0.0
    pretrained: Annotated[
        bool, "start from torchvision's ImageNet weights; epochs may then be 0"
    ] = False
    teacher_pretrained: Annotated[bool, "the teacher is torchvision's, as it is"] = False
    preset: Annotated[str, "where the other fields come from"] = "lesson"
    n_train: Annotated[
        int, Field(0, 10**9), "train on a fixed, class-balanced part; 0: on all images"
    ] = 0
    teacher_n_train: Annotated[
        int,
        Field(0, 10**9),
        "training images of the teacher's run; 0: as many as n_train. Both given: as many steps",
    ] = 0
    hide: Annotated[
        str, "classes whose images the student never sees, as a,b; its teacher does"
    ] = ""
    threads: Annotated[int, Field(0, 4096), "of the processor; 0 leaves torch's number"] = 1
    params: Annotated[tuple[tuple[str, Any], ...], "the method's own fields"] = ()

    def check(self) -> None:
        if self.epochs < 1 and not self.pretrained:
            raise ValueError(f"epochs={self.epochs!r}: must be at least 1")
        for name in ("optimizer", "schedule", "augment"):
            if callable(getattr(self, name)):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: a run is described by names; "
                    f"allowed are {', '.join(fields(Run)[name].options)}, a function only in kd.fit"
                )

    def replace(self, **changes) -> "Run":
        """A copy with fields changed; names that are no field of Run are the method's own."""
        known = fields(Run)
        own = {name: value for name, value in changes.items() if name not in known}
        changes = {name: value for name, value in changes.items() if name in known}
        if own:
            params = dict(changes.get("params", self.params)) | own
            changes["params"] = tuple(sorted(params.items()))
        return super().replace(**changes)


PRESETS: dict[str, Run] = {
    # For tests: a second or two each, with few test images, which take most of the time.
    "smoke": Run(
        preset="smoke",
        data="glyphs_few",
        n_train=200,
        epochs=3,
        batch=50,
        teacher="resnet8_w0.5",
    ),
    # Chosen on validation typefaces and seeds from 100 on (benchmarks/lesson_search.csv).
    "lesson": Run(
        n_train=2000,
        epochs=30,
        batch=32,
        lr=0.05,
        schedule="sgdr",
        T_0=1.0,  # one cosine down to 0
        teacher="resnet14",
        teacher_seed=-1,
    ),
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
    # DCKD, Sec. 4 "Setup", which does not say batch, weight decay, momentum and the lengths of
    # SGDR's cycles; they are choices (the recipe of RepDistiller, which the paper follows; budgets
    # 30 (2^n - 1)).
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
    return PRESETS[choose(name, PRESETS, "preset")].replace(**changes)


@dataclass(frozen=True, eq=False)
class Plan:
    """A run in its one canonical form, and all that follows from its fields.

    Two runs with one result have one plan but for `preset`: everything that the preset and the
    method imply is named in `run`, and nothing stands there that has no effect.
    """

    run: Run
    id: str
    method: Method  # with the run's fields; a prototype, which is copied before it is trained
    teacher: "Plan | None"
    identity: dict  # of the user's own code and data; see `fingerprint.identity`

    @property
    def title(self) -> str:
        """For people: "OKDDip seed 0"."""
        return f"{self.method.title} seed {self.run.seed}"


def plan(run: "Run | Plan") -> Plan:
    """The canonical plan of a run. ValueError on bad fields and unknown names of its method."""
    if isinstance(run, Plan):
        return run
    if not run.epochs:  # nothing is trained, so nothing else acts
        kept = ("method", "student", "data", "preset", "precision", "threads")
        run = Run(pretrained=True, epochs=0, **{name: getattr(run, name) for name in kept})
    cls = method_class(run.method)
    own = fields(cls)
    if both := own.keys() & fields(Run).keys():
        raise ValueError(
            f"{cls.name}: {', '.join(sorted(both))} is a field of every run: rename it"
        )
    for name in dict(run.params).keys() - own.keys():
        choose(name, [*own, *fields(Run)], f"field of {cls.name}")
    method = cls(**(implied(cls, run) | dict(run.params)))
    run = canonical(run, method)
    teacher_method = method.teacher_method()
    teacher = plan(_teacher_run(run, *teacher_method)) if teacher_method else None
    identity = fingerprint.identity(run)
    return Plan(run, _id(run, teacher, identity), method, teacher, identity)


def canonical(run: Run, method: Method) -> Run:
    """The run with what its preset and `method`, which has its fields, imply; what has no effect is
    at its default."""
    cls = type(method)
    given = implied(cls, run)
    params = {
        name: value
        for name, value in method.values().items()
        if value != fields(cls)[name].default or name in given  # else the preset would act again
    }
    changes: dict[str, Any] = {"method": cls.name, "params": tuple(sorted(params.items()))}
    changes["data"] = sources.ALIASES.get(run.data, run.data)
    changes["teacher_seed"] = run.seed if run.teacher_seed == -1 else run.teacher_seed
    changes["hide"] = ",".join(sorted({name.strip() for name in run.hide.split(",")} - {""}))
    names = student_names(run, method)  # a wrong number of them is told now
    changes["student"] = names[0] if len(set(names)) == 1 else ",".join(names)
    if method.teacher_method() is None:
        changes |= {
            "teacher": "",
            "teacher_seed": 0,
            "teacher_lr": 0.0,
            "teacher_pretrained": False,
            "teacher_n_train": 0,
        }
    else:
        changes["teacher_lr"] = 0.0 if run.teacher_lr == run.lr else run.teacher_lr
        changes["teacher_n_train"] = (
            0 if run.teacher_n_train == run.n_train else run.teacher_n_train
        )
    no_effect = ("milestones",) if run.schedule != "step" else ()
    no_effect += ("T_0", "T_mult") if run.schedule != "sgdr" else ()
    no_effect += ("momentum", "nesterov") if run.optimizer != "sgd" else ()
    changes |= {name: fields(Run)[name].default for name in no_effect}
    return _set(run, **changes)


def implied(cls: type[Method], run: Run) -> dict:
    """The fields that the run's preset and its two networks change in the method."""
    changes = dict(cls.presets.get(run.preset, {}))
    for (teacher, student), fields_ in cls.pairs.items():
        if teacher in ("", run.teacher) and student in ("", run.student):
            changes |= fields_
    return changes


def control(run: "Run | Plan") -> Plan | None:
    """The plan of the run that this one is fairly compared with; None if there is none."""
    planned = plan(run)
    given = planned.method.control()
    if given is None:
        return None
    cls, values = given
    if "," in planned.run.student and cls(**values).group() != planned.method.group():
        return None  # the networks of a mixed group are not those of another one
    return plan(_set(planned.run, method=cls.name, params=tuple(sorted(values.items()))))


def _set(run: Run, **values) -> Run:
    """A copy with values that are of their type already."""
    changed = copy.copy(run)
    for name, value in values.items():
        object.__setattr__(changed, name, value)
    return changed


def _teacher_run(run: Run, cls: type[Method], values: dict) -> Run:
    params = tuple(sorted(values.items()))
    taught = {"method": cls.name, "seed": run.teacher_seed, "params": params}
    if cls is plain_method():
        epochs = 0 if run.teacher_pretrained else run.epochs
        taught |= {"student": run.teacher, "lr": run.teacher_lr or run.lr}
        taught |= {"epochs": epochs, "pretrained": not epochs}
    taught["hide"] = ""  # what the student does not see is no business of its teacher's
    if run.teacher_n_train:  # as many steps, on other images
        taught |= {"n_train": run.teacher_n_train, "teacher_n_train": 0}
        if run.n_train and taught.get("epochs", run.epochs):
            epochs = run.epochs * run.n_train / run.teacher_n_train
            taught["epochs"] = max(1, round(epochs))
    return _set(run, **taught)


def _id(run: Run, teacher: Plan | None, identity: dict) -> str:
    """Hash of every field that changes the result and is not at its default: a field that is added
    later leaves the ids of stored runs as they are."""
    run_fields, own = fields(Run), fields(method_class(run.method))
    params = [[name, value] for name, value in run.params if value != own[name].default]
    content = {
        name: getattr(run, name)
        for name, field in run_fields.items()
        if name not in ("preset", "params") and getattr(run, name) != field.default
    }
    content |= {"params": params} if params else {}
    return digest(content, teacher and teacher.id, identity or None)


def digest(*values: Any) -> str:
    """Twelve hexadecimal digits that stand for JSON-able `values`."""
    text = json.dumps([FORMAT, *values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_from(values: dict) -> Run:
    """A Run from JSON; ValueError where it is none of this version."""
    try:
        params = tuple((str(name), value) for name, value in values["params"])
        return Run(**{**values, "params": params})
    except (TypeError, KeyError) as e:
        raise ValueError(f"not a run of this version: {e}") from e


def unusual(run: "Run | Plan") -> dict[str, Any]:
    """The fields of a run that differ from its preset and its method's defaults, seeds aside."""
    planned = plan(run)
    run, method, base = planned.run, planned.method, PRESETS.get(planned.run.preset, Run())
    usual = _set(base, method=run.method, schedule=run.schedule, seed=run.seed)
    usual = canonical(usual, method)
    usual_params = method.presets.get(run.preset, {})
    found = {
        name: value
        for name, value in run.params
        if name not in usual_params or usual_params[name] != value
    }
    for name in fields(Run):
        if name not in ("method", "seed", "preset", "schedule", "params"):
            value = getattr(run, name)
            if value != getattr(usual, name):
                found[name] = value
    if run.schedule != base.schedule:
        found["schedule"] = run.schedule
    return found


def label(run: "Run | Plan") -> str:
    """Title of the method, and whatever differs from the preset and the method's defaults:
    "OKDDip (m=6)". Runs that differ in nothing but their seeds have one label."""
    texts = [_field_text(name, value) for name, value in unusual(run).items()]
    title = plan(run).method.title
    return f"{title} ({', '.join(texts)})" if texts else title


def _field_text(name: str, value: Any) -> str:
    """A field that differs, as a label names it."""
    if name in ("based", "student"):  # their values speak for themselves
        return str(value).replace(",", " + ")
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


# From names to the engine's objects


def student_names(run: Run, method: Method) -> list[str]:
    """The network of each student. ValueError where names and number of students do not agree."""
    names, (kind, m) = [name.strip() for name in run.student.split(",")], method.group()
    if len(names) not in (1, m) or (kind == "branch" and len(set(names)) > 1):
        raise ValueError(
            f"student={run.student!r}: {method.title} has {m} student(s), "
            f"kind {kind}; name one network, or {m} for a group of whole networks"
        )
    return (names * m)[:m]


def build_network(name: str, channels: int, classes: int) -> nn.Module:
    """One network. ValueError, in one line, where a user's function for it fails."""
    try:
        return models.build(name, channels, classes)
    except ValueError:
        raise
    except Exception as e:
        raise ValueError(f"network {name!r}: {type(e).__name__}: {e}") from e


def build_students(run: "Run | Plan", shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The untrained students of a run: one network, `Peers` or `Branches`; its weights are drawn
    from torch's generator.

    shape: (C, H, W) of an image.
    """
    run, method = plan(run).run, plan(run).method
    names, (kind, _) = student_names(run, method), method.group()
    nets = [build_network(name, shape[0], classes) for name in names]
    if run.pretrained:
        for name, net in zip(names, nets, strict=True):
            net.load_state_dict(pretrained(name, classes))
    if kind == "branch":
        return models.Branches(nets)
    return models.Peers(nets) if kind == "network" else nets[0]
