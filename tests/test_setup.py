"""Set-up: one list of dependencies, the Makefile's promises, what CI runs."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FAKE = '#!/bin/sh\necho "$@" >> "{log}"\ncase "$*" in {fails}) exit 1;; esac\n'


def names(requirements):
    return {re.match(r"[\w-]+", text)[0] for text in requirements}


def test_what_the_engine_needs_and_what_the_extras_add():
    assert names(PROJECT["dependencies"]) == {"torch", "numpy", "tqdm", "filelock"}
    asked = "torchvision jupyterlab ipywidgets matplotlib seaborn pandas papermill scipy"
    assert names(EXTRAS["study"]) == set(asked.split())
    assert {"pytest", "nbval"} <= names(EXTRAS["test"])
    assert PROJECT["scripts"] == {"kdkit": "kdkit.study.cli:main"}


def test_conda_installs_every_extra():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge"]
    assert conda["dependencies"][:2] == ["python=3.11", "pip"]
    assert conda["dependencies"][2]["pip"] == [f"-e .[{','.join(EXTRAS)}]"]


def test_make_installs_every_extra_and_asks_for_all_of_them(bench, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n')
    python.chmod(0o755)
    done, log = bench("ready", f"PYTHON={python}")
    assert f"-e .[{','.join(EXTRAS)}]" in log, done.stderr
    asks = bench("-n", "ready", "VENV=elsewhere")[0].stdout.splitlines()[0]
    code = re.search(r'-c "(.*)" 2>', asks)[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch"]\n[project.optional-dependencies]\nx = ["nosuch>=1"]'
    )
    poor = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert poor.returncode == 1


def test_commands_of_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:`|^)make (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert {"figures", "test", "lab"} <= named <= targets


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()
    assert lines[0].endswith("bash") and "set -euo pipefail" in lines
    assert "CI=true make test" in lines and os.access(script, os.X_OK)


@pytest.fixture
def bench(tmp_path):
    """(make, log): the Makefile in a folder of its own, with a .venv whose python only logs."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    log = tmp_path / "log"

    def python(path, fails="none"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE.format(log=log, fails=fails))
        path.chmod(0o755)

    def make(*args, **env):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("KDKIT", "MAKE", "MFL"))}
        log.write_text("")
        done = subprocess.run(
            ["make", *args], cwd=tmp_path, env={**clean, **env}, capture_output=True, text=True
        )
        return done, log.read_text()

    python(tmp_path / ".venv/bin/python")
    make.python = python
    make.folder = tmp_path
    return make


def test_a_second_call_does_not_install_again(bench):
    assert "pip install" in bench("ready")[1]
    assert bench("ready")[1] == ""
    stamp = (bench.folder / ".venv/.ready").stat().st_mtime
    os.utime(bench.folder / "pyproject.toml", (stamp + 5, stamp + 5))
    assert "pip install" in bench("ready")[1]


def test_another_environment_is_used_as_it_is(bench):
    other = bench.folder / "other/bin/python"
    bench.python(other)
    done, log = bench("figures", f"VENV={bench.folder / 'other'}")
    assert done.returncode == 0 and "pip" not in log and "-m kdkit figures" in log
    bench.python(other, fails="*tomllib*")  # one that lacks something
    assert "pip install" in bench("figures", f"VENV={bench.folder / 'other'}")[1]


@pytest.mark.parametrize("fails, says", [("*version_info*|-V", "3.11"), ("*ensurepip*", "venv")])
def test_no_python_that_will_do_is_one_clear_line(bench, fails, says):
    bench.python(bench.folder / "poor", fails)
    done, _ = bench("ready", f"PYTHON={bench.folder / 'poor'}", "VENV=nowhere")
    told = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode and len(told) == 1 and told[0].startswith("kdkit: ") and says in told[0]


@pytest.mark.parametrize(
    "copy, told",
    [
        (None, "-m jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks"),
        ("1", "-m kdkit lab walk"),
        ("/my/place 1", "-m kdkit lab /my/place 1"),
    ],
)
def test_what_lab_opens(bench, copy, told):
    bench("ready")
    assert bench("lab", *([] if copy is None else [f"COPY={copy}"]))[1] == told + "\n"


@pytest.mark.parametrize(
    "args, env, folder, told",
    [
        ((), {}, "", "-m kdkit figures"),
        (("SEEDS=reference",), {}, "{root}/figures", "--seeds reference"),
        (("SEEDS=3",), {}, "", "--seeds 3"),
        (("SEEDS=reference",), {"KDKIT_FIGURES": "/else"}, "/else", "--seeds reference"),
    ],
)
def test_where_figures_are_drawn(bench, args, env, folder, told):
    bench.python(bench.folder / ".venv/bin/python")
    shell = bench.folder / ".venv/bin/python"
    shell.write_text(shell.read_text() + f'echo "to=$KDKIT_FIGURES" >> "{bench.folder}/log"\n')
    log = bench("figures", *args, **env)[1]
    assert told in log
    assert f"to={folder.format(root=bench.folder)}\n" == log.splitlines(keepends=True)[-1]
