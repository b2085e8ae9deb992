"""The walk in a folder of one's own, from the project and from the wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from test_class import state

from kdkit.study import handout, notebooks, project, reference, store, walk
from kdkit.study.plans import plan, preset

ROOT = Path(__file__).parents[1]


def page(*texts):
    cells = [{"cell_type": "markdown", "source": text.splitlines(True)} for text in texts]
    return json.dumps({"cells": [*cells, {"cell_type": "code", "source": ["[a](../no.md)"]}]})


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project with one notebook, its solution and what they link to."""
    folder = tmp_path / "project"
    files = {
        "notebooks/00_first.ipynb": page(
            "![a](../figures/a.png) and [b](<../figures/b.png> 'b')",
            '<img src="../figures/c%20d.svg"> [words](../README.md#glossary)',
            "[x](https://example.org/x.md) [code](../kdkit/fields.py) [gone](../figures/gone.png)",
            "[mine](../figures/local/mine.png) [above](../../above.md)",
        ),
        "notebooks/solutions/00_first.ipynb": page("[back](../00_first.ipynb)"),
        "notebooks/untitled.ipynb": page(),
        "figures/local/mine.png": "mine",
        "figures/unused.png": "unused",
        "README.md": "[rows](benchmarks/rows.csv) [again](notebooks/00_first.ipynb)",
        "kdkit/fields.py": "",
        **{f"figures/{name}": name for name in ("a.png", "b.png", "c d.svg")},
        **{f"benchmarks/{name}.csv": name for name in ("reference", "reference_faces", "rows")},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (tmp_path / "above.md").write_text("above")
    monkeypatch.setattr(project, "checkout", lambda: folder)
    monkeypatch.setattr(handout, "checkout", project.checkout)
    return folder


WALK = {
    "README.md",
    "benchmarks/reference.csv",
    "benchmarks/reference_faces.csv",
    "benchmarks/rows.csv",
    "figures/a.png",
    "figures/b.png",
    "figures/c d.svg",
    "notebooks/00_first.ipynb",
    "notebooks/solutions/00_first.ipynb",
}


def test_what_the_walk_is(small, tmp_path):
    assert walk.files(small) == sorted(WALK)
    told = handout.lay(tmp_path / "copy")
    assert told == {"laid": sorted(WALK), "renewed": [], "kept": [], "beside": []}
    for name in WALK:
        assert (tmp_path / "copy" / name).read_bytes() == (small / name).read_bytes()
    assert {p.name for p in (tmp_path / "copy").iterdir()} == {
        project.LAID,
        "README.md",
        "benchmarks",
        "figures",
        "notebooks",
    }


def test_what_its_owner_changed_stays(small, tmp_path):
    folder, name = tmp_path / "copy", "notebooks/00_first.ipynb"
    mine, new = folder / name, folder / "notebooks/new_00_first.ipynb"
    handout.lay(folder)
    before = state(folder)
    assert not any(handout.lay(folder).values()) and before.keys() == state(folder).keys()
    (folder / "figures/a.png").unlink()
    assert handout.lay(folder)["laid"] == ["figures/a.png"]  # what was lost comes again

    mine.write_text("edited")
    assert handout.lay(folder)["kept"] == [name] and not new.exists()  # there is no news
    for version in ("second", "third"):
        (small / name).write_text(page(version, "[b](../figures/b.png)"))
        (small / "benchmarks/reference.csv").write_text(version)
        told = handout.lay(folder)
        assert told["kept"] == [name] and told["renewed"] == ["benchmarks/reference.csv"]
        assert told["beside"] == ["notebooks/new_00_first.ipynb"]
        assert mine.read_text() == "edited" and new.read_text() == (small / name).read_text()
    text = handout.told(folder, told)
    assert f"kept as you changed it: {name}; its new version is notebooks/new_00_first" in text
    assert handout.lay(folder)["beside"] == [] and "new version" not in handout.told(
        folder, handout.lay(folder)
    )

    new.write_text("edited, too")
    (small / name).write_text(page("fourth"))
    assert handout.lay(folder)["beside"] == [] and new.read_text() == "edited, too"
    mine.write_text((small / name).read_text())  # taken over by hand
    assert handout.lay(folder)["kept"] == []
    (folder / project.LAID).write_text("not JSON")
    mine.write_text("edited")
    assert handout.lay(folder)["kept"] == [name] and mine.read_text() == "edited"


def test_a_copy_in_the_project_is_out_of_gits_view(small, call):
    git = ["git", "-C", str(small), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    for folder in ("walk", "else where"):
        assert call("lab", str(small / folder), "--only-copy")[0] == 0
        (small / folder / "notebooks/00_first.ipynb").write_text("edited")
        (small / folder / "notebooks/mine.ipynb").write_text("new")
    assert subprocess.run([*git, "status", "--porcelain"], capture_output=True).stdout == b""
    for folder in (small, small / "notebooks"):
        before = state(folder)
        code, _, (line,) = call("lab", str(folder), "--only-copy")
        assert code == 2 and "is a folder of the project itself: name a new one" in line
        assert state(folder) == before
    code, _, (line,) = call("lab", str(small / "README.md"))
    assert code == 2 and line.endswith("README.md is a file: name a folder")


def test_lab_opens_the_copy(small, tmp_path, monkeypatch, call):
    seen = []
    monkeypatch.setattr(os, "execve", lambda *args: seen.append(args))
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.chdir(tmp_path)
    assert call("lab", "copy")[1] == f"{tmp_path / 'copy'}: 9 files laid\n"
    assert (
        call("lab", "copy", "--no-browser")[1]
        == f"{tmp_path / 'copy'}: the walk is there already\n"
    )
    for (python, command, env), more in zip(seen, ([], ["--no-browser"]), strict=True):
        assert python == command[0] == sys.executable and command[1:3] == ["-m", "jupyterlab"]
        assert command[3:] == [
            f"--notebook-dir={tmp_path / 'copy'}",
            "--LabApp.default_url=/lab/tree/notebooks",
            *more,
        ]
        assert env["PYTHONPATH"].split(os.pathsep) == [str(small), "before"]
    monkeypatch.setitem(sys.modules, "jupyterlab", None)  # as where it is not installed
    code, _, (line,) = call("lab", "copy")
    assert code == 1 and "this needs jupyterlab" in line and len(seen) == 2


def test_where_an_installed_kit_is_at_home(small, tmp_path, monkeypatch):
    """In the folder that it filled, from wherever in it; else where it is started."""
    bundle = Path(shutil.copytree(small, tmp_path / "bundle"))
    for module in (project, handout, store):
        monkeypatch.setattr(module, "checkout", lambda: None)
    for module in (project, handout):
        monkeypatch.setattr(module, "BUNDLED", bundle)
    for name in ("KDKIT_RUNS", "KDKIT_FIGURES", "KDKIT_DATA"):
        monkeypatch.delenv(name, raising=False)
    work, folder = tmp_path / "work", tmp_path / "work/copy"
    (work / "notebooks").mkdir(parents=True)
    (work / "notebooks/00_other.ipynb").write_text(page())
    (work / ".git").mkdir()
    monkeypatch.chdir(work)
    assert project.home() == work and project.root() == work / "runs"
    assert reference.folder() == bundle / "benchmarks"
    assert notebooks.notebooks() == [bundle / "notebooks/00_first.ipynb"]  # not the stranger's
    assert store.commit() is None  # that repository is not the kit's
    handout.lay(folder)
    assert not (folder / ".gitignore").exists()
    for place in (folder, folder / "notebooks/solutions"):
        monkeypatch.chdir(place)
        assert project.home() == folder and project.root() == folder / "runs"
        assert reference.folder() == folder / "benchmarks"
        assert notebooks.notebooks() == [folder / "notebooks/00_first.ipynb"]
        assert project.place("KDKIT_FIGURES", "figures/local") == folder / "figures/local"
        monkeypatch.setenv("KDKIT_RUNS", os.pathsep.join(["mine", "/teacher"]))
        assert project.stores() == (folder / "mine", Path("/teacher"))
        monkeypatch.delenv("KDKIT_RUNS")
    shutil.rmtree(bundle)
    with pytest.raises(ValueError, match="holds no notebooks: this kdkit was built without them"):
        handout.lay(tmp_path / "other")


def test_links_lead_in_a_copy_where_they_lead_in_the_project(tmp_path):
    handout.lay(tmp_path)
    pages = sorted(tmp_path.glob("notebooks/**/*.ipynb"))
    assert len(pages) >= len(notebooks.notebooks()) > 10
    for path in pages:
        text = "\n".join(
            "".join(cell["source"])
            for cell in json.loads(path.read_text())["cells"]
            if cell["cell_type"] == "markdown"
        )
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            there = ROOT / path.parent.relative_to(tmp_path) / target
            assert (path.parent / target).exists() == there.exists(), f"{path.name}: {target}"
    assert (tmp_path / "benchmarks/reference.csv").read_bytes() == (
        ROOT / "benchmarks/reference.csv"
    ).read_bytes()


# the wheel

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
LEARNER = """
import contextlib, io, json, os
import kdkit as kd
from kdkit.study import cli, notebooks, project
os.chdir("here/notebooks")
assert cli.main(["train", "baseline", "--set", "epochs=1"]) == 0
with contextlib.redirect_stdout(io.StringIO()):
    rows = len(kd.lab("lesson", seeds="reference").figure("results"))
    own = len(kd.lab(epochs=1).figure("baseline_curves"))
print(json.dumps([kd.__file__, str(project.home()), rows, own, len(notebooks.notebooks())]))
"""
EXECUTE = """
import os, sys
from kdkit.study import notebooks, project
os.chdir("here")
done = project.root() / "executed.ipynb"
notebooks.run_notebook(project.walk_folder() / "notebooks" / sys.argv[1], done)
print(done)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the project is installed from."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", *walk.files(ROOT)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(ROOT / "kdkit", folder / "kdkit", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The project's wheel, built where an earlier one was."""
    out = tmp_path_factory.mktemp("wheel")
    stale = source / "build/lib/kdkit/assets/walk/notebooks/99_old.ipynb"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier build")
    subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True
    )
    return next(out.glob("kdkit-*.whl"))


@pytest.fixture
def bare(tmp_path):
    """run(*command): what it prints, in an empty folder and an environment of its own.

    What kdkit needs, and pip, come from this session's environment, so that no network is asked.
    """
    env, work = tmp_path / "env", tmp_path / "empty"
    work.mkdir()
    bin_ = env / ("Scripts" if os.name == "nt" else "bin")
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("KDKIT_", "PYTHONPATH"))}
    settings |= {"KDKIT_BATCH": "1", "KDKIT_PRESET": "smoke", "PIP_NO_INDEX": "1"}
    settings |= {"PIP_NO_BUILD_ISOLATION": "0"}  # pip's way to say so in a variable
    settings["PATH"] = os.pathsep.join([str(bin_), os.environ["PATH"]])

    def run(*command, cwd=work):
        first = [shutil.which(command[0], path=settings["PATH"]), *command[1:]]
        ran = subprocess.run(first, cwd=cwd, env=settings, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    run.site = run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(run.site) / "needs.pth").write_text(sysconfig.get_path("purelib"))
    run.folder = work
    return run


