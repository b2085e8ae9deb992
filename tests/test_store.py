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
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch

from kdkit import store, train
from kdkit.config import PRESETS, Run, preset
from kdkit.methods import base, make, method_class, resolve

NET = "resnet8_w0.25"


def tiny(method="baseline", **changes):
    fields = dict(method=method, student=NET, teacher=NET, n_train=100, batch=50, epochs=1)
    return preset("smoke", **(fields | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of one finished run, to be copied and never changed."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_RUNS", str(root))
        patch.setenv("KDKIT_BATCH", "1")
        return train.get(tiny()).path


@pytest.fixture
def stored(runs, finished):
    """The finished run of `tiny()` in this test's own store."""
    return Path(shutil.copytree(finished, runs / finished.name))


def reseal(path, **changes):
    """Change record.json and give it a valid checksum."""
    meta = json.loads((path / "record.json").read_text()) | changes
    del meta["sha256"]
    (path / "record.json").write_text(json.dumps({**meta, "sha256": store._seal(meta)}))


# ---- writing ----


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
    write, order = store.write, []

    def until_record(path, blob):
        order.append(path.name)
        if path.name == "record.json":
            raise KeyboardInterrupt
        write(path, blob)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", until_record)
        with pytest.raises(KeyboardInterrupt):
            train.get(tiny())
    assert order[-1] == "record.json" and "weights.pt" in order and "test_logits.npz" in order
    assert store.find(tiny()) is None
    record = train.get(tiny())
    assert store.find(tiny()).meta == record.meta


def test_a_record_reads_as_it_was_saved(runs):
    run = tiny("kd", T=2.5, seed=4, milestones=(0.5,))
    record = train.get(run)
    again = store.find(run)
    assert again.meta == record.meta and again.run == resolve(run) == record.run
    assert again.id == record.path.name == store.run_id(run) == store.run_id(again.run)
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
    arrays, half, t = store.packed(z, z[0], y)
    assert set(arrays) == {"students", "students_classes", "teacher", "teacher_classes"}
    assert arrays["students"].shape == arrays["students_classes"].shape == (2, 5, 11)
    assert (arrays["students_classes"][..., -1] == y).all() and half.dtype == np.float16
    best = np.sort(np.argsort(-half, -1)[..., :10], -1)
    assert (np.sort(arrays["students_classes"][..., :10], -1) == best).all()
    assert (np.take_along_axis(half, arrays["students_classes"], -1) == arrays["students"]).all()
    assert set(store.packed(z[..., :200], None, y)[0]) == {"students"} and t.shape == (5, 300)


# ---- damage ----


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
    assert store.find(tiny(), mend=True) is None
    (line,) = capsys.readouterr().err.splitlines()
    (aside,) = stored.parent.glob("*.damaged-*")
    assert why in line and aside.name in line and line.startswith(f"kdkit: {stored.name}: ")
    assert not stored.exists() and sorted(p.name for p in aside.iterdir()) == before
    assert store.records() == ([], [], [])
    assert store.leftovers() == [(aside, "a damaged record that was set aside")]


def test_what_was_damaged_is_trained_again(stored, capsys):
    whole = store.read(stored).meta
    flip("weights.pt")(stored)
    record = train.get(tiny())
    assert record.meta["weights_sha256"] == whole["weights_sha256"]
    assert record.result == whole["result"] and len(capsys.readouterr().err.splitlines()) == 1
    assert store.find(tiny()).meta == record.meta
    assert len(list(stored.parent.glob("*.damaged-*"))) == 1


@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_where_a_folder_belongs(runs, capsys, fresh):
    runs.mkdir()
    path = runs / store.run_id(tiny())
    path.write_text("what is this?")
    assert store.find(tiny()) is None and path.is_file()
    record = train.get(tiny(), fresh=fresh)
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
    path = runs / store.run_id(tiny()) / "checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(blob)
    assert train.get(tiny()).meta["resumed_at"] is None
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_checkpoint_that_is_a_folder(runs, capsys):
    (runs / store.run_id(tiny()) / "checkpoint.pt").mkdir(parents=True)
    assert train.get(tiny()).meta["resumed_at"] is None
    assert "damaged checkpoint" in capsys.readouterr().err


# ---- what lies about ----


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
    assert store.leftovers() == []
    done, under_way, damaged = store.records()
    assert [r.id for r in done] == [stored.name] and under_way == damaged == []
    train.get(tiny())
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
    found = dict(store.leftovers())
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
        store.clear(path)
    assert {p for p in runs.rglob("*")} == before | {going, going / "checkpoint.pt"}
    assert store.leftovers() == [] and store.find(tiny())


def test_what_a_process_uses_is_no_leftover(runs):
    folder = runs / store.run_id(tiny())
    folder.mkdir(parents=True)
    part = folder / "progress.json.9.part"
    part.write_text("")
    listed = [part, folder]
    assert [p for p, _ in store.leftovers()] == listed
    with store.lock(tiny()):
        assert store.leftovers() == []
        for path in listed:  # it began after they were listed
            store.clear(path)
        store.clear(runs / f"{folder.name}.lock")
        assert part.exists() and (runs / f"{folder.name}.lock").exists()
    for path in listed:
        store.clear(path)
    assert list(runs.iterdir()) == []


def test_what_is_finished_after_it_was_listed_is_kept(runs):
    folder = runs / store.run_id(tiny())
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text("[]")
    ((path, why),) = store.leftovers()
    assert path == folder and why == "a run that never came to a checkpoint"
    record = train.get(tiny())  # while a person thinks about gc's question
    store.clear(path)
    assert store.find(tiny()).meta == record.meta


def test_who_waits_for_a_lock_file_that_gc_deletes_takes_a_new_one(runs):
    path, inside, done = runs / f"{store.run_id(tiny())}.lock", threading.Event(), threading.Event()

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
    first, second = train.get(tiny(seed=1)), train.get(tiny(seed=2))
    reseal(first.path, created=2000)
    reseal(second.path, created=1000)
    assert [r.run.seed for r in store.records()[0]] == [2, 1]
    assert store.records()[1:] == ([], [])


def test_an_empty_store(runs):
    assert store.records() == ([], [], []) and store.leftovers() == [] and not runs.exists()


# ---- the id ----

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
    epochs=31,
    batch=64,
    lr=0.2,
    momentum=0.8,
    nesterov=False,
    weight_decay=1e-4,
    schedule="sgdr",
    milestones=(0.5,),
    T_0=0.5,
    T_mult=3,
    augment="flip",
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
        ids |= {store.run_id(start), store.run_id(replace(start, **{name: value}))}
    assert len(ids) == len(OTHER) + 1  # and the start; sgdr's start is `schedule`'s other value


def test_what_does_not_matter_is_not():
    for a, b in [
        (Run(), Run(method=method_class().name)),
        (Run(), Run(preset="smoke")),
        (Run(), Run(teacher="resnet110", teacher_seed=7)),
        (Run(method="dml"), Run(method="dml", teacher="resnet110")),
        (Run(), Run(T_0=0.5, T_mult=5)),
        (Run(schedule="sgdr"), Run(schedule="sgdr", milestones=(0.1,))),
        (Run(method="kd"), Run(method="kd").but(T=4.0)),
        (Run(method="kd").but(T=2), Run(method="kd").but(T="2.0")),
        (Run(lr=1), Run(lr="1.0")),
    ]:
        assert store.run_id(a) == store.run_id(b), (a, b)
    other = Run(method="dml", teacher="resnet110").but(teacher_weight=1.0)
    assert store.run_id(other) != store.run_id(replace(other, teacher="resnet20"))
    ids = {store.run_id(run) for run in PRESETS.values()}
    assert len(ids) == len(PRESETS)


def test_a_resolved_run_has_the_same_id():
    for name in ("kd", "okddip", "dckd", "edckd", "ensembled_student", "okddip_kd"):
        for start in PRESETS:
            run = preset(start, method=name)
            assert store.run_id(resolve(run)) == store.run_id(run)
            assert resolve(resolve(run)) == resolve(run)


def test_the_id_depends_on_the_teachers(monkeypatch):
    run, before = Run(method="kd"), store.run_id(Run(method="kd"))
    teacher = resolve(make(run).teacher_run(run))
    real = store.digest
    monkeypatch.setattr(
        store,
        "digest",
        lambda fields, *rest: "other" if fields == store.content(teacher) else real(fields, *rest),
    )
    assert store.run_id(run) not in (before, "other")


SOURCE = '''
from kdkit.losses import ce
from kdkit.methods import Method

class Learner(Method):
    """{doc}"""
    name, title = "learner", "Learner"
    w: float = 1.0

    def terms(self, s, y, t, step):
        {comment}
        return {{"ce": {factor} * ce(s.logits, y)}}
'''


def test_an_edited_method_never_gets_an_old_answer(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

    def define(name, doc="Mine.", comment="# one", factor="1.0"):
        file = tmp_path / f"{name}.py"
        file.write_text(SOURCE.format(doc=doc, comment=comment, factor=factor))
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return tiny("learner")

    first = train.get(define("first"))
    assert train.get(define("second", doc="Said better.", comment="# two")).meta == first.meta
    run = define("third", factor="2.0")
    assert store.find(run) is None and train.get(run).id != first.id
    assert train.get(define("fourth")).meta == first.meta


def test_other_code_of_our_own_is_told_and_fresh_trains_again(stored, capsys):
    train.get(tiny())
    assert capsys.readouterr().err == ""
    reseal(stored, code="0" * 16)
    assert train.get(tiny()).meta["code"] == "0" * 16
    (line,) = capsys.readouterr().err.splitlines()
    assert "trained with other code" in line and "fresh=True" in line and stored.name in line
    fresh = train.get(tiny(), fresh=True)
    assert fresh.meta["code"] != "0" * 16 and capsys.readouterr().err == ""
    assert train.get(tiny()).meta == fresh.meta and capsys.readouterr().err == ""


# ---- several processes ----

CHILD = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from test_store import tiny
from kdkit import train
def wait(job):
    print("trains", flush=True)
    while not pathlib.Path(sys.argv[2]).exists():
        time.sleep(0.02)
record = train.get(tiny(), on_epoch=wait)
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
        third = threading.Thread(target=lambda: mine.append(train.get(tiny())))
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
