"""The store's promises: whole or not at all, nothing damaged is used, one id for one result."""

import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch

import kdkit as kd
from kdkit import metrics
from kdkit.fields import fields
from kdkit.methods import method_class
from kdkit.study import leftovers, plans, project, sources, store
from kdkit.study.fingerprint import is_builtin
from kdkit.study.plans import PRESETS, Run, plan, preset
from kdkit.study.runs import get

NET = "resnet8_w0.25"


def tiny(method="baseline", **changes):
    usual = dict(method=method, student=NET, teacher=NET, n_train=100, batch=50, epochs=1)
    return preset("smoke", **(usual | changes))


def run_id(run):
    return plan(run).id


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one finished run, to be copied and never changed."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_RUNS", str(root))
        patch.setenv("KDKIT_BATCH", "1")
        return get(tiny()).path


@pytest.fixture
def stored(runs, finished):
    """The finished run of `tiny()` in this test's own store."""
    return Path(shutil.copytree(finished, runs / finished.name))


def reseal(path, **changes):
    """Change record.json and give it a valid checksum."""
    meta = json.loads((path / "record.json").read_text()) | changes
    del meta["sha256"]
    (path / "record.json").write_text(json.dumps({**meta, "sha256": store._meta_sha256(meta)}))


# writing


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "a.json"
    store.write(path, b"old")

    def killed(*args):
        raise OSError(5, "broken")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, killed)
            with pytest.raises(OSError, match=r"\[Errno 5\] not written: broken: '.*a.json'"):
                store.write(path, b"new")
        assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


def test_the_record_is_written_last(runs, monkeypatch):
    """Killed before that, the run is not finished; it goes on and is stored whole."""
    write, order = project.write, []

    def until_record(path, blob):
        order.append(path.name)
        if path.name == "record.json":
            raise KeyboardInterrupt
        write(path, blob)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", until_record)
        with pytest.raises(KeyboardInterrupt):
            get(tiny())
    assert order[-1] == "record.json" and "weights.pt" in order and "test_logits.npz" in order
    assert store.find(tiny()) is None
    record = get(tiny())
    assert store.find(tiny()).meta == record.meta


def test_a_record_reads_as_it_was_saved(runs):
    run = tiny("kd", T=2.5, seed=4, milestones=(0.5,))
    record = get(run)
    again = store.find(run)
    assert again.meta == record.meta and again.run == plan(run).run == record.run
    assert again.id == record.path.name == run_id(run) == run_id(again.run)
    assert store.ID.fullmatch(again.id)
    weights = torch.load(again.path / "weights.pt", weights_only=True)
    flat = {f"{k}.{n}": v for k, state in weights.items() for n, v in state.items()}
    assert store.weights_sha256(flat) == again.meta["weights_sha256"]
    assert {k: v.sum() for k, v in again.model().state_dict().items()} == {
        k: v.sum() for k, v in weights["students"].items()
    }
    assert not any(p.requires_grad for p in again.model().parameters())
    for name, want in again.meta["files"].items():
        assert hashlib.sha256((again.path / name).read_bytes()).hexdigest() == want
    assert again.meta["environment"].keys() >= {
        "python",
        "torch",
        "device",
        "processor",
        "commit",
        "threads",
        "precision",
    }


def test_the_weights_sum_knows_names_bytes_and_not_order():
    a, b = torch.arange(4.0), torch.ones(2, 2)
    one = store.weights_sha256({"a": a, "b": b})
    assert store.weights_sha256({"b": b, "a": a}) == one
    assert store.weights_sha256({"a": a, "c": b}) != one
    assert store.weights_sha256({"a": a + 1e-7, "b": b}) != one
    assert store.weights_sha256({"a": a, "b": b.t().contiguous().t()}) == one


def test_above_200_classes_ten_logits_and_the_true_one_are_kept():
    z = np.random.default_rng(0).normal(size=(2, 5, 300)).astype(np.float32)
    y = np.array([3, 299, 0, 17, 100])
    arrays, half, t = store.compress_logits(z, z[0], y)
    assert set(arrays) == {"students", "students_classes", "teacher", "teacher_classes", "labels"}
    assert arrays["students"].shape == arrays["students_classes"].shape == (2, 5, 11)
    assert (arrays["labels"] == y).all()
    assert (arrays["students_classes"][..., -1] == y).all() and half.dtype == np.float16
    best = np.sort(np.argsort(-half, -1)[..., :10], -1)
    assert (np.sort(arrays["students_classes"][..., :10], -1) == best).all()
    assert (np.take_along_axis(half, arrays["students_classes"], -1) == arrays["students"]).all()
    assert set(store.compress_logits(z[..., :200], None, y)[0]) == {"students", "labels"}
    assert t.shape == (5, 300)


