"""No test writes into the checkout, asks for a front end or takes more than one core."""

import os
from pathlib import Path

import pytest
import torch


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
