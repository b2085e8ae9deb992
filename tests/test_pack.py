"""Finished runs in one file: what is wrong with it is told before anything is written."""

import hashlib
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from test_class import state, tiny
from test_class import trained as trained

from kdkit.study import leftovers, pack, project, store
from kdkit.study.plans import plan
from kdkit.study.runs import get


@pytest.fixture
def packed(trained, tmp_path, monkeypatch):
    """A pack of the two runs; and an empty store."""
    monkeypatch.setenv("KDKIT_RUNS", str(trained))
    pack.pack(tmp_path / "class.kdpack", pack.chosen([], {}))
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "class.kdpack"


def contents(file):
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_runs_are_handed_over(packed, trained, tmp_path, call):
    code, out, said = call("unpack", str(packed))
    assert (code, said) == (
        0,
        [],
    ) and out == f"2 runs are new in {tmp_path / 'runs'}, 0 were there\n"
    assert get(tiny("kd", T=3.0)).path.parent == tmp_path / "runs"
    for path in trained.glob("*/*"):
        assert (tmp_path / "runs" / path.relative_to(trained)).read_bytes() == path.read_bytes()
    before = state(tmp_path / "runs")
    assert call("unpack", str(packed))[1].startswith("0 runs are new") and leftovers.find() == []
    assert state(tmp_path / "runs") == before
    # The same runs make the same file, and a file that is there is not replaced.
    assert call("pack", str(tmp_path / "again"))[1].startswith("2 runs are in ")
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()
    code, out, (line,) = call("pack", str(packed))
    assert code == 2 and "is there already, and is not replaced" in line


@pytest.mark.parametrize(
    "asked, found",
    [
        ([], 2),
        (["--where", "method=kd"], 2),  # and its teacher
        (["--where", "method=baseline"], 1),
        (["--where", "T=3", "--where", "data=glyphs_few"], 2),
        (["--where", "T=4"], "no finished run has T=4: nothing to pack"),
        (["--where", "T=warm"], "no finished run has T=warm: nothing to pack"),
        (["--where", "params=1"], "unknown field 'params'"),
        (["--where", "seed"], "--where 'seed': write field=value"),
        (["--where", "seed=0", "--where", "seed=1"], "--where seed is given twice: 0 and 1"),
        (["0123456789ab"], "'0123456789ab' is no finished run in "),
    ],
)
def test_which_runs_are_packed(trained, tmp_path, monkeypatch, call, asked, found):
    monkeypatch.setenv("KDKIT_RUNS", str(trained))
    code, out, said = call("pack", str(tmp_path / "file"), *asked)
    if isinstance(found, str):
        assert code == 2 and len(said) == 1 and found in said[0] and os.listdir(tmp_path) == []
    else:
        assert code == 0 and out.startswith(f"{found} runs are in {tmp_path / 'file'} (")
        assert len(contents(tmp_path / "file")) == 4 * found + 1


def test_a_teacher_that_is_gone_is_told(trained, tmp_path, monkeypatch, call):
    run = plan(tiny("kd", T=3.0))
    shutil.copytree(trained / run.id, tmp_path / "runs" / run.id)
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / "runs"))
    code, out, (line,) = call("pack", str(tmp_path / "file"), run.id)
    assert (
        code == 0 and out.startswith("1 runs") and f"without its teacher {run.teacher.id}" in line
    )


def test_a_pack_is_written_whole_or_not_at_all(trained, tmp_path, monkeypatch, call):
    monkeypatch.setenv("KDKIT_RUNS", str(trained))
    records = pack.chosen([], {})
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="not written: full"):
        pack.pack(tmp_path / "file", records)
    assert os.listdir(tmp_path) == []


def evil(file, name=None, content=b"", **changes):
    """The pack with one file more, changed or, without content, one less."""
    inside = contents(file)
    about = json.loads(inside.pop(pack.MANIFEST)) | changes
    with zipfile.ZipFile(file, "w") as archive:
        for each, blob in inside.items():
            if each != name or content:
                archive.writestr(each, content if each == name else blob)
        if isinstance(name, zipfile.ZipInfo) or name not in (None, *inside):
            archive.writestr(name, content)
            listed = getattr(name, "filename", name)
            about["files"][listed] = [len(content), hashlib.sha256(content).hexdigest()]
        archive.writestr(pack.MANIFEST, json.dumps(about))


def link():
    info = zipfile.ZipInfo(f"{'a' * 12}/weights.pt")
    info.external_attr = 0o120777 << 16
    return info


def first(file, part):
    return min(name for name in contents(file) if name.endswith(part))


def listing(file, change):
    """The pack with another list of files in its manifest."""
    listed = json.loads(contents(file)[pack.MANIFEST])["files"]
    change(listed, first(file, "weights.pt"))
    evil(file, files=listed)


def repack(file, **options):
    inside = contents(file)
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, blob in inside.items():
            archive.writestr(name, blob)


def resealed(file, **changes):
    """The pack with a record that was changed and given new checksums."""
    name = first(file, "record.json")
    meta = json.loads(contents(file)[name]) | changes
    del meta["sha256"]
    blob = json.dumps({**meta, "sha256": store._meta_sha256(meta)}).encode()
    evil(file, name, blob)
    listing(file, lambda listed, _: listed.update({name: [len(blob), sha256(blob)]}))


def sha256(blob):
    return hashlib.sha256(blob).hexdigest()


def pickled(file):
    """The pack with weights that would run code, and right checksums all the way."""
    name = first(file, "weights.pt")
    blob = pickle.dumps(Explosive())
    evil(file, name, blob)
    listing(file, lambda listed, _: listed.update({name: [len(blob), sha256(blob)]}))
    meta = json.loads(contents(file)[first(file, "record.json")])
    resealed(file, files=meta["files"] | {"weights.pt": sha256(blob)})


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def overwrite(file, old, new):
    blob = file.read_bytes()
    assert old in blob
    file.write_bytes(blob.replace(old, new))


