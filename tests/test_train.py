"""The trainer's promises: bit-equal continuation, private randomness, clean stops, one teacher."""

import copy
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import data, device, models, train
from kdkit.callbacks import History, NotFinite
from kdkit.methods import METHODS, Method, list_methods, method_class
from kdkit.randomness import own_draws, seed_of
from kdkit.recipe import learning_rate
from kdkit.study import callbacks, fingerprint, plans, sources, store
from kdkit.study import runs as study_runs
from kdkit.study.callbacks import Checkpoint, Interrupted
from kdkit.study.plans import plan, preset
from kdkit.study.runs import get

OURS = [name for name in list_methods() if fingerprint.is_builtin(method_class(name))]
NET, STEPS = "resnet8_w0.25", 4  # of an epoch, in the runs of `tiny`


def tiny(method="baseline", **changes):
    """Two epochs of four steps, about a second in all."""
    fields = dict(method=method, student=NET, teacher=NET, n_train=100, batch=25, epochs=2)
    return preset("smoke", **(fields | changes))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A store that several tests share, so that each teacher is trained once."""
    return tmp_path_factory.mktemp("shared")


def kept(record):
    """All of a record that must not depend on how often the run was stopped."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in record.history]
    arrays = record.arrays | {f"test {k}": v for k, v in record.test_logits.items()}
    return (
        record.meta["weights_sha256"],
        rows,
        record.result,
        {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in arrays.items()},
    )


def during(monkeypatch, act, run, at):
    """Calls act(checkpoint) in the step number `at` (from 1) of this run, when it is counted and
    before the checkpoint looks at the clock and for signals."""
    step, wanted = Checkpoint.step, plan(run).id

    def wrapped(self, state):
        first = state.method.pretrain_epochs(state.recipe.epochs)
        if self.plan.id == wanted and (first + state.epoch) * state.steps + state.step == at:
            act(self)
        return step(self, state)

    monkeypatch.setattr(Checkpoint, "step", wrapped)


def save_now(checkpoint):
    """Makes a checkpoint due."""
    checkpoint.next_save = 0.0


def often(monkeypatch):
    """A checkpoint after each step."""
    step = Checkpoint.step

    def wrapped(self, state):
        save_now(self)
        return step(self, state)

    monkeypatch.setattr(Checkpoint, "step", wrapped)


def send(number=signal.SIGTERM):
    return lambda checkpoint: signal.raise_signal(number)


def stopped(run, at, number=signal.SIGTERM, **kw):
    """Train until a signal comes in step `at`; the message."""
    with pytest.MonkeyPatch.context() as patch:
        during(patch, send(number), run, at)
        with pytest.raises(Interrupted) as e:
            get(run, **kw)
    return str(e.value)


def prepared(run):
    """The engine's state of a run before its first step, made as `study.runs` makes it."""
    run = plan(run)
    images = sources.load(run.run.data, "cpu", run.run.n_train)
    teacher = study_runs._teacher(run, images, threading.Event())
    with own_draws(seed_of(run.run.seed, "init")):
        students = plans.build_students(run, images.shape, images.classes)
    method = copy.deepcopy(run.method)
    return train.prepare(method, students, images, teacher, run.run, run.run.seed, "cpu")


def end_epoch(state):
    """What `fit` does after an epoch."""
    train.call(state, "epoch")
    state.epoch, state.step = state.epoch + 1, 0


# going on


@pytest.mark.parametrize("method", OURS)
def test_a_stopped_run_goes_on_bit_equally(runs, shared, monkeypatch, method):
    monkeypatch.setenv("KDKIT_RUNS", str(shared))
    run = tiny(method, augment="crop_flip")
    whole = kept(get(run))
    first = plan(run).method.pretrain_epochs(run.epochs)  # of the stage before, which FT has
    at = random.Random(method).randrange(1, (first + 2) * STEPS + 1)
    message = stopped(run, at, fresh=True)
    epoch, step = (at - 1) // STEPS - first, (at - 1) % STEPS + 1
    assert f"epoch {epoch}, step {step}" in message and "goes on" in message
    record = get(run, fresh=True)
    assert record.meta["resumed_at"] == epoch
    assert kept(record) == whole
    assert not (record.path / "checkpoint.pt").exists()


@pytest.mark.parametrize("at", [STEPS, 2 * STEPS])
def test_a_stop_after_the_last_step_of_an_epoch(runs, at):
    run = tiny("okddip")
    whole = kept(get(run))
    assert f"step {STEPS}" in stopped(run, at, fresh=True)
    assert kept(get(run, fresh=True)) == whole


def test_a_run_stopped_at_every_step(runs):
    run = tiny("one", full_tests=1)
    whole = kept(get(run))
    for at in range(1, 2 * STEPS + 1):
        stopped(run, at, fresh=True)
    record = get(run, fresh=True)
    assert kept(record) == whole and record.meta["resumed_at"] == 1