# what a record can be asked


def test_metrics_of_the_stored_logits(runs):
    record = get(tiny("dml", m=2))
    z = record.test_logits["students"].astype(np.float64)  # (2, 500, 100)
    y = sources.load("glyphs_few").y_test.numpy()
    assert (record.labels == y).all() and record.labels.dtype == np.int64
    by_hand = []
    for student in z:
        each = [np.log(np.exp(row).sum()) - row[c] for row, c in zip(student, y, strict=True)]
        by_hand.append(sum(each) / len(each))
    assert record.metric("nll") == pytest.approx(by_hand, rel=1e-12)
    assert record.metric("top1") == pytest.approx(record.result["top1"])
    assert record.metric("diversity") == record.result["diversity"]  # of the report alone
    with pytest.raises(ValueError, match="unknown metric 'nlll': did you mean nll"):
        record.metric("nlll")


def test_metrics_where_only_the_largest_logits_are_kept(stored, tmp_path):
    z, y = np.random.default_rng(0).normal(size=(1, 6, 300)), np.arange(6)
    np.savez(tmp_path / "test_logits.npz", **store.compress_logits(z, None, y)[0])
    record = store.Record(tmp_path, store.read(stored).meta)
    assert (record.labels == y).all()
    with pytest.raises(ValueError, match="only the largest logits are stored above 200 classes"):
        record.metric("nll")
    assert record.metric("correlation_number_T4") == record.result["correlation_number_T4"]


def make_old(path):
    """As records were before labels, mean and std stood in them."""
    blob = io.BytesIO()
    with np.load(path / "test_logits.npz") as kept:
        np.savez_compressed(blob, students=kept["students"])
    (path / "test_logits.npz").write_bytes(blob.getvalue())
    meta = json.loads((path / "record.json").read_text())
    for name in ("mean", "std", "sha256"):
        del meta[name]
    meta["files"]["test_logits.npz"] = hashlib.sha256(blob.getvalue()).hexdigest()
    sealed = {**meta, "sha256": store._meta_sha256(meta)}
    (path / "record.json").write_text(json.dumps(sealed))


@pytest.fixture
def margin():
    """A metric that is registered when the run is trained already; forgotten afterwards."""
    before = dict(metrics.METRICS)

    @kd.metric("margin")
    def margin(z, y):
        assert z.shape == (1, 500, 100) and z.dtype == np.float64 and y.dtype == np.int64
        return (z.max(-1) - z[:, np.arange(len(y)), y]).mean(-1)

    yield margin
    metrics.METRICS.clear()
    metrics.METRICS.update(before)


def test_a_metric_that_is_registered_later(stored, margin):
    assert "margin" in kd.list_metrics()
    z = store.read(stored).test_logits["students"][0].astype(np.float64)
    y = sources.load("glyphs_few").y_test.numpy()
    wanted = sum(row.max() - row[c] for row, c in zip(z, y, strict=True)) / 500
    assert store.find(tiny()).metric("margin") == [pytest.approx(wanted)]
    make_old(stored)
    assert store.find(tiny()).metric("margin") == [pytest.approx(wanted)]


def test_an_old_record_is_asked_as_a_new_one_is(stored):
    new = store.read(stored)
    x = sources.load("glyphs_few").x_test[:20]
    wanted = new.metric("nll"), new.labels, new.student()(x)
    make_old(stored)
    old = store.find(tiny())
    assert set(old.test_logits) == {"students"} and "mean" not in old.meta
    assert old.metric("nll") == wanted[0]
    assert (old.labels == wanted[1]).all() and torch.equal(old.student()(x), wanted[2])


