"""Faults that were found once, each with its kind."""

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import kdkit as kd
from kdkit.methods.relation import relations
from kdkit.models import Out
from kdkit.study import plans, project, statistics, store, teach

SHORT = {"n_train": 100, "batch": 25, "epochs": 1}


def failing(monkeypatch, times, number):
    """The next `times` readings of a file fail with this error number."""
    real, left = Path.read_bytes, [times]

    def read(self):
        if left[0] > 0:
            left[0] -= 1
            raise OSError(number, "now and then")
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_passing_error_costs_no_record(runs, monkeypatch, number):
    run = plans.preset("smoke", **SHORT)
    record = kd.get(run)
    with monkeypatch.context() as patch:
        failing(patch, 2, number)
        assert store.find(run).id == record.id  # read again
    with monkeypatch.context() as patch:
        failing(patch, 99, number)
        with pytest.raises(OSError, match="now and then"):
            kd.get(run)
        assert store.records()[0] == []  # it is told, and nothing is set aside
    assert store.find(run).id == record.id
    assert not list(runs.glob("*.damaged-*"))


def test_a_passing_error_costs_no_checkpoint(runs, monkeypatch):
    run = plans.preset("smoke", **SHORT)
    store.write_checkpoint(run, {"epoch": 0})
    with monkeypatch.context() as patch:
        failing(patch, 99, errno.EIO)
        with pytest.raises(OSError, match="now and then"):
            store.read_checkpoint(run)
    assert store.read_checkpoint(run) == {"epoch": 0}


@pytest.mark.parametrize("lacks", ["result", "code", "created", "seconds", "history"])
def test_a_record_that_lacks_a_field_is_damaged(runs, lacks, call):
    record = kd.get(plans.preset("smoke", **SHORT))
    meta = json.loads((record.path / "record.json").read_text())
    meta = {k: v for k, v in meta.items() if k not in ("sha256", lacks)}
    sealed = {**meta, "sha256": store._meta_sha256(meta)}
    store.write(record.path / "record.json", json.dumps(sealed).encode())
    assert store.find(record.run) is None and len(store.records()[2]) == 1
    assert call("runs")[0] == 0


def test_places_are_the_projects_and_a_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_RUNS", "elsewhere/runs")
    assert project.root() == project.home() / "elsewhere" / "runs"
    monkeypatch.setenv("KDKIT_RUNS", "~/runs")
    assert project.root() == Path.home() / "runs"


def test_packages_are_not_hidden():
    import kdkit.methods.okddip as module

    assert module.OKDDip is kd.OKDDip and kd.methods.okddip is module


def test_a_leader_of_another_width():
    """The attention compares the peers alone."""
    method = kd.OKDDip(m=3, based="network")
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(3, 4, 5, generator=draw)
    h = [torch.randn(4, width, generator=draw) for width in (16, 16, 24)]
    s = Out(z, (), (), tuple(h))
    method.build(kd.methods.Probe(s, None, 5, torch.arange(4)))
    terms = method.terms(s, torch.arange(4), None, kd.methods.Step())
    assert all(torch.isfinite(v) for v in terms.values())
    wrong = s._replace(pooled=(h[0], h[2], h[1]))
    with pytest.raises(ValueError, match="its peers need one width"):
        method.terms(wrong, torch.arange(4), None, kd.methods.Step())


def test_rows_that_coincide_count_in_rkds_mean():
    h = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    distances, _ = relations(h)
    mean = 2 * (0 + 5 + 5) / 6  # of the six ordered pairs
    torch.testing.assert_close(distances[0], torch.tensor([0.0, 0.0, 5.0]) / mean)
    assert torch.isfinite(relations(torch.ones(3, 2))[0]).all()


@pytest.mark.parametrize("n, t", [(2, 12.706), (3, 4.303), (11, 2.228), (16, 2.131), (31, 2.042)])
def test_the_t_interval_is_right_for_any_n(n, t):
    values = np.arange(n, dtype=float)
    _, _, half = statistics.paired(values, np.zeros(n))
    assert half == pytest.approx(t * values.std(ddof=1) / math.sqrt(n), rel=1e-6)