ATTACKS = {
    "escapes": (lambda f: evil(f, "../evil", b"x"), "'../evil' is not the name of a record's file"),
    "escapes a run": (
        lambda f: evil(f, f"{'a' * 12}/../../x", b"x"),
        "is not the name of a record",
    ),
    "absolute": (lambda f: evil(f, "/tmp/evil", b"x"), "'/tmp/evil' is not the name"),
    "drive": (lambda f: evil(f, "C:\\evil", b"x"), "is not the name of a record's file"),
    "folder": (lambda f: evil(f, f"{'a' * 12}/", b"x"), "is not the name of a record's file"),
    "checkpoint": (lambda f: evil(f, f"{'a' * 12}/checkpoint.pt", b"x"), "is not the name"),
    "link": (lambda f: evil(f, link(), b"/etc/passwd"), "weights.pt is not a plain file"),
    "twice": (lambda f: evil(f, zipfile.ZipInfo(first(f, "weights.pt")), b"x"), "is there twice"),
    "half a run": (lambda f: evil(f, f"{'a' * 12}/weights.pt", b"x"), "it lacks aaaaaaaaaaaa/"),
    "a file less": (
        lambda f: evil(f, first(f, "history.npz")),
        "not those that the manifest lists",
    ),
    "format": (lambda f: evil(f, format=2), "its format is 2, known is 1"),
    "not a dict": (lambda f: evil(f, files=[]), "not those that the manifest lists"),
    "no runs": (lambda f: evil(f, files={}), "not those that the manifest lists"),
    "size": (lambda f: listing(f, lambda files, n: files[n].__setitem__(0, 7)), "7 are listed"),
    "digest": (
        lambda f: listing(f, lambda files, n: files[n].__setitem__(1, "0" * 64)),
        "weights.pt is not what the manifest lists",
    ),
    "entry": (lambda f: listing(f, lambda files, n: files.update({n: "big"})), "lists"),
    "compressed": (lambda f: repack(f, compression=zipfile.ZIP_DEFLATED), "is not a plain file"),
    "bytes": (lambda f: overwrite(f, b"seconds", b"Seconds"), "record.json"),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-100]), "it does not end as a pack does"),
    "empty": (lambda f: f.write_bytes(b""), "it does not end as a pack does"),
    "cut at an array": (
        lambda f: f.write_bytes(f.read_bytes()[: f.read_bytes()[:-22].rindex(pack.END) + 22]),
        ".npy' is not the name of a record's file",
    ),
    "other zip": (lambda f: zipfile.ZipFile(f, "w").close(), "it has no manifest"),
    "other id": (lambda f: resealed(f, id="b" * 12), "do not belong here"),
    "other format": (lambda f: resealed(f, format=99), "format 99 and id"),
    "other files": (lambda f: resealed(f, files={"/etc/passwd": ""}), "damaged record"),
    "missing": (lambda f: f.unlink(), "there is no such file"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_wrong_with_a_pack_is_told_before_anything_is_written(packed, call, attack):
    harm, why = ATTACKS[attack]
    harm(packed)
    code, out, (line,) = call("unpack", str(packed))
    assert (code, out) == (2, "") and line.startswith(f"kdkit: {packed}: ") and why in line
    assert [p for p in packed.parent.iterdir() if p != packed] == []


def test_no_byte_of_a_pack_can_change_unseen(packed, tmp_path):
    """Wherever it is cut or a byte differs, it is refused in one way, or nothing has changed."""
    whole, draw = packed.read_bytes(), np.random.default_rng(0)
    wanted, refused = contents(packed), 0
    for place in draw.integers(0, len(whole), 25).tolist() + list(range(-250, 0, 10)):
        cut = bytearray(whole)
        cut[place] ^= 1 << int(draw.integers(8))
        for blob in (bytes(cut), whole[:place]):
            packed.write_bytes(blob)
            try:
                done, _ = pack.unpack(packed)
            except ValueError:
                refused += 1
            else:
                for name in wanted.keys() - {pack.MANIFEST} if done else ():
                    assert (tmp_path / "runs" / name).read_bytes() == wanted[name]
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert refused > 80


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_that_would_run_code_do_not(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled(packed)
    pack.unpack(packed)  # its checksums are right; who made it could have made it
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        store.read(tmp_path / "runs" / first(packed, "weights.pt").partition("/")[0]).model()
    assert not (tmp_path / "exploded").exists()


def test_unpacking_meets_a_run_under_way_a_damaged_one_and_a_full_disk(
    packed, tmp_path, monkeypatch, call
):
    run, teacher = plan(tiny("kd", T=3.0)), plan(tiny())
    store.write_checkpoint(teacher, {"epoch": 0})
    damaged = tmp_path / "runs" / run.id
    store.write(damaged / "record.json", b"{}")

    def full(path, blob):
        if path.parent.name == run.id and path.name == "record.json":
            raise OSError(28, "full")
        project.write(path, blob)

    with store.locked(teacher.id), monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        code, out, said = call("unpack", str(packed))
    assert code == 1 and "full" in said[-1] and not damaged.exists()
    with store.locked(teacher.id):  # as while it trains
        code, out, said = call("unpack", str(packed))
    assert out.startswith("1 runs are new") and "trained by another process just now" in said[0]
    assert call("unpack", str(packed))[1].startswith("1 runs are new")
    assert store.find(teacher) and not (tmp_path / "runs" / teacher.id / "checkpoint.pt").exists()
    assert [why for _, why in leftovers.find()] == ["a damaged record that was set aside"]
