"""A class of thirty: stores of others, which are read alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdkit.study import (
    leftovers,
    project,
    reference,
    store,
    sweep,
)
from kdkit.study.plans import plan, preset
from kdkit.study.runs import get

ROOT = Path(__file__).parents[1]
NET = "resnet8_w0.25"


def tiny(method="baseline", **changes):
    usual = dict(method=method, student=NET, teacher=NET, n_train=100, batch=50, epochs=1)
    return preset("smoke", **(usual | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a run of KD and its teacher, to be copied and never changed."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDKIT_RUNS", str(root))
        get(tiny("kd", T=3.0))
        return root


@pytest.fixture
def shared(trained, tmp_path, monkeypatch):
    """A teacher's store that may not be written, behind an empty one of one's own."""
    folder = Path(shutil.copytree(trained, tmp_path / "teacher"))
    (folder / f"{plan(tiny(seed=9)).id}").mkdir()  # begun by the teacher, and not finished
    (folder / f"{plan(tiny(seed=9)).id}" / "checkpoint.pt").write_bytes(b"theirs")
    monkeypatch.setenv("KDKIT_RUNS", os.pathsep.join([str(tmp_path / "mine"), str(folder)]))
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state(folder)
    yield folder
    assert state(folder) == before  # not a byte, name or time is another one
    for path in paths:
        path.chmod(0o755)


def state(folder):
    return {p: (p.stat().st_mtime_ns, p.is_dir() or p.read_bytes()) for p in folder.rglob("*")}


# several stores


def stores_of(text, monkeypatch):
    monkeypatch.setenv("KDKIT_RUNS", text.replace(":", os.pathsep))
    return project.stores()


def test_the_names_of_stores(tmp_path, monkeypatch):
    home, own = project.home(), project.home() / "runs"
    monkeypatch.chdir(tmp_path)
    assert stores_of("", monkeypatch) == (own,)
    monkeypatch.delenv("KDKIT_RUNS")
    assert project.stores() == (own,) and project.root() == own
    assert stores_of("a:/b:~/c", monkeypatch) == (home / "a", Path("/b"), Path.home() / "c")
    assert stores_of("/b::/b:a:", monkeypatch) == (Path("/b"), home / "a")
    # What is written is never a shared store by mistake.
    assert stores_of(":/b", monkeypatch) == (own, Path("/b"))
    with pytest.raises(ValueError, match="~nobody-here/c: "):
        stores_of("/b:~nobody-here/c", monkeypatch)


def test_a_store_that_cannot_be_passed_on_is_one_line(tmp_path, monkeypatch, call):
    folder = tmp_path / f"a{os.pathsep}b"
    folder.mkdir()
    monkeypatch.setattr(project, "home", lambda: folder)
    monkeypatch.delenv("KDKIT_RUNS")
    code, _, said = call("runs")
    assert code == 2 and len(said) == 1 and "a path without ':' is needed" in said[0]


def test_shared_runs_are_found_and_never_written(shared, tmp_path, monkeypatch, call):
    run, mine = tiny("kd", T=3.0), tmp_path / "mine"
    assert store.find(run).path == shared / plan(run).id
    assert get(run).path.parent == get(tiny()).path.parent == shared
    assert reference.stored(plan(run)).path.parent == shared  # of tables and figures
    assert not mine.exists()  # nothing had to be written anywhere
    assert sweep.missing([run]) == {} and list(sweep.missing([tiny(seed=1)])) != []
    get(tiny("kd", T=2.0))  # one's own, whose teacher is the shared one
    assert [p.name for p in mine.iterdir()] == [plan(tiny("kd", T=2.0)).id]
    done, under_way, damaged = store.records()
    assert {r.path.parent for r in done} == {mine, shared} and len(done) == 3
    assert under_way == damaged == [] and leftovers.find() == []
    code, out, said = call("runs")
    assert code == 0 and out.count(str(shared)) == 2 and out.count(str(mine)) == 1 and said == []
    assert "2 more, read alone" in call("doctor")[1] and call("gc", "--yes")[0] == 0
    # Trained again, it is replaced in one's own store, which comes first, and is listed once.
    again = get(run, fresh=True)
    assert again.path.parent == mine and store.find(run).path == again.path
    assert [r.path.parent for r in store.records()[0] if r.id == again.id] == [mine]


def test_workers_are_told_of_all_stores(shared, tmp_path, monkeypatch):
    """Those of sweeps, of figures and of the ablation lab, wherever they run."""
    monkeypatch.setattr(project, "home", lambda: tmp_path)
    monkeypatch.setenv("KDKIT_RUNS", os.pathsep.join(["mine", "", "teacher"]))
    seen = []

    def start(command, env, **options):
        seen.append(env["KDKIT_RUNS"])
        raise OSError("not started")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(OSError, match="not started"):
        sweep.sweep([tiny(seed=1)], workers=1)
    with pytest.raises(OSError, match="not started"):
        sweep.start_worker({"KDKIT_RUNS": "mine"})
    assert seen == [os.pathsep.join([str(tmp_path / "mine"), str(shared)])] * 2


def test_a_checkpoint_of_another_store_is_not_gone_on_from(shared, tmp_path, capsys):
    record = get(tiny(seed=9))
    assert record.path.parent == tmp_path / "mine" and record.meta["resumed_at"] is None
    assert "checkpoint" not in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["weights.pt", "record.json", "unreadable", "missing"])
def test_what_is_wrong_in_a_shared_store_is_told_once(trained, tmp_path, monkeypatch, capsys, harm):
    run, folder = tiny(), Path(shutil.copytree(trained, tmp_path / "teacher"))
    monkeypatch.setenv("KDKIT_RUNS", os.pathsep.join([str(tmp_path / "mine"), str(folder)]))
    path, wanted = folder / plan(run).id / harm, f"passed over in {folder}, which is read alone"
    if harm == "missing":
        folder.rename(tmp_path / "elsewhere")
        wanted = f"KDKIT_RUNS names {folder}, which is no folder that can be read"
    elif harm == "unreadable":

        def refused(path, pauses=()):
            if path.is_relative_to(folder) and path.parent.name == plan(run).id:
                raise PermissionError(13, "Permission denied", str(path))
            return path.read_bytes()

        monkeypatch.setattr(store, "read_bytes", refused)
    else:
        path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    before = state(tmp_path)
    assert store.find(run) is store.find(run) is None
    assert len(store.records()[0]) == (harm != "missing") and store.records()[1:] == ([], [])
    (line,) = capsys.readouterr().err.splitlines()
    assert wanted in line and state(tmp_path) == before
    record = get(run)
    assert record.path.parent == tmp_path / "mine" and store.find(run).id == record.id
    assert capsys.readouterr().err == "" and before.items() <= state(tmp_path).items()


def test_a_sound_shared_record_stands_in_for_a_damaged_one(shared, tmp_path, capsys):
    own = tmp_path / "mine" / plan(tiny()).id
    shutil.copytree(shared / own.name, own)
    for path in (own, *own.iterdir()):
        path.chmod(0o755)
    (own / "weights.pt").write_bytes(b"")
    done, _, damaged = store.records()
    assert damaged == [own] and {r.path.parent for r in done} == {shared}
    assert get(tiny()).path.parent == shared and own.exists() and capsys.readouterr().err == ""


CLASSMATE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_class import get, tiny
def wait(state):
    print("trains", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.02)
print(get(tiny("kd", T=5.0), on_epoch=wait).path, flush=True)
"""


def test_two_of_a_class_train_the_same_run_at_once(shared, tmp_path, monkeypatch):
    """Each in a store of its own, beside the teacher's; neither waits for the other, although the
    second one reads the first one's store as well."""
    ada, bo, go = (tmp_path / name for name in ("ada", "bo", "go"))
    monkeypatch.setenv("KDKIT_RUNS", os.pathsep.join(map(str, (ada, shared))))
    command = [sys.executable, "-c", CLASSMATE, str(Path(__file__).parent), str(go)]
    child = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    try:
        assert child.stdout.readline() == "trains\n"
        monkeypatch.setenv("KDKIT_RUNS", os.pathsep.join(map(str, (bo, shared, ada))))
        mine = get(tiny("kd", T=5.0))
        assert child.poll() is None and not (ada / mine.id / "record.json").exists()
        go.touch()
        theirs, said = child.communicate(timeout=120)
        assert said == "" and Path(theirs.strip()) == ada / mine.id and mine.path == bo / mine.id
        assert store.read(ada / mine.id).meta["weights_sha256"] == mine.meta["weights_sha256"]
        assert [p.name for p in (*ada.iterdir(), *bo.iterdir())] == [mine.id] * 2  # no locks
    finally:
        child.kill()
        child.communicate()