def test_a_read_only_folder_is_a_warning(monkeypatch, runs):
    record = kd.get(plans.preset("smoke", **SHORT))
    lab = teach.lab("smoke", seeds=1, **SHORT)

    def closed(path, data):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(project, "write", closed)
    monkeypatch.setattr(store, "write", closed)
    kd.figure("only_here", runs=[{"method": "baseline"}])
    with pytest.warns(UserWarning, match="the figure is shown and not saved"):
        table = lab.figure("only_here")
    kd.figures.FIGURES.pop("only_here")
    assert len(table) == 1 and record.id in table.attrs["runs"]


def test_one_field_one_value(call, runs):
    spaced, tight = (
        plans.plan(plans.preset("smoke", method="dml", m=2, student=text)).id
        for text in ("resnet8, resnet14", "resnet8,resnet14")
    )
    assert spaced == tight
    same = (
        plans.plan(plans.preset("smoke", method="dml", m=2, student=text)).id
        for text in ("resnet8,resnet8", "resnet8")
    )
    assert len(set(same)) == 1
    for options, says in (
        (["--set", "epochs=1", "--set", "epochs=2"], "epochs is given twice"),
        (["--seed", "1", "--set", "seed=2"], "seed is given twice"),
        (["--data", "lesson", "--set", "data=glyphs_few"], "data is given twice"),
        (["--set", "epoch=5"], "did you mean epochs"),
        (["--epochs", "5"], "write --set epochs=VALUE"),
    ):
        code, out, err = call("train", "kd", "--preset", "smoke", *options)
        assert (code, out, len(err)) == (2, "", 1) and says in err[0], err
    code, _, err = call("sweep", "kd", "--preset", "smoke", "--set", "seed=3")
    assert code == 2 and "--seeds" in err[0]


def test_hints_look_among_the_runs_fields_too():
    with pytest.raises(ValueError, match="unknown field of kd 'epoch': did you mean epochs"):
        plans.plan(plans.preset("smoke", method="kd", epoch=5))


def test_lab_get_takes_a_callback(runs):
    seen = []
    teach.lab("smoke", seeds=1, **SHORT).get(on_epoch=lambda state: seen.append(state.epoch))
    assert seen == [0]


def test_a_field_that_hides_behind_the_runs(own_methods):
    class Hides(kd.Baseline):
        name, title = "hides", "Hides"
        lr: float = 0.5

    with pytest.raises(ValueError, match="hides: lr is a field of every run"):
        plans.plan(plans.preset("smoke", method="hides"))


def test_what_was_not_finite_first_is_blamed(runs, own_methods):
    class Breaks(kd.Baseline):
        name, title = "breaks", "Breaks"

        def weights(self):
            return {"ce": 1.0, "late": 1.0, "early": 1.0}

        def terms(self, s, y, t, step):
            ce = step.ce(s.logits, y)
            return {"ce": ce, "late": ce / (1.0 if step.epoch < 1 else 0.0), "early": ce / 0.0}

    with pytest.raises(kd.NotFinite, match="term 'early' is not finite at epoch 0, step 0, before"):
        kd.fit(
            Breaks(),
            kd.models.build("resnet8_w0.25", 1, 100),
            kd.load("glyphs_few").subset(100),
            recipe=kd.Recipe(epochs=1, batch=25),
        )


@pytest.mark.parametrize(
    "options",
    ["m=1e12", "threads=1e8", "full_tests=1e9", "epochs=1e12", "batch=1e12", "T_mult=1e9"],
)
def test_a_run_that_cannot_be_is_one_line(call, runs, options):
    code, out, err = call("train", "okddip", "--preset", "smoke", "--set", options)
    assert (code, out, len(err)) == (2, "", 1) and "must be at most" in err[0]


def test_a_temperature_that_cannot_be_is_one_line(call, runs):
    code, out, err = call("train", "kd", "--preset", "smoke", "--set", "T=1e300")
    assert (code, out, len(err)) == (2, "", 1) and "T=1e+300: must be at most 1000" in err[0]
    assert not runs.exists()
