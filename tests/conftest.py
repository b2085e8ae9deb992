"""No test writes into the checkout, asks for a front end or takes more than one core."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdkit import cli, data, train


@pytest.fixture(scope="session", autouse=True)
def apart(tmp_path_factory):
    """A store and a folder of figures of this session's own, for child processes as well; in
    $KDKIT_TEST_FOLDER, which `make test` gives to all its sessions, where it is set."""
    given = os.environ.get("KDKIT_TEST_FOLDER")
    folder = Path(given) if given else tmp_path_factory.mktemp("session")
    ours = {"KDKIT_RUNS": str(folder / "runs"), "KDKIT_FIGURES": str(folder / "figures"),
            "KDKIT_PRESET": "smoke", "KDKIT_BATCH": "1", "OMP_NUM_THREADS": "1"}
    before = {k: os.environ.get(k) for k in [*ours, "KDKIT_SEEDS"]}
    os.environ.pop("KDKIT_SEEDS", None)
    os.environ.update(ours)
    torch.set_num_threads(1)
    yield folder
    for k, v in before.items():
        os.environ.pop(k, None) if v is None else os.environ.update({k: v})


def few(*args, **kw):
    """`data.load` with 300 of the 10,000 test images."""
    d = data.load(*args, **kw)
    return replace(d, x_test=d.x_test[:300], y_test=d.y_test[:300])


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty store, and few test images."""
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(train, "load", few)
    return tmp_path / "runs"


@pytest.fixture
def call(capsys):
    """call(*args): (exit code, standard output, lines of standard error) of the command line."""
    def run(*args):
        capsys.readouterr()
        try:
            code = cli.main(list(args))
        except SystemExit as e:
            code = e.code
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()
    return run
