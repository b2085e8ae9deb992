"""No test writes into the checkout, asks for a front end or takes more than one core."""

import os
from pathlib import Path

import pytest
import torch

from kdkit.methods import METHODS
from kdkit.study import cli


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile: the tests of a file stay together for what they share, but the networks
    of real size, half of all the time, come last and go wherever there is room."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            alone = "::test_each_run_trains[" in nodeid
            return nodeid if alone else super()._split_scope(nodeid)

    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


LONG = Path(__file__).with_name("long.txt")


def pytest_collection_modifyitems(items):
    """Cases of more than a moment, which `make quick` leaves out; `tests/measure.py` lists them.
    Those that wait for all notebooks are long as well, whichever of them comes first."""
    long = set(LONG.read_text().splitlines())
    for item in items:
        if item.nodeid.removeprefix("tests/") in long or "walked" in item.fixturenames:
            item.add_marker("long")


@pytest.fixture(scope="session", autouse=True)
def apart(tmp_path_factory):
    """A store and a folder of figures of this session's own, for child processes as well; in
    $KDKIT_TEST_FOLDER, which `make test` gives to all its sessions, where it is set."""
    given = os.environ.get("KDKIT_TEST_FOLDER")
    folder = Path(given) if given else tmp_path_factory.mktemp("session")
    ours = {
        "KDKIT_RUNS": str(folder / "runs"),
        "KDKIT_FIGURES": str(folder / "figures"),
        "KDKIT_PRESET": "smoke",
        "KDKIT_BATCH": "1",
        "OMP_NUM_THREADS": "1",
    }
    before = {k: os.environ.get(k) for k in [*ours, "KDKIT_SEEDS"]}
    os.environ.pop("KDKIT_SEEDS", None)
    os.environ.update(ours)
    torch.set_num_threads(1)
    yield folder
    for k, v in before.items():
        os.environ.pop(k, None) if v is None else os.environ.update({k: v})


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty store."""
    monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def own_methods():
    """The methods' registry; what a test defines is forgotten after it."""
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


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