@pytest.mark.parametrize(
    "method, params, deployed",
    [
        ("kd", {}, 0),
        ("dml", dict(m=2), None),
        ("okddip", {}, 3),
        ("okddip", dict(two_level=False, m=3, seed=1), "drawn"),
        ("okddip", dict(based="network", m=3), 2),
    ],
)
def test_the_deployed_student_alone(runs, method, params, deployed):
    record = get(tiny(method, **params))
    index = record.result["deployed"]
    assert index == deployed or deployed == "drawn" and index in (0, 1, 2)
    student, images = record.student(), sources.load("glyphs_few")
    assert images.x_test.dtype == torch.uint8 and not student.training
    z = student(images.x_test)
    kept = torch.from_numpy(record.test_logits["students"][index or 0].astype(np.float32))
    assert z.shape == (500, 100) and not z.requires_grad
    assert ((z - kept).abs() <= kept.abs() / 1024 + 1e-4).all()
    torch.testing.assert_close(student(images.x_test / 255), z)
    parameters = sum(p.numel() for p in student.parameters())
    assert parameters == sum(p.numel() for p in kd.models.build(NET, 1, 100).parameters())


def test_a_record_keeps_no_bank(runs):
    record = get(tiny("crd"))
    weights = torch.load(record.path / "weights.pt", weights_only=True)
    assert set(weights["method"]) == {"E_s.weight", "E_s.bias", "E_t.weight", "E_t.bias", "Z"}
    bank = 2 * 100 * 128 * 4  # bytes
    size, students = ((r.path / "weights.pt").stat().st_size for r in (record, get(tiny("kd"))))
    assert size - students < bank / 2
    images = sources.load("glyphs_few")
    assert record.meta["mean"] == list(images.mean) and record.meta["std"] == list(images.std)
    assert record.model()(torch.zeros(2, 1, 20, 20)).logits.shape == (2, 100)


# damage