def test_dropout_goes_on_bit_equally(runs, monkeypatch):
    def dropout(c_in, classes):
        net = models.build(NET, c_in, classes)
        net.fc = nn.Sequential(nn.Dropout(0.5), net.fc)
        return net

    monkeypatch.setitem(models.base._REGISTRY, "dropout_net", dropout)
    run = tiny("ind", student="dropout_net", based="network", m=2)
    whole = kept(get(run))
    stopped(run, 6, fresh=True)
    torch.manual_seed(5)
    torch.rand(7)
    assert kept(get(run, fresh=True)) == whole
    assert kept(get(run.replace(student=NET)))[0] != whole[0]


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import pytest
from test_train import get, killed_run, often
with pytest.MonkeyPatch.context() as patch:
    often(patch)
    get(killed_run())
"""


def killed_run():
    return tiny("okddip", batch=20, m=3, epochs=8)


def test_sigkill_in_the_middle_of_an_epoch(runs):
    run = killed_run()
    folder = runs / plan(run).id
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(Path(__file__).parent)])
    try:
        rows, until = [], time.monotonic() + 120
        while len(rows) < 2 and child.poll() is None and time.monotonic() < until:
            if (folder / "progress.json").exists():
                rows = json.loads((folder / "progress.json").read_bytes())  # whole at all times
            time.sleep(0.003)
        assert child.poll() is None and len(rows) >= 2
    finally:
        child.kill()
        child.wait()
    assert not (folder / "record.json").exists() and (folder / "checkpoint.pt").exists()
    record = get(run)
    assert 1 <= record.meta["resumed_at"] < run.epochs
    assert kept(get(run, fresh=True)) == kept(record)


@pytest.mark.parametrize("place", ["end of an epoch", "last test", "saving"])
def test_broken_off_outside_the_step(runs, monkeypatch, place):
    """A second Ctrl-C acts at once, wherever it comes; what was saved before still holds."""
    run = tiny("dml", m=2)
    whole = kept(get(run))
    during(monkeypatch, save_now, run, STEPS + 2)

    def broken(*args):
        raise KeyboardInterrupt

    def second_epoch(self, state, real=History.epoch):
        real(self, state)
        if state.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if place == "end of an epoch":
            patch.setattr(History, "epoch", second_epoch)
        elif place == "last test":
            patch.setattr(train, "teacher_test_logits", broken)
        else:
            patch.setattr(store, "save", broken)
        with pytest.raises(KeyboardInterrupt):
            get(run, fresh=True)
    record = get(run, fresh=True)
    assert kept(record) == whole and record.meta["resumed_at"] == 1


def test_a_checkpoint_of_other_code_is_not_gone_on_from(runs, monkeypatch, capsys):
    run = tiny()
    stopped(run, 6)
    monkeypatch.setattr(fingerprint, "class_digest", lambda cls: "other")
    record = get(run)
    assert record.meta["resumed_at"] is None and len(record.history) == 2
    assert "other code" in capsys.readouterr().err


def test_a_damaged_checkpoint_starts_again(runs, capsys):
    run = tiny()
    whole = kept(get(run))
    stopped(run, 6, fresh=True)
    path = runs / plan(run).id / "checkpoint.pt"
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)
    record = get(run, fresh=True)
    assert record.meta["resumed_at"] is None and kept(record) == whole
    said = [s for s in capsys.readouterr().err.splitlines() if "damaged checkpoint" in s]
    assert len(said) == 1 and "checksum" in said[0] and "set aside" in said[0]


def test_what_only_some_epochs_watch(runs, own_methods):
    class Watcher(Method):
        name, title = "watcher", "Watcher"

        def terms(self, s, y, t, step):
            if step.epoch == 0:
                self.watch(mean=s.logits.mean(0))
            return {"ce": step.ce(s.logits, y)}

    run = tiny("watcher")
    record = get(run)
    assert record.arrays["mean"].shape == (1, 100)
    whole = kept(record)
    stopped(run, 6, fresh=True)
    assert kept(get(run, fresh=True)) == whole


# being stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_handlers_are_put_back(runs, number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    message = stopped(tiny(), 3, number)
    assert message == (
        "stopped at epoch 0, step 3, and saved: run the same again and it goes on from there"
    )
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert get(tiny()).meta["resumed_at"] == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_ctrl_c_acts_at_once():
    with pytest.raises(KeyboardInterrupt), callbacks.stoppable() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)


def test_a_stop_that_comes_too_late_is_not_forgotten(runs, monkeypatch):
    """While the teacher is being stored: its run is kept, the student's does not begin."""
    run = tiny("kd")

    def late(*args, real=store.save):
        signal.raise_signal(signal.SIGTERM)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(store, "save", late)
        with pytest.raises(Interrupted, match="Baseline seed 0 had just finished"):
            get(run)
    assert [r.run.method for r in store.records()[0]] == ["baseline"]
    assert get(run).meta["resumed_at"] is None


