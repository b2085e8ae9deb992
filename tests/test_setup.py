"""Set-up: one list of dependencies, the Makefile's promises, what CI runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import kdkit as kd
from kdkit.study import cli

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


def needs(name):
    """A requirement of pyproject.toml, as it stands there: "torch>=2.9"."""
    lists = [PROJECT["dependencies"], *EXTRAS.values()]
    return next(text for each in lists for text in each if re.match(rf"{name}\b", text))


def commands_of(text):
    """[["make", "lab"], ["python", "-m", "kdkit", "doctor"], ...] of a shell script."""
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "set "))]
    return [shlex.split(line) for line in lines]


def check_command(words):
    """A command that is named in a file for a service is one that there is."""
    if words[0] == "make":
        assert words[1] in set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    elif words[:3] == ["python", "-m", "kdkit"]:
        cli.parse(words[3:])
    else:
        assert words[:3] == ["python", "-m", "pip"] and words[3] in ("install", "wheel")
        assert set(re.findall(r"\[(\w+)\]", words[-1])) <= EXTRAS.keys()
        assert words[-1].startswith(".")


def test_binder_gets_torch_without_cuda_and_the_study_kit():
    conda = yaml.safe_load((ROOT / "binder/environment.yml").read_text())
    assert conda["channels"] == ["conda-forge"]
    torch, vision = needs("torch"), needs("torchvision")
    assert conda["dependencies"] == [
        "python=3.11",
        "pip",
        torch.replace("torch", "pytorch-cpu"),
        vision,
    ]
    script = ROOT / "binder/postBuild"
    assert os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text()
    found = commands_of(script.read_text())
    assert found[0][-1] == ".[study]" and found[1] == ["python", "-m", "kdkit", "doctor"]
    for words in found:
        check_command(words)


def test_a_container_is_set_up_as_the_readme_says():
    told = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    check_command(shlex.split(told["postCreateCommand"]))
    image, user = (ROOT / ".devcontainer" / told["build"]["dockerfile"]).read_text(), "learner"
    assert told["remoteUser"] == user and image.rstrip().endswith(user)
    assert "\nFROM python:3.11\n" in image  # the oldest that pyproject.toml allows
    assert PROJECT["requires-python"] == ">=3.11"


def test_colab_installs_the_wheel(tmp_path, monkeypatch):
    page = (ROOT / "binder/README.md").read_text()
    assert "None of the three services has been tried yet" in page
    for block in re.findall(r"```sh\n(.*?)```", page, re.S):
        for words in commands_of(block):
            check_command(words)
    for command in re.findall(r"`((?:make|python) .*?)`", page):
        check_command(command.split())
    (cell,) = re.findall(r"```python\n(.*?)```", page, re.S)
    monkeypatch.chdir(tmp_path)
    name = f"kdkit-{kd.__version__}-py3-none-any.whl"
    (tmp_path / name).touch()
    *code, install = cell.strip().splitlines()
    exec("\n".join(code), space := {})
    asked = re.fullmatch(r'%pip install --quiet "(.*)"', install)[1].format(**space)
    assert asked == f"{name}[study]" and "study" in EXTRAS


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