def cut(name):
    def act(path):
        blob = (path / name).read_bytes()
        (path / name).write_bytes(blob[: len(blob) // 2])

    return act


def flip(name):
    def act(path):
        blob = bytearray((path / name).read_bytes())
        blob[len(blob) // 2] ^= 1
        (path / name).write_bytes(blob)

    return act


def drop(name):
    return lambda path: (path / name).unlink()


def put(text):
    return lambda path: (path / "record.json").write_bytes(text)


def edit(path):
    text = (path / "record.json").read_text()
    top1 = json.loads(text)["result"]["top1"][0]
    (path / "record.json").write_text(text.replace(str(top1), "99.9"))


def folder_for_file(path):
    (path / "weights.pt").unlink()
    (path / "weights.pt").mkdir()


DAMAGE = {
    "record cut": (cut("record.json"), "damaged record"),
    "record empty": (put(b""), "damaged record"),
    "record is no text": (put(b"\xff\x00\x01"), "damaged record"),
    "record is a list": (put(b"[]"), "checksum"),
    "record is a number": (put(b"7"), "checksum"),
    "a number edited": (edit, "record.json does not match its checksum"),
    "wrong id": (lambda p: reseal(p, id="0" * 12), "id 000000000000 do not belong here"),
    "wrong format": (lambda p: reseal(p, format=99), "format 99"),
    "other fields": (lambda p: reseal(p, run={"optimiser": "adam", "params": []}), "this version"),
    "fields are no fields": (lambda p: reseal(p, run=5), "this version"),
    "no files": (lambda p: reseal(p, files=None), "damaged record"),
    "weights cut": (cut("weights.pt"), "weights.pt does not match its checksum"),
    "weights flipped": (flip("weights.pt"), "weights.pt does not match its checksum"),
    "weights gone": (drop("weights.pt"), "weights.pt"),
    "weights a folder": (folder_for_file, "weights.pt"),
    "history flipped": (flip("history.npz"), "history.npz does not match its checksum"),
    "logits cut": (cut("test_logits.npz"), "test_logits.npz does not match its checksum"),
    "logits gone": (drop("test_logits.npz"), "test_logits.npz"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_noticed_and_set_aside_under_the_lock_alone(stored, capsys, kind):
    act, why = DAMAGE[kind]
    act(stored)
    before = sorted(p.name for p in stored.iterdir())
    assert store.find(tiny()) is None and capsys.readouterr().err == ""
    assert store.records() == ([], [], [stored]) and stored.exists()  # looking changes nothing
    assert store.find(tiny(), quarantine_damaged=True) is None
    (line,) = capsys.readouterr().err.splitlines()
    (aside,) = stored.parent.glob("*.damaged-*")
    assert why in line and aside.name in line and line.startswith(f"kdkit: {stored.name}: ")
    assert not stored.exists() and sorted(p.name for p in aside.iterdir()) == before
    assert store.records() == ([], [], [])
    assert leftovers.find() == [(aside, "a damaged record that was set aside")]


def test_what_was_damaged_is_trained_again(stored, capsys):
    whole = store.read(stored).meta
    flip("weights.pt")(stored)
    record = get(tiny())
    assert record.meta["weights_sha256"] == whole["weights_sha256"]
    assert record.result == whole["result"] and len(capsys.readouterr().err.splitlines()) == 1
    assert store.find(tiny()).meta == record.meta
    assert len(list(stored.parent.glob("*.damaged-*"))) == 1


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_where_a_folder_belongs(runs, capsys, fresh):
    runs.mkdir()
    path = runs / run_id(tiny())
    path.write_text("what is this?")
    assert store.find(tiny()) is None and path.is_file()
    record = get(tiny(), fresh=fresh)
    (line,) = capsys.readouterr().err.splitlines()
    (aside,) = runs.glob("*.damaged-*")
    assert "a file stands where a run's folder belongs" in line and aside.name in line
    assert aside.read_text() == "what is this?" and store.find(tiny()).meta == record.meta


def test_a_reader_leaves_a_record_that_is_being_replaced(stored):
    """fresh=True writes the weights first: until the record follows, the two do not agree."""
    with store.lock(tiny()):
        (stored / "weights.pt").write_bytes(b"new weights")
        assert store.find(tiny()) is None
        assert store.records()[2] == [stored]
    assert (stored / "record.json").exists() and not list(stored.parent.glob("*.damaged-*"))


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(obj):
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [lambda obj: pickle.dumps(obj, 2), saved])
def test_no_pickle_is_ever_executed(stored, tmp_path, capsys, pack):
    blob = pack({"students": Evil(tmp_path / "executed")})
    (stored / "weights.pt").write_bytes(blob)
    files = json.loads((stored / "record.json").read_text())["files"]
    reseal(stored, files=files | {"weights.pt": hashlib.sha256(blob).hexdigest()})
    record = store.find(tiny())  # every checksum is right
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights"):
        record.model()
    for start in (hashlib.sha256(blob).digest(), b"\0" * 32, b""):
        (stored / "checkpoint.pt").write_bytes(start + blob)
        assert store.read_checkpoint(tiny()) is None
        (line,) = capsys.readouterr().err.splitlines()
        assert "damaged checkpoint" in line and "set aside as checkpoint.pt.damaged-" in line
    blob = io.BytesIO()
    np.savez(blob, students=np.array([Evil(tmp_path / "executed")], dtype=object))
    (stored / "test_logits.npz").write_bytes(blob.getvalue())
    with pytest.raises(ValueError, match="allow_pickle"):
        _ = record.test_logits
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()  # it would have shown


@pytest.mark.parametrize("blob", [b"", b"x", b"x" * 32, hashlib.sha256(b"").digest()])
def test_checkpoints_that_are_none(runs, capsys, blob):
    path = runs / run_id(tiny()) / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(blob)
    assert get(tiny()).meta["resumed_at"] is None
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_checkpoint_that_is_a_folder(runs, capsys):
    (runs / run_id(tiny()) / "checkpoint.pt").mkdir(parents=True)
    assert get(tiny()).meta["resumed_at"] is None
    assert "damaged checkpoint" in capsys.readouterr().err


# what lies about


def foreign(runs):
    """Files and folders that are not the store's, some under names that look like its own."""
    names = [
        "notes.txt",
        "x.lock",
        "abc",
        "0123456789ab.txt",
        "0123456789ab.damaged-copy",
        "guesses.json",
    ]
    for name in names:
        (runs / name).write_text("mine")
    for name in ("my runs", "0123456789AB", "0123456789abc", "0123456789ab", "aaaaaaaaaaaa"):
        (runs / name).mkdir()
        (runs / name / "mine.part").write_text("mine")
    return {p for p in runs.rglob("*")}


def test_foreign_files_are_never_touched(stored, runs):
    (stored / "comments.md").write_text("mine")
    (stored / "thesis.part").write_text("mine")
    there = foreign(runs)
    assert leftovers.find() == []
    done, under_way, damaged = store.records()
    assert [r.id for r in done] == [stored.name] and under_way == damaged == []
    get(tiny())
    assert {p for p in runs.rglob("*")} == there
    assert (stored / "thesis.part").read_text() == "mine"


def test_leftovers_are_listed_and_cleared(stored, runs):
    foreign(runs)
    before = {p for p in runs.rglob("*")}
    (stored / "checkpoint.pt").write_bytes(b"")
    (stored / "weights.pt.123.part").write_bytes(b"")
    (stored / "checkpoint.pt.damaged-1f").write_bytes(b"")
    (runs / "bbbbbbbbbbbb.damaged-17").mkdir()
    (runs / "bbbbbbbbbbbb.damaged-18").write_text("")
    (runs / "cccccccccccc").mkdir()
    (runs / "cccccccccccc" / "progress.json").write_text("[]")
    (runs / "dddddddddddd.lock").write_text("")
    going = runs / "eeeeeeeeeeee"
    going.mkdir()
    (going / "checkpoint.pt").write_bytes(b"")  # goes on when it is asked for again: kept
    found = dict(leftovers.find())
    assert {
        str(p.relative_to(runs)).replace(stored.name, "ID"): why for p, why in found.items()
    } == {
        str(Path("ID", "checkpoint.pt")): "left over from a finished run",
        str(Path("ID", "weights.pt.123.part")): "a half-written file",
        str(Path("ID", "checkpoint.pt.damaged-1f")): "a damaged checkpoint that was set aside",
        "bbbbbbbbbbbb.damaged-17": "a damaged record that was set aside",
        "bbbbbbbbbbbb.damaged-18": "a damaged record that was set aside",
        "cccccccccccc": "a run that never came to a checkpoint",
        "dddddddddddd.lock": "a lock that nobody holds",
    }
    assert store.records()[1] == [runs / "cccccccccccc", going]
    for path in found:
        leftovers.clear(path)
    assert {p for p in runs.rglob("*")} == before | {going, going / "checkpoint.pt"}
    assert leftovers.find() == [] and store.find(tiny())


def test_what_a_process_uses_is_no_leftover(runs):
    folder = runs / run_id(tiny())
    folder.mkdir(parents=True)
    part = folder / "progress.json.9.part"
    part.write_text("")
    listed = [part, folder]
    assert [p for p, _ in leftovers.find()] == listed
    with store.lock(tiny()):
        assert leftovers.find() == []
        for path in listed:  # it began after they were listed
            leftovers.clear(path)
        leftovers.clear(runs / f"{folder.name}.lock")
        assert part.exists() and (runs / f"{folder.name}.lock").exists()
    for path in listed:
        leftovers.clear(path)
    assert list(runs.iterdir()) == []


def test_what_is_finished_after_it_was_listed_is_kept(runs):
    folder = runs / run_id(tiny())
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text("[]")
    ((path, why),) = leftovers.find()
    assert path == folder and why == "a run that never came to a checkpoint"
    record = get(tiny())  # while a person thinks about gc's question
    leftovers.clear(path)
    assert store.find(tiny()).meta == record.meta


def test_who_waits_for_a_lock_file_that_gc_deletes_takes_a_new_one(runs):
    path, inside, done = runs / f"{run_id(tiny())}.lock", threading.Event(), threading.Event()

    def work():
        with store.lock(tiny()):
            inside.set()
            done.wait(60)

    runs.mkdir()
    first, second = filelock.FileLock(path), threading.Thread(target=work)
    with first.acquire():
        second.start()
        time.sleep(0.3)  # it has opened the file, and waits
        path.unlink()
    assert inside.wait(60) and path.exists()
    with pytest.raises(filelock.Timeout):
        filelock.FileLock(path).acquire(blocking=False)
    done.set()
    second.join()


def test_records_are_sorted_by_age(runs):
    first, second = get(tiny(seed=1)), get(tiny(seed=2))
    reseal(first.path, created=2000)
    reseal(second.path, created=1000)
    assert [r.run.seed for r in store.records()[0]] == [2, 1]
    assert store.records()[1:] == ([], [])


def test_an_empty_store(runs):
    assert store.records() == ([], [], []) and leftovers.find() == [] and not runs.exists()


# the id

OTHER = dict(
    method="okddip_kd",
    seed=1,
    data="fashion_mnist",
    student="resnet14",
    teacher="resnet20",
    teacher_seed=1,
    teacher_lr=0.3,
    pretrained=True,
    teacher_pretrained=True,
    n_train=100,
    teacher_n_train=300,
    hide="a,b",
    epochs=31,
    batch=64,
    lr=0.2,
    momentum=0.8,
    optimizer="adamw",
    nesterov=False,
    weight_decay=1e-4,
    schedule="sgdr",
    milestones=(0.5,),
    T_0=0.5,
    T_mult=3,
    augment="flip",
    class_weights=(1.0, 2.0),
    full_tests=1,
    precision="bf16",
    threads=2,
    compile=True,
    params=(("T", 2.0),),
)


def test_every_field_that_matters_is_in_the_id():
    assert set(OTHER) == {f.name for f in dataclasses.fields(Run)} - {"preset"}
    ids = set()
    for name, value in OTHER.items():
        start = Run(method="kd", schedule="sgdr" if name in ("T_0", "T_mult") else "step")
        assert getattr(start, name) != value
        ids |= {run_id(start), run_id(start.replace(**{name: value}))}
    assert len(ids) == len(OTHER) + 1  # and the start; sgdr's start is `schedule`'s other value


def test_what_does_not_matter_is_not():
    for a, b in [
        (Run(), Run(method=method_class().name)),
        (Run(), Run(preset="smoke")),
        (Run(), Run(teacher="resnet110", teacher_seed=7)),
        (Run(method="dml"), Run(method="dml", teacher="resnet110")),
        (Run(), Run(T_0=0.5, T_mult=5)),
        (Run(schedule="sgdr"), Run(schedule="sgdr", milestones=(0.1,))),
        (Run(optimizer="adamw"), Run(optimizer="adamw", momentum=0.5, nesterov=False)),
        (Run(method="kd"), Run(method="kd").replace(T=4.0)),
        (Run(method="kd").replace(T=2), Run(method="kd").replace(T="2.0")),
        (Run(lr=1), Run(lr="1.0")),
        (Run(), Run(data="glyphs")),
        (Run(), Run(n_train=100, teacher_n_train=500).replace(n_train=0)),
        (Run(method="dml"), Run(method="dml", teacher_n_train=500)),
        (Run(method="kd", n_train=500), Run(method="kd", n_train=500, teacher_n_train=500)),
        (Run(hide="é,Q"), Run(hide=" Q , é,,Q")),
        (Run(), Run(hide=" , ")),
    ]:
        assert run_id(a) == run_id(b), (a, b)
    other = Run(method="dml", teacher="resnet110").replace(teacher_weight=1.0)
    assert run_id(other) != run_id(other.replace(teacher="resnet20"))
    ids = {run_id(run) for run in PRESETS.values()}
    assert len(ids) == len(PRESETS)


def test_a_canonical_run_has_the_same_id():
    for name in ("kd", "okddip", "dckd", "edckd", "ensembled_student", "okddip_kd"):
        for start in PRESETS:
            run = preset(start, method=name)
            whole = plan(run)
            assert run_id(whole.run) == whole.id and plan(whole) is whole
            assert plan(whole.run).run == whole.run


DEFAULTS = json.loads(Path(__file__).with_name("defaults.json").read_text())


def defaults():
    """The default of each field of a run and of each of kdkit's methods that is in an id by itself,
    as JSON has it."""
    owners = {"Run": Run} | {name: method_class(name) for name in kd.list_methods()}
    ours = {name: cls for name, cls in owners.items() if is_builtin(cls)}
    found = {
        f"{name}.{field}": about.default
        for name, cls in ours.items()
        for field, about in fields(cls).items()
        if f"{name}.{field}" not in ("Run.preset", "Run.params")
    }
    return json.loads(json.dumps(found))


def changed_defaults(pinned, now):
    """A sentence for each default that is not what it was, and for each that is not pinned yet."""
    stored = "ids leave out what is at its default, so stored runs would be taken for others"
    told = [
        f"{name} is {now.get(name, 'gone')!r}, not {pinned[name]!r} as before: {stored}. Put it "
        "back, or raise FORMAT in kdkit/study/plans.py and then change tests/defaults.json"
        for name in pinned
        if name not in now or now[name] != pinned[name]
    ]
    new = {name: now[name] for name in now.keys() - pinned.keys()}
    lines = "".join(f"\n  {json.dumps(k)}: {json.dumps(v)}," for k, v in sorted(new.items()))
    return told + ([f"new fields: add to tests/defaults.json{lines}"] if new else [])


def test_no_default_changes_unnoticed():
    assert not changed_defaults(DEFAULTS, defaults()), changed_defaults(DEFAULTS, defaults())


def test_a_changed_default_is_told():
    pinned = {"Run.lr": 0.1, "kd.T": 4.0, "kd.old": 1}
    assert changed_defaults(pinned, dict(pinned)) == []
    said = changed_defaults(pinned, {"Run.lr": 0.2, "kd.T": 4.0, "kd.new": [1, 2]})
    assert [line.split(":")[0] for line in said] == [
        "Run.lr is 0.2, not 0.1 as before",
        "kd.old is 'gone', not 1 as before",
        "new fields",
    ]
    assert "raise FORMAT in kdkit/study/plans.py" in said[0] and '"kd.new": [1, 2]' in said[2]


def test_the_id_depends_on_the_teachers(monkeypatch):
    run, before, real = Run(method="kd"), run_id(Run(method="kd")), plans._id

    def of_other_teachers(run, *rest):
        return "other" if run.method == "baseline" else real(run, *rest)

    monkeypatch.setattr(plans, "_id", of_other_teachers)
    assert plan(run).teacher.id == "other"
    assert run_id(run) not in (before, "other")


SOURCE = '''
from kdkit.methods import Method, KD

UNUSED, WEIGHT, ALLOWED = 1, 1.0, {{"one", "two", "three", "four"}}
TABLE = {{"ce": 1.0}}

def helper(v):
    return deeper(v)

def deeper(v, factor=1.0):
    return factor * v

class Parent(Method):
    def scaled(self, v):
        return 1.0 * v

class Learner(Parent):
    """Mine."""
    name, title = "learner", "Learner"
    w: float = 1.0

    def weights(self):
        if self.title in {{"Learner", "Mine", "Yours", "Theirs"}}:
            return dict(TABLE)

    def check(self):
        pass

    def terms(self, s, y, t, step, *, power=1.0):
        # one
        assert "one" in ALLOWED
        ce = (lambda v: v * WEIGHT)(step.ce(s.logits, y)) ** power
        return {{"ce": self.scaled(helper(ce))}}
'''.replace("{{", "{").replace("}}", "}")

SAME = {
    "docstring of the class": ('"""Mine."""', '"""Said better.\n    At length."""'),
    "no docstring of the class": ('"""Mine."""', ""),
    "comment": ("# one", "# two"),
    "no comment": ("        # one\n", ""),
    "layout": ("return deeper(v)", "return (\n        deeper(v)\n    )"),
    "docstring of a function": ("def helper(v):", 'def helper(v):\n    """Helps."""'),
    "docstring of a method": ("def check(self):", 'def check(self):\n        """Nothing."""'),
    "docstring where None is returned": (
        "def weights(self):",
        'def weights(self):\n        """The weights."""',
    ),
    "what it does not use": ("UNUSED, WEIGHT", "UNUSED2, WEIGHT"),
    "order of the file": ("TABLE = {", "\n\nTABLE = {"),
}
OTHER_CODE = {
    "body": ("** power", "** power * 1.0"),
    "constant of the body": ("** power", "** power * 2.0"),
    "default of the field": ("w: float = 1.0", "w: float = 2.0"),
    "constant of the module": ("ALLOWED = 1, 1.0", "ALLOWED = 1, 2.0"),
    "set of the module": ('"four"}', '"five"}'),
    "table of the module": ('TABLE = {"ce": 1.0}', 'TABLE = {"ce": 0.5}'),
    "helper": ("return deeper(v)", "return deeper(2 * v)"),
    "helper of the helper": ("return factor * v", "return v"),
    "default of a helper": ("factor=1.0", "factor=2.0"),
    "keyword default": ("power=1.0", "power=2.0"),
    "parent": ("return 1.0 * v", "return 3.0 * v"),
    "set in the body": ('"Theirs"}', '"Ours"}'),
    "other base": ("class Parent(Method)", "class Parent(KD)"),
}


@pytest.fixture
def define(tmp_path, monkeypatch, own_methods):
    """define(change): the run of SOURCE with a (text, replacement), from a file of its own."""

    def from_file(change=("", ""), number=iter(range(10**6))):
        assert change[0] in SOURCE
        name = f"learners_{next(number)}"
        file = tmp_path / f"{name}.py"
        file.write_text(SOURCE.replace(*change, 1))
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return tiny("learner")

    return from_file


@pytest.mark.parametrize("change", SAME)
def test_what_changes_nothing_leaves_the_id(define, change):
    assert run_id(define()) == run_id(define(SAME[change]))


@pytest.mark.parametrize("change", OTHER_CODE)
def test_what_a_learners_method_uses_is_in_its_id(define, change):
    assert run_id(define()) != run_id(define(OTHER_CODE[change]))


def test_an_id_is_the_same_in_every_process(define, tmp_path):
    """Sets of text have another order in each."""
    wanted = run_id(define())
    (tmp_path / "learners.py").write_text(SOURCE)
    code = "import learners, test_store; print(test_store.run_id(test_store.tiny('learner')))"
    for seed in "123":
        folders = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), sys.path[0]])
        path = os.pathsep.join([folders, os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        child = subprocess.run(
            [sys.executable, "-c", code], env=env, text=True, capture_output=True
        )
        assert child.stdout.strip() == wanted, child.stderr


def test_a_helper_that_is_written_again_is_seen(runs, own_methods, capsys):
    """As in a notebook, where the class stays what it was."""
    space = {"__name__": "__main__"}
    exec(SOURCE, space)
    first = get(tiny("learner"))
    exec("def deeper(v):\n    return 2 * v", space)
    assert store.find(tiny("learner")) is None
    second = get(tiny("learner"))
    assert second.id != first.id and second.meta["code"] != first.meta["code"]
    exec(SOURCE, space)
    assert get(tiny("learner")).meta == first.meta
    assert capsys.readouterr().err == ""


def test_an_edited_method_never_gets_an_old_answer(runs, define):
    first = get(define())
    assert get(define(SAME["comment"])).meta == first.meta
    run = define(OTHER_CODE["body"])
    assert store.find(run) is None and get(run).id != first.id
    assert get(define()).meta == first.meta


def test_a_learners_network_is_in_the_id(monkeypatch):
    space = {"__name__": "__main__"}
    source = """
import kdkit as kd

def size():
    return 8

def small(channels, classes):
    "Small."
    return kd.models.build("resnet8_w0.25", channels, classes) if size() else None
"""
    ids = []
    for change in (("", ""), ("Small.", "Very small."), ("return 8", "return 9")):
        exec(source.replace(*change, 1), space)
        monkeypatch.setitem(kd.models.base._REGISTRY, "small", space["small"])
        ids.append([run_id(tiny(student="small")), run_id(tiny("kd", teacher="small"))])
    assert ids[0] == ids[1] and not {*ids[0]} & {*ids[2]}


def test_other_code_of_our_own_is_told_and_fresh_trains_again(stored, capsys):
    get(tiny())
    assert capsys.readouterr().err == ""
    reseal(stored, code="0" * 16)
    assert get(tiny()).meta["code"] == "0" * 16
    (line,) = capsys.readouterr().err.splitlines()
    assert "trained with other code" in line and "fresh=True" in line and stored.name in line
    fresh = get(tiny(), fresh=True)
    assert fresh.meta["code"] != "0" * 16 and capsys.readouterr().err == ""
    assert get(tiny()).meta == fresh.meta and capsys.readouterr().err == ""


# several processes

CHILD = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from test_store import tiny
from kdkit.study.runs import get
def wait(state):
    print("trains", flush=True)
    while not pathlib.Path(sys.argv[2]).exists():
        time.sleep(0.02)
record = get(tiny(), on_epoch=wait)
print(record.meta["weights_sha256"], flush=True)
"""


def test_one_trains_the_others_wait_and_a_killed_one_lets_go(runs, tmp_path, finished):
    def start():
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "go")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    killed, second = start(), None
    try:
        assert killed.stdout.readline() == "trains\n"
        second = start()
        assert "another process is training baseline" in second.stderr.readline()
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(runs / f"{finished.name}.lock").acquire(blocking=False)
        killed.kill()
        assert second.stdout.readline() == "trains\n"  # it takes over
        mine = []
        third = threading.Thread(target=lambda: mine.append(get(tiny())))
        third.start()
        time.sleep(0.2)
        assert not mine and third.is_alive()
        (tmp_path / "go").touch()
        out, err = second.communicate(timeout=300)
        third.join(300)
        wanted = store.read(finished).meta["weights_sha256"]
        assert out == f"{wanted}\n" and second.returncode == 0 and err == ""
        assert mine[0].meta == store.find(tiny()).meta  # the third took what the second stored
        assert mine[0].meta["weights_sha256"] == wanted
    finally:
        for child in (killed, second):
            if child:
                child.kill()
                child.communicate()