def test_the_wheel_holds_the_walk(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        inside = {n.partition("assets/walk/")[2] for n in archive.namelist() if "assets/walk/" in n}
    assert inside == set(walk.files(ROOT)) and wheel.stat().st_size < 15e6


@pytest.mark.slow
def test_the_wheel_teaches_without_make_and_git(wheel, bare):
    bare("python", "-m", "pip", "install", f"{wheel}[study]")
    assert bare("kdkit", "lab", "here", "--only-copy").endswith("files laid\n")
    file, home, rows, own, pages = json.loads(bare("python", "-c", LEARNER).splitlines()[-1])
    here = bare.folder / "here"
    assert file.startswith(bare.site) and home == str(here)
    assert rows > 20 and own > 0 and pages == len(notebooks.notebooks())
    executed = bare("python", "-c", EXECUTE, "01_baseline.ipynb").splitlines()[-1]
    assert "traceback" not in Path(executed).read_text()
    assert [path.name for path in bare.folder.iterdir()] == ["here"]
    assert (here / "runs" / plan(preset("smoke", epochs=1)).id / "record.json").exists()
    assert {"runs", "figures"} < {path.name for path in here.iterdir()}


@pytest.mark.slow
def test_binders_commands_run(source, bare):
    (source / "binder").mkdir()
    script = shutil.copy(ROOT / "binder/postBuild", source / "binder/postBuild")
    out = bare("bash", script, cwd=source)
    assert f" {source / 'kdkit'}\n" in out and "not installed" not in out
    assert not (source / "kdkit/assets/walk").exists()  # it is where it was
