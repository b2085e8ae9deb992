"""Rows of the papers' tables as runs: what they are, that each trains, and what comes of them."""

import copy
import json
import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdkit import metrics, models, train
from kdkit.data import Data
from kdkit.device import use_threads
from kdkit.recipe import learning_rate
from kdkit.study import files, project, store, sweep
from kdkit.study.papers import cells
from kdkit.study.papers.runs import recipe, runs_of, value
from kdkit.study.plans import Run, build_students, plan, run_from
from kdkit.study.runs import get
from kdkit.study.sources import SETS

IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "fashion_mnist32": 60_000, "imagenet": 1_281_167}


def distinct():
    """A plan for each way to build and train: rows that differ in the recipe's numbers, the
    networks' learning rates for example, share it. Teachers' runs are among them."""
    found = {}
    for row in cells().itertuples():
        planned = plan(runs_of(row, 1)[0][0])
        while planned is not None:
            run = planned.run
            fields = " ".join(f"{k}={v}" for k, v in run.params)
            pair = f"{run.teacher}->{run.student}" if run.teacher else run.student
            as_it_is = "" if run.epochs else " as it is"
            found.setdefault(f"{run.method} {fields} {pair} {run.data}{as_it_is}", planned)
            planned = planned.teacher
    return found


CASES = distinct()


def sample():
    """A tenth of the cases, always the same: one at least of each method and family of networks;
    the others are slow."""
    chosen, seen = set(), set()
    for number, (name, planned) in enumerate(CASES.items()):
        families = re.findall(r"[a-z]+", planned.run.student)
        facts = {planned.run.method, *families, planned.run.data}
        if number % 60 == 0 or not facts <= seen:
            chosen.add(name)
            seen |= facts
    return chosen


SAMPLE = sample()
WHOLE = [
    pytest.param(planned, id=name, marks=() if name in SAMPLE else pytest.mark.slow)
    for name, planned in CASES.items()
]


class Virtual(Data):
    """A few images behind as many positions as the real set has."""

    def batch(self, index, augment, generator):
        return super().batch(index % len(self.x), augment, generator)

    def _loaded(self, x, plan):
        return (x[index % len(x)] for index, _ in plan)


@cache
def virtual(name):
    """20 images a class, but 40 in all at 224 pixels, and the real number of labels."""
    K, side = SETS[name].classes, 224 if name == "imagenet" else 32
    draw = torch.Generator().manual_seed(0)
    n = 40 if name == "imagenet" else 20 * K
    x = torch.randint(256, (n, 3, side, side), generator=draw, dtype=torch.uint8)
    y = torch.arange(IMAGES[name]) % K
    return Virtual(
        name,
        K,
        (3, side, side),
        x,
        y,
        x[:16],
        y[:16],
        SETS[name].mean,
        SETS[name].std,
        tuple(map(str, range(K))),
    )


