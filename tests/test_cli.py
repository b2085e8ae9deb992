"""The command line: names, exit codes, one line for an error, what --json prints; sweeps."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from kdkit import data, fields, metrics, models
from kdkit.methods import list_methods
from kdkit.study import commands, files, store, sweep
from kdkit.study import runs as study_runs
from kdkit.study.plans import plan, preset

TINY = ["--preset", "smoke", "--set", "epochs=1"]
KEYS = {
    "id",
    "method",
    "preset",
    "seed",
    "epochs",
    "threads",
    "precision",
    "top1",
    "top1_deployed",
    "ensemble",
    "diversity",
    "correlation_number",
    "seconds",
    "from_store",
    "resumed_at",
    "record",
    "weights_sha256",
}
OWN = """
from kdkit.methods import Method

print("a learner's module may print")


class Half(Method):
    name, title = "half", "Half the loss"
    half: float = 0.5

    def terms(self, s, y, t, step):
        return {"ce": step.ce(s.logits, y) * self.half}
"""


@pytest.mark.parametrize(
    "args, says",
    [
        ("", "train, sweep"),
        ("trian kd", "did you mean train?"),
        ("train", "METHOD"),
        ("train kdd", "did you mean kd"),
        ("train kd kd", "'kd'"),
        ("train kd --sed 1", "did you mean --seed"),
        ("train kd --seed x", "'x'"),
        ("train kd --seed -1", "at least 0"),
        ("train kd --preset smok", "did you mean smoke?"),
        ("train kd --set Tt=1", "did you mean T"),
        ("train kd --set T", "field=value"),
        ("train kd --set T=x", "float"),
        ("train kd --set T=0", "at least 0.01"),
        ("train kd --set epochs=0", "at least 1"),
        ("train kd --set method=kd", "unknown field"),
        ("train kd --student resnet9", "did you mean resnet8"),
        ("train kd --teacher resnet9", "did you mean resnet8"),
        ("train baseline --teacher resnet9", "did you mean resnet8"),
        ("train kd --data cifar", "did you mean cifar10"),
        ("train dckd --student resnet8,resnet8", "3 student"),
        ("train kd --module nowhere.py", "nowhere.py"),
        ("sweep kdd", "did you mean kd"),
        ("sweep kd --seeds 0", "above 0"),
        ("sweep kd --workers 0", "at least 1"),
        ("sweep baseline kd --set T=2", "unknown field of baseline"),
        ("figures --only accuracyy", "figure"),
        ("figures --preset lessn", "did you mean lesson?"),
        ("data cifar1", "did you mean cifar10"),
        ("list method", "did you mean methods"),
    ],
)
def test_wrong_input_is_exit_2_and_one_line(args, says, runs, call):
    code, out, err = call(*args.split())
    assert (code, out, len(err)) == (2, "", 1)
    assert says in err[0] and err[0].startswith("kdkit: ")
    assert not runs.exists()


def test_an_empty_method_is_refused(runs, call):
    assert call("train", "")[0] == 2


def test_missing_data_is_exit_2_and_names_the_command(runs, call, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "home", lambda: tmp_path)
    monkeypatch.delenv("KDKIT_DATA", raising=False)
    code, out, err = call("train", "baseline", "--data", "cifar100", *TINY, "--json")
    assert (code, out, len(err)) == (2, "", 1)
    assert "python -m kdkit data cifar100" in err[0] and "cifar-100-python" in err[0]


@pytest.mark.parametrize(
    "what, known",
    [
        ("methods", list_methods),
        ("models", models.list_models),
        ("datasets", data.list_datasets),
        ("metrics", metrics.list_metrics),
    ],
)
def test_list_gives_one_name_a_line(what, known, call):
    code, out, err = call("list", what)
    assert (code, err) == (0, []) and out.splitlines() == list(known())


def test_train_json(runs, call):
    code, out, err = call("train", "kd", *TINY, "--set", "T=2", "--json")
    told = json.loads(out)
    assert code == 0 and out.count("\n") == 1 and set(told) == KEYS
    assert any("needs a teacher" in line for line in err)
    record = store.find(preset("smoke", method="kd", epochs=1, T=2.0))
    assert record.id == told["id"] and Path(told["record"]) == record.path == runs / record.id
    assert told["top1"] == record.result["top1"] and 0 <= told["top1"][0] <= 100
    assert (told["from_store"], told["resumed_at"], told["threads"]) == (False, None, 1)
    assert told["weights_sha256"] == record.meta["weights_sha256"]

    again = json.loads(call("train", "kd", *TINY, "--set", "T=2", "--json")[1])
    assert again == {**told, "from_store": True}
    fresh = json.loads(call("train", "kd", *TINY, "--set", "T=2", "--json", "--fresh")[1])
    assert not fresh["from_store"] and fresh["weights_sha256"] == told["weights_sha256"]

    code, out, _ = call("runs")
    assert code == 0 and told["id"] in out and f"{told['top1_deployed']:.2f}" in out
    code, out, _ = call("doctor")
    assert code == 0 and "2 finished" in out and "precision" in out


def test_fields_are_parsed_once(runs, call, monkeypatch):
    """From the words of the command line to the trained record, and to what is printed of it."""
    counts, parse = {}, fields.Field.parse

    def counted(self, value):
        counts[self.name] = counts.get(self.name, 0) + 1
        return parse(self, value)

    monkeypatch.setattr(fields.Field, "parse", counted)
    code, out, _ = call("train", "kd", "--preset", "smoke", "--set", "T=2")
    assert code == 0 and "KD (T=2), seed 0" in out
    assert counts["T"] == 1


def shallow(channels, classes):
    """A network of two maps: fewer than a ResNet has."""
    stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU())
    stage = nn.Sequential(nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU())
    return models.Net([stem, stage], width=16, classes=classes)


def bare(channels, classes):
    """A network that gives logits alone."""
    return nn.Sequential(nn.AvgPool2d(5), nn.Flatten(), nn.Linear(16 * channels, classes))


@pytest.mark.parametrize(
    "args, says",
    [
        ("fitnet --set layer=4", "unknown layer 4"),
        ("fitnet --student shallow", "unknown layer 2"),
        ("fitnet --student shallow --set layer=1", "no regressor"),
        ("at --student shallow", "equally many"),
        ("rkd --student bare", "pooled feature"),
        ("fitnet --teacher bare", "feature maps"),
        (
            "okddip_kd --student resnet8_w0.25,resnet8_w0.5,resnet8_w0.25,resnet8_w0.25 --set "
            "based=network",
            "need one width",
        ),
        (
            "okddip --student resnet8_w0.25,resnet8_w0.5,resnet8_w0.25,resnet8_w0.25 --set "
            "based=network",
            "need one width",
        ),
        ("kd --set class_weights=1,2", "class_weights"),
        ("kdcl --set with_teacher=1 --set batch=300", "batch=300: glyphs_few has 200"),
        (
            "kdcl --set form=general --set with_teacher=1 --set batch=105",
            "batch=105: glyphs_few has 100",
        ),
    ],
)
def test_parts_that_do_not_fit_are_told_before_a_teacher_is_trained(
    args, says, runs, call, monkeypatch
):
    monkeypatch.setitem(models.base._REGISTRY, "shallow", shallow)
    monkeypatch.setitem(models.base._REGISTRY, "bare", bare)
    code, out, err = call("train", *args.split(), *TINY)
    assert (code, out, len(err)) == (2, "", 1) and says in err[0]
    assert not list(runs.iterdir())


def test_a_loss_that_is_not_finite_is_exit_1_and_one_line(runs, call):
    code, out, err = call("train", "baseline", *TINY, "--set", "lr=1e30", "--json")
    assert (code, out, len(err)) == (1, "", 1) and "'ce' is not finite at epoch 0" in err[0]


def test_a_method_of_the_learners_own(runs, tmp_path, call):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    shell = [sys.executable, "-m", "kdkit"]
    asked = ["half", *TINY, "--module", str(file)]
    done = subprocess.run(
        [*shell, "train", *asked, "--set", "half=0.25", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0 and json.loads(done.stdout)["method"] == "half", done.stderr
    done = subprocess.run(
        [*shell, "sweep", *asked, "--workers", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "1 runs are stored" in done.stdout, done.stderr
    code, out, _ = call("runs")  # where the method is not known
    assert code == 0 and out.count("Half the loss") == 2
    assert "2 finished, 0 under way, 0 damaged, 0 leftovers" in call("doctor")[1]
    file.write_text("x = 1\ny = 1 / 0\n")
    code, _, err = call("train", *asked)
    assert code == 2 and len(err) == 1 and "line 2: ZeroDivisionError" in err[0]


def test_gc_tells_before_it_clears(runs, call):
    (runs / ("0" * 12)).mkdir(parents=True)
    part = runs / ("0" * 12) / "weights.pt.7.part"
    part.write_bytes(b"half")
    (runs / "notes.txt").write_text("not ours")
    code, out, _ = call("gc")  # pytest's standard input is no terminal
    assert code == 0 and str(part) in out and "cleared nothing" in out and part.exists()
    code, out, _ = call("gc", "--yes")
    assert code == 0 and "a half-written file" in out and not part.exists()
    assert [p.name for p in runs.iterdir()] == ["notes.txt"]


def test_plan_puts_a_teacher_first_and_once(runs):
    asked = [preset("smoke", method=m, seed=s) for m in ("kd", "edckd") for s in (0, 1)]
    jobs = sweep.missing([*asked, asked[0]])
    order = list(jobs)
    assert len(order) == 6  # four runs, kd's teacher, edckd's own
    for key, job in jobs.items():
        assert (
            job.needs
            and all(order.index(n) < order.index(key) for n in job.needs)
            or (job.payload["run"]["method"] in ("baseline", "dckd"))
        )


def test_sweep_goes_on_after_a_failure_and_reports_it(runs, capsys):
    sound = preset("smoke", method="baseline", epochs=1, n_train=100)
    bad, after = sound.replace(lr=1e30), sound.replace(method="kd", lr=1e30)
    failed = sweep.sweep([bad, sound, after], workers=2)
    assert store.find(sound) is not None and store.find(bad) is None
    why = list(failed.values())
    assert len(why) == 2 and "not finite" in why[0] and "needs failed" in why[1]
    assert commands.report(failed, "") == 1 and "failed: Baseline" in capsys.readouterr().err
    assert sweep.sweep([sound]) == {}


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def stopped_sweep(runs, number):
    """Start a sweep of one long run, send it a signal when it has a checkpoint; its exit code."""
    shell = [
        sys.executable,
        "-m",
        "kdkit",
        "sweep",
        "baseline",
        "--preset",
        "smoke",
        "--set",
        "epochs=500",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(shell, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(runs.glob("*/checkpoint.pt")) and time.monotonic() < until:
        time.sleep(0.1)
    workers = children(process.pid)
    assert len(workers) == 1
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    until = time.monotonic() + 60
    while any(Path(f"/proc/{w}").exists() for w in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{w}").exists() for w in workers)
    return process.returncode, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_stops_its_workers_which_save(runs, number):
    code, err = stopped_sweep(runs, number)
    if number == signal.SIGTERM:
        assert code == 130 and err.count("\n") == 1 and "goes on from there" in err
    run = preset("smoke", method="baseline", epochs=500)
    state = store.read_checkpoint(run)
    assert (state["epoch"], state["step"]) > (0, 0)


def test_an_interrupted_run_is_exit_130_and_goes_on(runs, call, monkeypatch):
    def stop(state):
        os.kill(os.getpid(), signal.SIGINT)

    run = preset("smoke", method="baseline", epochs=2, n_train=100)
    real = study_runs.get
    monkeypatch.setattr(study_runs, "get", lambda run, fresh=False: real(run, fresh, on_epoch=stop))
    asked = ["train", "baseline", "--preset", "smoke", "--set", "n_train=100"]
    asked += ["--set", "epochs=2", "--json"]
    code, out, err = call(*asked)
    assert (code, out, len(err)) == (130, "", 1) and "goes on from there" in err[0]
    monkeypatch.setattr(study_runs, "get", real)
    told = json.loads(call(*asked)[1])
    assert told["resumed_at"] == 1 and told["id"] == plan(run).id