def test_a_stop_before_the_teacher_is_trained(runs, monkeypatch):
    def signalled(*args, real=study_runs.rehearse):
        signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(study_runs, "rehearse", signalled)
    with pytest.raises(Interrupted, match="before the teacher of KD seed 0 was trained"):
        get(tiny("kd"))
    assert not list(runs.iterdir())


def test_in_a_thread_no_handler_is_installed(runs):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def ask():
        get(tiny(), on_epoch=lambda state: seen.append(signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert seen == [before] * 2 and store.find(tiny())
    seen.clear()
    get(tiny(seed=1), on_epoch=lambda state: seen.append(signal.getsignal(signal.SIGTERM)))
    assert len(seen) == 2 and before not in seen


# going wrong


def test_a_term_that_is_not_finite(runs, monkeypatch):
    run = tiny("okddip", lr=1e30, epochs=3)
    with pytest.raises(NotFinite) as e:
        get(run)
    message = str(e.value)
    assert "OKDDip: terms 'ce', 'peers'" in message and "not finite at epoch 0, step" in message
    assert "learning rate 1e+30" in message and "\n" not in message
    finished, _, damaged = store.records()  # a checkpoint of the steps before may be there
    assert finished == damaged == []
    with pytest.raises(NotFinite, match="epoch 0"):
        get(run)


def test_no_checkpoint_holds_what_is_not_finite(runs, monkeypatch):
    run, messages = tiny(lr=1e30), []
    often(monkeypatch)
    for _ in range(2):  # the second goes on from the first's checkpoint
        with pytest.raises(NotFinite) as e:
            get(run)
        messages.append(str(e.value))
    assert messages[0] == messages[1]
    state = store.read_checkpoint(run)
    terms = state["History"]["sums"]["terms"]
    assert terms and all(torch.isfinite(v).all() for v in terms.values())
    assert all(torch.isfinite(v).all() for v in state["students"].values())


def test_weights_that_break_in_the_last_step(runs):
    """Its terms were computed before, and are finite."""
    with pytest.raises(NotFinite, match="test logits are not finite at epoch 0, step 1, wi"):
        get(tiny(lr=1e30, epochs=1, batch=100))
    assert store.records()[0] == []


def test_a_full_disk(runs, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="not written: No space left on device.*progress.json"):
        get(tiny())
    assert not [p for p in runs.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_wrong_students_and_batches(runs):
    with pytest.raises(ValueError, match=r"Baseline has 1 student\(s\), kind single"):
        get(tiny(student="resnet8,resnet8"))
    with pytest.raises(ValueError, match=r"OKDDip has 4 student\(s\), kind branch"):
        get(tiny("okddip", student="resnet8,resnet8,resnet14,resnet8"))
    with pytest.raises(ValueError, match="unknown network 'resnet9': did you mean resnet"):
        get(tiny(student="resnet9"))
    with pytest.raises(ValueError, match="batch=101: glyphs_few has 100 training images here"):
        get(tiny(batch=101))
    with pytest.raises(ValueError, match="unknown method 'okdip': did you mean okddip"):
        get(tiny("okdip"))
    assert store.records() == ([], [], [])


def test_a_group_of_different_networks(runs):
    run = tiny("dml", m=2, student=f"{NET},resnet14_w0.25", epochs=1)
    net = get(run).model()
    sizes = [sum(p.numel() for p in n.parameters()) for n in net.nets]
    assert sizes[0] < sizes[1]


# a learner's own method


def test_a_learners_own_method(runs, own_methods):
    class Smooth(Method):
        name, title = "smooth", "Smooth"
        ramped = ("flat",)

        eps: float = 0.1
        rampup: float = 1.0

        def weights(self):
            return {"ce": 1.0, "flat": self.eps}

        def terms(self, s, y, t, step):
            return {"ce": step.ce(s.logits, y), "flat": -s.logits.log_softmax(-1).mean()}

    record = get(tiny("smooth"))
    assert set(record.history[0]["terms"]) == {"ce", "flat"}
    assert record.history[0]["ramp"] == pytest.approx(math.exp(-5))
    other = get(tiny("smooth", eps=0.0))
    assert other.id != record.id and kept(other)[0] != kept(record)[0]


@pytest.mark.parametrize(
    "wrong", [dict(weights=lambda self: {"ce": 1.0, "kd": 1.0}), dict(ramped=("kd",))]
)
def test_terms_and_weights_must_agree(runs, own_methods, wrong):
    wrong |= dict(
        name="odd", title="Odd", terms=lambda self, s, y, t, step: {"ce": step.ce(s.logits, y)}
    )
    type("Odd", (Method,), wrong)
    with pytest.raises(ValueError, match=r"Odd: terms\(\) gives \['ce'\].*kd.*must agree"):
        get(tiny("odd"))


# private randomness


def test_a_run_and_the_kernel_do_not_disturb_each_other(runs):
    torch.manual_seed(11)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    others = random.getstate(), np.random.get_state()[1].tolist()
    taught = kept(get(tiny("kd", teacher_seed=9)))[0]  # a teacher, and the rehearsal before it
    assert torch.equal(torch.get_rng_state(), before)
    first = kept(get(tiny("okddip", attention="random", augment="crop_flip")))
    assert torch.equal(torch.get_rng_state(), before)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == others

    def disturb(state):
        torch.manual_seed(99)
        torch.rand(13)
        np.random.rand(3)
        random.random()

    again = get(tiny("okddip", attention="random", augment="crop_flip"), True, disturb)
    assert kept(again) == first
    disturb(None)
    assert kept(get(tiny("kd", teacher_seed=9), fresh=True))[0] == taught
    assert torch.get_num_threads() == threads


def test_threads_are_the_runs_and_are_put_back(runs):
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(2)
        get(tiny(), on_epoch=lambda state: seen.append(torch.get_num_threads()))
        assert seen == [1, 1] and torch.get_num_threads() == 2
        with pytest.raises(ValueError):
            get(tiny(batch=101))
        assert torch.get_num_threads() == 2
        record = get(tiny(threads=0, epochs=1, batch=100))
        assert record.meta["environment"]["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_the_seed_matters(runs):
    assert kept(get(tiny(seed=1)))[0] != kept(get(tiny(seed=2)))[0]


# schedules


def test_step_schedule():
    run = preset("lesson", schedule="step", epochs=20, lr=0.1)
    rates = [learning_rate(run, e) for e in range(20)]
    np.testing.assert_allclose(rates, [0.1] * 10 + [0.01] * 5 + [0.001] * 5)


@pytest.mark.parametrize("T_0, T_mult, epochs", [(1 / 7, 2, 35), (1 / 3, 1, 9), (30 / 930, 2, 930)])
def test_sgdr_is_torchs(T_0, T_mult, epochs):
    run = preset("lesson", schedule="sgdr", T_0=T_0, T_mult=T_mult, epochs=epochs, lr=0.05)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 0.05)
    torchs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, round(T_0 * epochs), T_mult
    )
    for epoch in range(epochs):
        assert learning_rate(run, epoch) == pytest.approx(torchs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        torchs.step()


def test_the_rate_is_the_optimizers(runs):
    rates = []
    run = tiny(schedule="sgdr", T_0=0.5, T_mult=1, epochs=4)
    record = get(run, on_epoch=lambda state: rates.append(state.optimizer.param_groups[0]["lr"]))
    assert (
        rates == [row["lr"] for row in record.history] == [learning_rate(run, e) for e in range(4)]
    )


# teachers


def test_a_teacher_is_trained_once(runs, monkeypatch, capsys):
    fits, fit = [], study_runs.train_and_store
    monkeypatch.setattr(
        study_runs, "train_and_store", lambda p, on: fits.append(p.run.method) or fit(p, on)
    )
    first = get(tiny("kd"))
    assert fits == ["kd", "baseline"]  # the student's run asks for it
    said = capsys.readouterr().err
    assert said == (f"kdkit: kd needs a teacher: training {NET} (baseline, seed 0) first\n")
    get(tiny("kd", seed=1))
    get(tiny("okddip_kd"))
    get(tiny("kd"))
    assert fits == ["kd", "baseline", "kd", "okddip_kd"] and capsys.readouterr().err == ""
    teacher = store.find(plan(tiny("kd")).teacher)
    assert first.meta["teacher"] == teacher.id
    assert np.array_equal(first.test_logits["teacher"], teacher.test_logits["students"][0])


def test_a_student_with_its_teachers_settings_is_its_teacher(runs):
    """The teacher is a run like any other."""
    teacher = get(tiny())
    assert get(tiny("kd")).meta["teacher"] == teacher.id


@pytest.mark.parametrize("method, params", [("edckd", dict(m=2)), ("ensembled_student", {})])
def test_the_second_generation_is_taught_by_the_ensemble(runs, method, params):
    run = tiny(method, teacher_seed=3, epochs=1, **params)
    first = get(tiny("dckd", seed=3, teacher_seed=3, epochs=1, **params))
    record = get(run)
    assert record.meta["teacher"] == first.id
    ensemble = first.test_logits["students"].astype(np.float32).mean(0)
    np.testing.assert_array_equal(record.test_logits["teacher"], ensemble.astype(np.float16))
    state = prepared(run)
    x = state.data.batch(torch.arange(8), "none", None)
    wanted = first.model()(x).logits.mean(0)
    torch.testing.assert_close(
        state.teacher(x, torch.arange(8)).logits, wanted, rtol=1e-3, atol=1e-4
    )


def test_a_teachers_remembered_answers_are_its_answers(runs):
    remembers = prepared(tiny("kd"))
    answers = prepared(tiny("kd", augment="crop_flip", epochs=2))
    teacher = get(plan(tiny("kd")).teacher).model()
    index = torch.tensor([99, 3, 0, 57])
    x = remembers.data.batch(index, "none", None)
    z = teacher(x).logits
    torch.testing.assert_close(remembers.teacher(x, index).logits, z, rtol=1e-3, atol=1e-4)
    noise = torch.zeros_like(x)
    assert torch.equal(remembers.teacher(noise, index).logits, remembers.teacher(x, index).logits)
    torch.testing.assert_close(
        remembers.teacher(noise, None).logits, teacher(noise).logits, rtol=1e-3, atol=1e-4
    )  # a test image is not one it remembers
    other = answers.teacher(noise, index).logits
    assert not torch.allclose(other, answers.teacher(x, index).logits)
    assert not remembers.teacher(x, index).logits.requires_grad and not z.requires_grad


def test_a_folded_network_answers_the_same():
    net = models.build("resnet14_w0.5", 1, 100)
    x = torch.randn(16, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.train()(x)  # statistics that are not 0 and 1
        plain = net.eval()(x).logits
        assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
        folded = device.fold(net)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded(x).logits, plain, rtol=1e-3, atol=1e-4)


# what a record holds


def test_a_real_run_from_end_to_end(runs):
    record = get(tiny("dml", m=2, teacher_weight=1.0, data="lesson"))
    lesson = sources.load("lesson")
    y = lesson.y_test.numpy()
    z, t = (record.test_logits[k].astype(np.float32) for k in ("students", "teacher"))
    assert z.shape == (2, 10_000, 100) and t.shape == (10_000, 100)
    top1 = 100 * (z.argmax(-1) == y).mean(-1)
    np.testing.assert_allclose(record.result["top1"], top1, atol=1e-9)
    assert record.result["ensemble"] == pytest.approx(100 * (z.mean(0).argmax(-1) == y).mean())
    with torch.no_grad():
        now = record.model()(
            sources.load("lesson").normalise(sources.load("lesson").x_test[:500])
        ).logits
    np.testing.assert_allclose(now.numpy(), z[:, :500], atol=2e-2)
    arrays = record.arrays
    assert arrays["pair_distance"].shape == (2, 2, 2)
    assert arrays["probe_logits"].shape == (2, 2, 64, 100)
    probe = z[:, arrays["probe_index"]]
    np.testing.assert_allclose(arrays["probe_logits"][-1].astype(np.float32), probe, atol=2e-2)
    assert set(record.history[0]["terms"]) == {"ce", "mutual", "teacher"}


@pytest.mark.parametrize(
    "wanted, epochs, rows", [(1, 4, [1]), (3, 4, [0, 1, 2]), (9, 3, [0, 1]), (2, 1, [])]
)
def test_full_tests_are_spread_over_the_epochs(runs, wanted, epochs, rows):
    record = get(tiny(full_tests=wanted, epochs=epochs, batch=100))
    assert [row["epoch"] for row in record.history if "test_top1" in row] == rows


# what it costs, and what it shows


def test_checkpoints_take_a_sixtieth_of_the_time(runs, monkeypatch):
    state, cost = prepared(tiny()), 0.05
    checkpoint, share = Checkpoint(plan(tiny()), threading.Event()), callbacks.MAX_CHECKPOINT_SHARE
    monkeypatch.setattr(store, "write_checkpoint", lambda run, state: time.sleep(cost))
    before = time.monotonic()
    checkpoint.save(state)
    assert checkpoint.next_save - before >= cost / share and share < 0.02


def test_progress_is_whole_and_goes_when_the_run_is_finished(runs):
    rows, path = [], runs / plan(tiny(epochs=3)).id / "progress.json"
    record = get(tiny(epochs=3), on_epoch=lambda state: rows.append(json.loads(path.read_text())))
    assert [len(r) for r in rows] == [1, 2, 3] and rows[-1] == record.history
    assert sorted(p.name for p in record.path.iterdir()) == [
        "history.npz",
        "record.json",
        "test_logits.npz",
        "weights.pt",
    ]


def test_no_bar_in_a_batch(runs, monkeypatch, capsys):
    get(tiny())
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("KDKIT_BATCH")
    get(tiny(seed=1))
    out, err = capsys.readouterr()
    assert out == "" and "Baseline seed 1" in err and "step" in err


def test_rank_in_the_environment_changes_nothing(runs, monkeypatch, capsys):
    """A launcher may have set it for something else: only a process group makes ranks."""
    monkeypatch.setenv("RANK", "1")
    record = get(tiny())
    assert store.find(tiny()).meta == record.meta
    store.say("heard")
    assert capsys.readouterr().err == "kdkit: heard\n"


def test_only_the_first_process_of_a_group_writes(runs, monkeypatch, capsys):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    record = get(tiny())
    store.say("not heard")
    assert record.result["top1"] and not runs.exists() and capsys.readouterr().err == ""


def test_okddip_trains_without_its_second_level(runs):
    """Its ramp-up names the leader's term as well, which is then not there."""
    record = get(tiny(method="okddip", two_level=False))
    assert set(record.history[0]["terms"]) == {"ce", "peers"} and len(record.result["top1"]) == 4


# what only some methods ask of the loop


class TwoStages(Method):
    """A layer that the first stage alone trains; the run then leaves it as it is."""

    name, title = "two_stages", "Two stages"
    needs_teacher = True
    teacher_needs = ("feats", "pooled")

    def build(self, probe):
        assert isinstance(probe.teacher, nn.Module) and len(probe.t.feats) == 4
        self.own = nn.Linear(probe.t.pooled.shape[-1], probe.t.pooled.shape[-1])

    def pretrain_epochs(self, epochs):
        return epochs // 2

    def pretrain_rate(self, lr):
        return 0.1 * lr

    def pretrain_terms(self, t, y, step):
        assert step.epoch < 0
        return {"rebuild": (self.own(t.pooled) - t.pooled).square().mean()}

    def terms(self, s, y, t, step):
        assert step.epoch >= 0
        return {"ce": step.ce(s.logits, y)}


class Views(Method):
    """Looks at what each student sees, and at held-out images."""

    name, title = "views", "Views"
    views = True
    m: int = 3

    def build(self, probe):
        self.register_buffer("w", torch.full((self.m,), 1 / self.m))

    def held_out(self, labels):
        return data.interleave(labels)[:30]

    def refresh(self, z, y, t):
        assert t is None
        self.w.copy_((z.argmax(-1) == y).float().mean(-1))

    def terms(self, s, y, t, step):
        self.indices = {*getattr(self, "indices", ()), *step.index.tolist()}
        return {"ce": (self.w * step.ce(s.logits, y)).sum()}


for cls in (TwoStages, Views):  # other tests ask for all methods
    METHODS.pop(cls.name)


@pytest.fixture
def special(own_methods):
    """The two classes above, registered for one test."""
    METHODS.update({c.name: c for c in (TwoStages, Views)})


@pytest.mark.parametrize("at", [1, STEPS, STEPS + 1, 2 * STEPS, 3 * STEPS])
def test_a_first_stage_goes_on_bit_equally(special, runs, shared, monkeypatch, at):
    monkeypatch.setenv("KDKIT_RUNS", str(shared))
    run = tiny("two_stages", epochs=2)
    whole = get(run)
    stopped(run, at, fresh=True)
    assert kept(get(run, fresh=True)) == kept(whole)
    assert len(whole.history) == 2


def test_a_first_stage_trains_its_own_layers_alone(special, runs):
    state = prepared(tiny("two_stages", epochs=4))
    state.callbacks = [History()]
    before = {k: v.clone() for k, v in state.students.state_dict().items()}
    own = state.method.own.weight.clone()
    assert state.epoch == -2
    train.train_epoch(state)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert all(torch.equal(v, before[k]) for k, v in state.students.state_dict().items())
    assert not torch.equal(state.method.own.weight, own)
    end_epoch(state)
    assert state.epoch == -1 and state.history == []
    state.epoch, own = 0, state.method.own.weight.clone()
    train.train_epoch(state)
    assert torch.equal(state.method.own.weight, own)
    assert not torch.equal(state.students.fc.weight, before["fc.weight"])
    assert state.optimizer.param_groups[0]["lr"] == 0.1


def test_each_student_sees_a_view_of_its_own(special, runs, monkeypatch):
    for augment, apart in (("crop_flip", True), ("none", False)):
        state, seen = prepared(tiny("views", augment=augment)), []
        forward = state.forward
        monkeypatch.setattr(state, "forward", lambda x, f=forward, s=seen: s.append(x) or f(x))
        x, y, index = next(state.data.batches(True, 10, augment, torch.Generator().manual_seed(0)))
        train.forward_terms(state, x, y, index)
        views = seen[0] if apart else [seen[0]] * 3
        assert torch.equal(views[0], x) and len(views) == 3
        assert all(torch.equal(views[a], views[b]) != apart for a, b in ((0, 1), (0, 2), (1, 2)))


def test_held_out_images_are_shown_but_not_trained_on(special, runs):
    run = tiny("views", batch=10)
    state = prepared(run)
    held = set(state.method.held_out(state.data.y).tolist())
    trained = set(state.positions.tolist())
    assert state.steps == 7 and not held & trained and len(trained) == 70
    train.train_epoch(state)
    assert state.method.w.tolist() == pytest.approx([1 / 3] * 3)  # nothing was shown before
    end_epoch(state)
    train.train_epoch(state)
    assert state.method.indices <= trained and len(state.method.indices) == 70
    assert state.method.w.tolist() != pytest.approx([1 / 3] * 3)
    with pytest.raises(ValueError, match="batch=71: glyphs_few has 70 training images here"):
        get(tiny("views", batch=71))
    whole = kept(get(run))
    stopped(run, 10, fresh=True)
    assert kept(get(run, fresh=True)) == whole


def test_a_teachers_own_learning_rate(runs):
    run = tiny("kd", teacher_lr=0.02)
    assert plan(run).teacher.run.lr == 0.02
    assert plan(run.replace(teacher_lr=0)).teacher.run.lr == run.lr
    assert plan(run).id != plan(tiny("kd")).id
    assert plan(tiny("kd", teacher_lr=run.lr)).id == plan(tiny("kd")).id
    assert plan(tiny(teacher_lr=0.02)).id == plan(tiny()).id


def test_a_teacher_may_have_more_images(runs):
    """It then takes as many steps as its student, in fewer epochs."""
    run = tiny("kd", epochs=6, teacher_n_train=300)
    taught = plan(run).teacher
    assert (taught.run.n_train, taught.run.epochs) == (300, 2)  # for 100 images and 6 epochs
    assert taught.id == plan(tiny(n_train=300, epochs=2)).id
    assert len({plan(r).id for r in (run, tiny("kd", epochs=6), run.replace(epochs=2))}) == 3
    assert plan(run.replace(epochs=1)).teacher.run.epochs == 1  # at least
    record = get(run)
    assert record.meta["teacher"] == taught.id and len(record.history) == 6
    rows = {r.run.n_train: r for r in store.records()[0]}
    assert sorted(rows) == [100, 300] and len(rows[300].history) == 2
    control = plans.control(tiny("dckd", epochs=6, teacher_n_train=300))
    assert control.run.teacher_n_train == 300 and control.teacher.id == taught.id


def test_a_teacher_that_is_published_has_no_number_of_images():
    run = tiny("kd", teacher_pretrained=True)
    assert plan(run.replace(teacher_n_train=300)).teacher.id == plan(run).teacher.id


def test_a_teacher_with_its_students_seed():
    for seed in (0, 3):
        run = plan(tiny("kd", seed=seed, teacher_seed=-1))
        assert run.id == plan(tiny("kd", seed=seed, teacher_seed=seed)).id
        assert run.run.teacher_seed == seed and run.teacher.id == plan(tiny(seed=seed)).id
    two = plan(tiny("edckd", seed=3, teacher_seed=-1))
    assert [two.teacher.run.seed, two.teacher.teacher.run.seed] == [3, 3]
    assert plan(tiny(seed=3, teacher_seed=-1)).id == plan(tiny(seed=3)).id  # it has no teacher


def test_a_teacher_has_as_many_images_as_its_student_unless_it_is_said(monkeypatch):
    kd, seen = tiny("kd"), []
    assert plan(kd).teacher.id == plan(tiny()).id
    assert plan(tiny("kd", teacher_n_train=kd.n_train)).id == plan(kd).id
    assert plan(tiny("kd", n_train=0, teacher_n_train=0)).teacher.run.n_train == 0
    assert plan(tiny(teacher_n_train=300)).id == plan(tiny()).id  # it has no teacher
    assert plan(tiny("dml", teacher_n_train=300)).id == plan(tiny("dml")).id
    monkeypatch.setattr(plans, "digest", lambda content, *_: seen.append(content) or "id")
    plan(kd)
    assert all(not {"hide", "teacher_n_train"} & set(content) for content in seen)  # as ever


def test_generations_of_teachers_have_the_teachers_images():
    run = plan(tiny("edckd", epochs=6, teacher_n_train=300, hide="Q"))
    first, second = run.teacher, run.teacher.teacher
    assert (first.run.method, second.run.method) == ("dckd", "baseline")
    assert first.run.n_train == second.run.n_train == 300
    assert first.run.epochs == second.run.epochs == 2
    assert run.run.hide == "Q" and first.run.hide == second.run.hide == ""


# classes that the student never sees


def classes_of(run):
    return {sources.load(run.data).class_names.index(name) for name in run.hide.split(",")}


def test_hidden_classes_are_not_in_the_students_batches(runs, monkeypatch):
    run, seen = tiny("kd", n_train=200, hide="é,Q"), {"kd": set(), "baseline": set()}

    def listen(state, x, y, index, real=train.forward_terms):
        assert torch.equal(state.data.y[index], y)
        seen[state.method.name] |= set(y.tolist())
        return real(state, x, y, index)

    monkeypatch.setattr(train, "forward_terms", listen)
    record, hidden = get(run), classes_of(run)
    assert len(hidden) == 2 and seen["baseline"] >= hidden
    assert seen["kd"].isdisjoint(hidden) and len(seen["kd"]) > 90
    assert set(record.labels.tolist()) == set(range(100))  # all classes are tested
    assert record.test_logits["students"].shape[-1] == 100


def test_only_the_images_of_hidden_classes_are_missing():
    whole = study_runs.load_images(plan(tiny(n_train=300)), "cpu")
    run = plan(tiny(n_train=300, hide="ß,0"))
    part = study_runs.load_images(run, "cpu")
    kept = ~torch.isin(whole.y, torch.tensor([0, 97]))
    assert classes_of(run.run) == {0, 97} and len(part) == 294
    assert torch.equal(part.x, whole.x[kept]) and torch.equal(part.y, whole.y[kept])
    assert part.class_names == whole.class_names and part.classes == 100
    assert torch.equal(part.x_test, whole.x_test) and torch.equal(part.y_test, whole.y_test)


@pytest.mark.parametrize("method", ["kd", "okddip_kd", "edckd", "ensembled_student"])
def test_a_teacher_sees_what_its_student_does_not(method):
    shown, hidden = plan(tiny(method)), plan(tiny(method, hide="é,Q"))
    assert shown.id != hidden.id and shown.teacher.id == hidden.teacher.id
    assert shown.teacher.run == hidden.teacher.run and hidden.teacher.run.hide == ""


def test_hidden_classes_are_a_set():
    ids = {plan(tiny("kd", hide=h)).id for h in ("é,Q", "Q,é", " é , Q ", "Q,é,Q", ",é,,Q,")}
    assert len(ids) == 1 and plan(tiny(hide=" é , Q,")).run.hide == "Q,é"
    assert plan(tiny("kd", hide=" ,")).id == plan(tiny("kd")).id
    others = {plan(tiny("kd", hide=h)).id for h in ("é", "Q", "e,Q", "é,q", "É,Q")}
    assert len(others) == 5 and not others & ids
    assert plans.control(tiny("kd", hide="é,Q")).id == plan(tiny(hide="Q,é")).id


@pytest.mark.parametrize("method", ["baseline", "kd"])
def test_hidden_classes_that_are_none(runs, method):
    everything = ",".join(sources.load("glyphs_few").class_names)
    for hide, says in (
        ("Q,Omega", r"unknown class of glyphs_few 'Omega'"),
        ("QQ", r"unknown class of glyphs_few 'QQ'"),
        (everything, r"hide=.*: no training image is left"),
    ):
        with pytest.raises(ValueError, match=says) as e:
            get(tiny(method, hide=hide))
        assert "\n" not in str(e.value)
        with pytest.raises(ValueError, match=says):
            study_runs.check_fit([plan(tiny(method, hide=hide))])
    assert store.records() == ([], [], [])


def test_a_teacher_as_it_was_published(runs, monkeypatch):
    """Weights that come from outside are a run of no epochs: tested, stored, never trained."""
    net = models.build(NET, 1, 100)
    monkeypatch.setattr(plans, "pretrained", lambda name, classes: net.state_dict())
    run = tiny("kd", teacher_pretrained=True)
    its_run = plan(run).teacher.run
    assert its_run.epochs == 0 and its_run.pretrained
    record = get(run)
    teacher = get(its_run)
    assert record.meta["teacher"] == teacher.id and teacher.history == []
    stored = teacher.model().state_dict()
    assert all(torch.equal(v, stored[k]) for k, v in net.state_dict().items())
    assert plan(its_run.replace(lr=0.5, batch=7)).id == teacher.id  # nothing else acts
    with pytest.raises(ValueError, match="epochs=0: must be at least 1"):
        tiny(epochs=0)
    fine = get(tiny(pretrained=True, epochs=1))
    assert fine.meta["weights_sha256"] != teacher.meta["weights_sha256"]


class Taught(Views):
    """As Views, with a teacher: thirty images are held out, more than a rehearsal looks at."""

    name, title = "taught", "Taught"
    needs_teacher = True

    def refresh(self, z, y, t):
        assert t.shape == (30, 100)


METHODS.pop(Taught.name)


def test_a_rehearsal_knows_what_is_held_out(own_methods, runs):
    METHODS["taught"] = Taught
    with pytest.raises(ValueError, match="batch=71: glyphs_few has 70 training images here"):
        get(tiny("taught", batch=71))
    assert not list(runs.iterdir())  # the teacher was not trained
    assert len(get(tiny("taught", batch=10)).history) == 2