def quick(net):
    """`net` whose batch norms keep the mean of what they see: their slow average would need more
    than two steps, and until then a deep network's logits are huge in eval mode."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    return net


@cache
def random_net(run):
    """The students of a run with random weights and the statistics of a batch, frozen."""
    torch.manual_seed(0)
    data = virtual(run.data)
    net = quick(build_students(run, data.shape, data.classes))
    with torch.no_grad():
        net(data.batch(torch.arange(4), "none", None))
    return net.eval().requires_grad_(False)


def test_the_sample_is_a_tenth():
    assert 0.09 * len(CASES) <= len(SAMPLE) <= 0.13 * len(CASES)
    assert {p.run.method for p in CASES.values()} == {CASES[n].run.method for n in SAMPLE}


@pytest.mark.parametrize("planned", WHOLE)
def test_each_run_trains(planned, monkeypatch):
    """On virtual data, with a random teacher: two steps (a stage before: one more) where ramp-ups
    and warm-ups are at their end: finite terms, a gradient for each parameter, none for the
    teacher; then an evaluation."""
    monkeypatch.setattr(
        "kdkit.study.plans.pretrained",
        lambda name, classes: models.build(name, 3, 1000).state_dict(),
    )
    run, data = planned.run, virtual(planned.run.data)
    recipe = run.replace(batch=2 if run.data == "imagenet" else 8, threads=1)
    teacher = None
    if planned.teacher:
        its = planned.teacher.run
        teacher = random_net(
            Run(method=its.method, params=its.params, student=its.student, data=its.data)
        )
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
    with use_threads(1):
        torch.manual_seed(0)
        students = quick(build_students(planned, data.shape, data.classes))
        method = copy.deepcopy(planned.method)
        state = train.prepare(method, students, data, teacher, recipe, 0, "cpu")
        named = {
            **dict(students.named_parameters()),
            **{f"method.{k}": p for k, p in method.named_parameters()},
        }
        listed = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
        assert listed == {id(p) for p in named.values()}
        reached = set()
        for epoch in [-1] * (state.epoch < 0) + [run.epochs - 1] * 2 * (run.epochs > 0):
            if state.positions is not None and state.epoch > 0:
                held = method.held_out(data.y)[:100]
                monkeypatch.setattr(method, "held_out", lambda labels, held=held: held)
                train.refresh(state)
            state.epoch, state.step = epoch, state.steps - 1  # the last step alone
            train.train_epoch(state)
            rate = learning_rate(run, epoch) if epoch >= 0 else method.pretrain_rate(run.lr)
            assert {group["lr"] for group in state.optimizer.param_groups} == {rate}
            assert all(v.isfinite() for v in state.terms.values()), state.terms
            reached |= {k for k, p in named.items() if p.grad is not None and p.grad.any()}
        assert reached == set(named if run.epochs else ()), sorted(set(named) - reached)
        z = state.test_logits(torch.arange(4))  # not finite: an error
    assert z.shape == (method.group()[1], 4, data.classes)
    if teacher is not None:
        assert all(v.equal(before[k]) for k, v in teacher.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


# ---- rows to runs ----

CIFAR_OKDDIP = dict(
    epochs=300,
    batch=128,
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="step",
    milestones=(0.5, 0.75),
    augment="crop_flip",
)
CIFAR_DCKD = dict(
    epochs=930,
    batch=64,
    lr=0.05,
    momentum=0.9,
    nesterov=False,
    weight_decay=5e-4,
    schedule="sgdr",
    T_0=30 / 930,
    T_mult=2,
    augment="crop_flip",
)


def row_of(which):
    found = list(cells(which).itertuples())
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    "which, fields, params",
    [
        (
            "okddip:2:ResNet-32:OKDDip (network)",
            CIFAR_OKDDIP | dict(method="okddip", student="resnet32", data="cifar100"),
            dict(T=3.0, alpha=1.0, m=4, based="network", rampup=80 / 300),
        ),
        (
            "okddip:6:CIFAR-10:KD",
            CIFAR_OKDDIP | dict(student="resnet32", teacher="resnet110_bottleneck", data="cifar10"),
            dict(T=3.0, r=1.0, alpha=1.0),
        ),
        (
            "okddip:3:ResNet-34:ONE",
            dict(
                epochs=90,
                batch=256,
                lr=0.1,
                weight_decay=1e-4,
                nesterov=True,
                milestones=(30 / 90, 60 / 90),
                schedule="step",
            ),
            dict(m=4),
        ),
        (
            "dckd:2:DCKD Net2:ResNet110/ResNet32",
            CIFAR_DCKD | dict(student="resnet32", teacher="resnet110", teacher_lr=0.0),
            dict(m=3, collection="lmax"),
        ),
        ("dckd:2:KD:WRN-40-2/WRN-16-2", CIFAR_DCKD, dict(T=4.0, r=0.1, alpha=0.9)),
        ("dckd:2:ReviewKD:ResNet56/ResNet20", CIFAR_DCKD, dict(beta=0.6)),
        (
            "dckd:3:ReviewKD:ResNet32x4/ShuffleNetV2",
            CIFAR_DCKD | dict(lr=0.01, teacher_lr=0.05),
            dict(beta=8.0),
        ),
        ("dckd:3:Student:VGG13/MobileNetV2", CIFAR_DCKD | dict(lr=0.01), {}),
        ("dckd:3:Teacher:VGG13/MobileNetV2", CIFAR_DCKD, {}),
        ("dckd:8:eDCKD Net1:ShuffleNetV1", CIFAR_DCKD | dict(lr=0.01, teacher_lr=0.05), dict(m=3)),
        ("dckd:4:CIFAR-10:AT", CIFAR_DCKD | dict(epochs=210, T_0=30 / 210, data="cifar10"), {}),
        ("dckd:4:Fashion-MNIST:AT", CIFAR_DCKD | dict(epochs=450, T_0=30 / 450), {}),
        (
            "dckd:1:Top-5:OFD",
            dict(
                epochs=210,
                T_0=30 / 210,
                batch=256,
                lr=0.1,
                weight_decay=1e-4,
                nesterov=False,
                teacher_pretrained=True,
                pretrained=False,
            ),
            dict(beta=1e-4),
        ),
        ("dckd:1:Top-1:ReviewKD", dict(teacher_pretrained=True), dict(beta=1.0, warmup=1 / 210)),
        ("dckd:1:Top-1:Student", dict(epochs=0, pretrained=True, student="resnet18_imagenet"), {}),
        (
            "dckd:6:DCKD w/o Rev. KL, Max Col.:Net1",
            CIFAR_DCKD,
            dict(collection="avg", reverse=False),
        ),
    ],
)
def test_a_row_has_its_papers_recipe(which, fields, params):
    [[run], *_] = runs_of(row_of(which))
    assert {k: getattr(run, k) for k in fields} == fields
    assert {k: getattr(plan(run).method, k) for k in params} == params


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("okddip:6:CIFAR-100:OKDDip+KD", "okddip:6:CIFAR-100:Teacher"),
        ("okddip:6:CIFAR-100:KD", "okddip:2:ResNet-110:Baseline"),
        ("dckd:2:DCKD Net1:VGG13/VGG8", "dckd:2:Teacher:VGG13/VGG8"),
        ("dckd:3:CRD:VGG13/MobileNetV2", "dckd:2:Teacher:VGG13/VGG8"),
        ("dckd:8:eDCKD Net3:MobileNetV2", "dckd:3:DCKD Net1:VGG13/MobileNetV2"),
        ("dckd:8:Ensembled Student:WRN-16-2", "dckd:2:DCKD Net3:WRN-40-2/WRN-16-2"),
        ("dckd:4:Fashion-MNIST:KD", "dckd:4:Fashion-MNIST:Teacher"),
        ("dckd:1:Top-1:KD", "dckd:1:Top-1:Teacher"),
    ],
)
def test_a_teacher_is_the_run_of_its_own_cell(student, teacher):
    [[run], *_] = runs_of(row_of(student))
    [[its], *_] = runs_of(row_of(teacher))
    assert plan(run).teacher.id == plan(its).id


def test_repetitions_have_seeds_of_their_own():
    seeds = [[run.seed for run in group] for group in runs_of(row_of("okddip:10:KD:CIFAR-10"))]
    assert seeds == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [[r.seed for r in g] for g in runs_of(row_of("okddip:6:CIFAR-10:KD"), 2)] == [[0], [1]]
    assert len(runs_of(row_of("dckd:1:Top-1:Teacher"))) == 1  # nothing is drawn in it


def test_a_changed_recipe_scales_and_leaves_what_is_not_trained():
    [[run]] = runs_of(row_of("dckd:2:KD:VGG13/VGG8"), 1, epochs="31", n_train="500", T="2")
    assert (run.epochs, run.n_train, plan(run).method.T) == (31, 500, 2.0)
    assert learning_rate(run, 1) == learning_rate(run.replace(epochs=930), 30)  # the first restart
    [[run]] = runs_of(row_of("dckd:1:Top-1:Teacher"), 1, epochs="2")
    assert run.epochs == 0
    with pytest.raises(ValueError, match="unknown field of baseline"):
        runs_of(row_of("dckd:2:Teacher:VGG13/VGG8"), 1, T=2)


# ---- runs to numbers ----


def record(z, y, deployed=None, peers=None):
    result = metrics.report(z, y, peers or len(z), deployed, None)
    return SimpleNamespace(result=result, test_logits={"students": z}, labels=y)


def right(*shares):
    """Logits (m, 100, 12) of students that are right on that share of the images in %, and else
    have the true class second."""
    y = np.zeros(100, int)
    z = np.zeros((len(shares), 100, 12), np.float32)
    for i, share in enumerate(shares):
        z[i, :, 0] = 1.0
        z[i, share:, 1 + i] = 2.0
    return z, y


@pytest.mark.parametrize(
    "which, deployed, want",
    [
        ("okddip:2:ResNet-32:DML", None, 100 - (70 + 90 + 80) / 3),
        ("okddip:2:ResNet-32:OKDDip (branch)", 2, 20),
        ("okddip:5:ResNet-32:w/o two-level", 0, 30),
        ("dckd:2:DCKD Net1:VGG13/VGG8", None, 90),
        ("dckd:2:DCKD Net2:VGG13/VGG8", None, 80),
        ("dckd:2:DCKD Net3:VGG13/VGG8", None, 70),
        ("dckd:1:Top-5:DCKD Net3", None, 100),
        ("dckd:fig2:(b)", None, None),
    ],
)
def test_what_each_statistic_takes(which, deployed, want):
    z, y = right(70, 90, 80)
    row = cells(which).itertuples().__next__()
    assert value(row, [record(z, y, deployed)]) == pytest.approx(want)


def test_ensembles_diversity_and_correlation():
    z, y = right(60, 70, 80)
    z[0, 60:, 0] = 1.9  # nearly right, so that two others that are right carry the vote
    report = record(z, y, None, 2)
    assert value(row_of("okddip:8:ResNet-32:DML"), [report]) == 100 - report.result["ensemble"]
    assert value(row_of("okddip:fig2:ResNet-32:Ind"), [report]) == report.result["diversity"] > 0
    assert value(row_of("dckd:fig4:Teacher"), [report]) == report.result["correlation_number"]
    group = [record(z[i : i + 1], y, 0) for i in (0, 1, 2, 2)]
    want = 100 - 100 * metrics.top(metrics.ensemble(z[[0, 1, 2, 2]]), y)
    assert value(row_of("okddip:8:ResNet-32:Baseline"), group) == pytest.approx(want)
    assert want not in {100 - g.result["top1_deployed"] for g in group}


# ---- the commands ----

KEYS = (
    "paper table row column dataset networks metric statistic published published_std ours "
    "ours_std n records run note"
).split()
LITTLE = [
    "--set",
    "data=glyphs_few",
    "--set",
    "epochs=1",
    "--set",
    "n_train=100",
    "--set",
    "batch=20",
    "--set",
    "full_tests=0",
    "--set",
    "lr=0.001",
]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("KDKIT_DATA", raising=False)
    monkeypatch.setattr(files, "home", lambda: tmp_path)
    monkeypatch.setattr(project, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_without_runs_every_cell_says_so(runs, call):
    code, out, err = call("table", "--json")
    told = json.loads(out)
    assert (code, err, len(told)) == (0, [], 544) and not runs.exists()
    frame = cells()
    for cell, row in zip(told, frame.itertuples(), strict=True):
        assert list(cell) == KEYS and cell["note"] == row.note
        assert (cell["ours"], cell["ours_std"], cell["n"], cell["records"]) == (None, None, 0, 0)
        assert cell["run"] == plan(recipe(row)).id  # the run that would be
        assert cell["published"] == (None if np.isnan(row.published) else row.published)
    for paper, table in frame[["paper", "table"]].drop_duplicates().itertuples(index=False):
        code, out, err = call("table", f"{paper}:{table}")
        part = frame[(frame["paper"] == paper) & (frame["table"] == table)]
        body = out.split("\n\n")[1].splitlines()[1:]
        assert len(body) == len(part) and all("not run" in line for line in body)
        assert max(map(len, out.splitlines())) <= 100
        for line, row in zip(body, part.itertuples(), strict=True):
            assert (
                line.startswith(row.row)
                and ("" if np.isnan(row.published) else f"{row.published:.2f}") in line
            )
        assert "(choice)" in out
    code, out, _ = call("table")
    assert code == 0 and len(out.splitlines()) == 24 and "35 cells, 0 of them run here" in out


def test_notes_are_numbered_once(runs, call):
    out = call("table", "okddip:8")[1]
    body, notes = out.split("\n\n")[1:3]
    assert [line.split(":")[0] for line in notes.splitlines() if line[0].isdigit()] == [*"1234567"]
    dml = next(line for line in body.splitlines() if "26.47" in line)
    number = dml.split()[-1]
    assert f"{number}: CONTRADICTION: printed as an ensemble" in notes


@pytest.mark.parametrize(
    "args, says",
    [
        ("table okddip:11", "allowed: 1 | 2"),
        ("table okdip", "okddip | dckd"),
        ("table okddip:2 --set epochss=1", "did you mean epochs"),
        ("table okddip:2 --set seed=1", "unknown field 'seed'"),
        ("table okddip:2 --set student=resnet20", "unknown field"),
        ("table okddip:2 --set epochs", "field=value"),
        ("table okddip:2 --set data=cifar", "did you mean cifar10"),
        ("table okddip:2 --sets x", "did you mean --set"),
        ("reproduce", "PAPER:TABLE"),
        ("reproduce okddip:2:ResNet-32:KD", "Baseline | Ind"),
        ("reproduce okddip:2 --seeds 0", "above 0"),
        ("reproduce okddip:2 --set epochs=0", "at least 1"),
        ("reproduce dckd:2 --set T=3", "unknown field of baseline"),
        (
            "reproduce okddip:6:CIFAR-100:KD",
            "needs Baseline (resnet110_bottleneck, cifar100, seed 0), "
            "KD (resnet32, cifar100, seed 0); what is missing: cifar100",
        ),
        ("reproduce okddip:6 --seeds 2", "cifar10: looked for"),
        ("reproduce dckd:1", "imagenet: looked for"),
    ],
)
def test_what_is_wrong_or_missing_is_exit_2_and_one_line(args, says, runs, call):
    code, out, err = call(*args.split())
    assert (code, out, len(err)) == (2, "", 1)
    assert says in err[0] and not runs.exists()


def test_missing_weights_are_named_before_training(runs, call, monkeypatch):
    def absent(name):
        raise ValueError(f"torchvision's weights of {name} cannot be had")

    monkeypatch.setattr("kdkit.study.sources.place_of", lambda name: runs)
    monkeypatch.setattr("kdkit.study.commands.pretrained", absent)
    code, out, err = call("reproduce", "dckd:1:Top-1:KD")
    assert (code, out, len(err)) == (2, "", 1) and "weights of resnet34_imagenet" in err[0]
    assert not runs.exists()


@pytest.fixture
def quick_sweep(runs, monkeypatch):
    """Sweeps in this process; what they were asked for."""

    def sweep_here(wanted, workers):
        asked.append((len(wanted), workers))
        for job in sweep.missing(wanted).values():
            get(run_from(job.payload["run"]))
        return {}

    asked = []
    monkeypatch.setattr(sweep, "sweep", sweep_here)
    return asked


def test_reproduce_fills_its_cells_and_no_others(runs, quick_sweep, call):
    """Teacher first; the numbers are the records'; the paper's own recipe is still not run."""
    which, column = "dckd:2:DCKD Net1:ResNet56/ResNet20", "ResNet56/ResNet20"
    code, out, _ = call("reproduce", which, *LITTLE)
    assert code == 0 and quick_sweep == [(1, None)]
    assert out.splitlines()[:2] == [
        "to train: Baseline (resnet56, glyphs_few, seed 0)",
        "to train: DCKD (resnet20, glyphs_few, seed 0)",
    ]
    assert "recipe changed: data=glyphs_few, epochs=1" in out and "not run" not in out

    told = {
        (c["row"], c["column"]): c
        for c in json.loads(call("table", "dckd:2", *LITTLE, "--json")[1])
    }
    group = store.read(runs / told["DCKD Net1", column]["run"])
    assert (group.run.epochs, group.run.lr, group.run.student) == (1, 0.001, "resnet20")
    for k, top1 in enumerate(sorted(group.result["top1"], reverse=True), 1):
        cell = told[f"DCKD Net{k}", column]
        assert (cell["ours"], cell["ours_std"], cell["n"]) == (top1, None, 1)
        assert cell["run"] == group.id and "recipe changed: data=glyphs_few" in cell["note"]
    teacher = told["Teacher", column]
    assert teacher["run"] == group.meta["teacher"]
    assert teacher["ours"] == group.result["teacher_top1"]
    done = {k for k, cell in told.items() if cell["records"]}
    assert done == {("Teacher", column), *((f"DCKD Net{k}", column) for k in (1, 2, 3))}
    line = next(x for x in out.splitlines() if x.startswith("DCKD Net1"))
    cell = told["DCKD Net1", column]
    assert f"{cell['ours']:.2f}" in line
    assert f"{cell['ours'] - cell['published']:+.2f}" not in line  # a level on other data

    assert all(c["records"] == 0 for c in json.loads(call("table", "dckd:2", "--json")[1]))
    code, out, _ = call("reproduce", which, *LITTLE)
    assert code == 0 and "to train" not in out and "stored" in out

    meta = json.loads((group.path / "record.json").read_text())
    meta = {k: v for k, v in meta.items() if k != "sha256"} | {"code": "as it was before"}
    sealed = json.dumps({**meta, "sha256": store._meta_sha256(meta)})
    store.write(group.path / "record.json", sealed.encode())
    [cell] = json.loads(call("table", which, *LITTLE, "--json")[1])
    assert cell["run"] == group.id and "trained with other code" in cell["note"]


def test_repetitions_make_a_mean(runs, quick_sweep, call):
    """Seed 1 alone counts as one; the second call trains only what the first left."""
    which = "dckd:2:Student:ResNet56/ResNet20"
    table = ["table", which, *LITTLE, "--json"]
    [[_], [second]] = runs_of(row_of(which), 2, **dict(x.split("=") for x in LITTLE[1::2]))
    get(second)
    [cell] = json.loads(call(*table)[1])
    assert (cell["n"], cell["run"], cell["ours_std"]) == (1, plan(second).id, None)
    code, out, _ = call("reproduce", which, *LITTLE, "--seeds", "2", "--workers", "1")
    assert code == 0 and quick_sweep == [(2, 1)] and "resnet20, glyphs_few, seed 0" in out
    assert out.count("to train") == 1
    [cell] = json.loads(call(*table)[1])
    top1 = [store.read(runs / key).result["top1"][0] for key in cell["run"].split()]
    assert cell["n"] == len(top1) == 2
    assert (cell["ours"], cell["ours_std"]) == pytest.approx((np.mean(top1), np.std(top1, ddof=1)))


def test_what_failed_is_exit_1_and_the_rest_is_told(runs, call, monkeypatch):
    monkeypatch.setattr(sweep, "sweep", lambda wanted, workers: {"Baseline seed 0": "a reason"})
    code, out, err = call("reproduce", "okddip:6:CIFAR-10:Baseline", *LITTLE)
    assert code == 1 and "not run" in out and err == ["kdkit: failed: Baseline seed 0: a reason"]
