"""As published beside ours: differences against sums by hand and a made-up reference."""

import numpy as np
import pytest

import kdkit as kd
from kdkit.study import reference, statistics, store
from kdkit.study.papers import runs as papers_runs
from kdkit.study.plans import plan, preset


@pytest.fixture
def reference_of(monkeypatch):
    """A reference whose accuracies are given by number(method, seed); nothing is trained."""

    def make(runs, number):
        rows = {}
        for run in runs:
            planned = plan(run)
            rows[planned.id] = dict.fromkeys(reference.COLUMNS, "") | {
                "method": run.method,
                "seconds": "1",
                "top1_deployed": f"{number(planned.run):.4f}",
            }
        made = reference.Reference(rows, {}, {})
        monkeypatch.setattr(reference, "load", lambda: made)
        monkeypatch.setattr(store, "find", lambda run: None)

    return make


def runs(*methods, seeds=3, **fields):
    return [preset("lesson", method=m, seed=s, **fields) for m in methods for s in range(seeds)]


def test_published_and_ours(reference_of):
    gains = {"baseline": 0.0, "kd": 2.0, "fitnet": -1.0}
    reference_of(
        runs(*gains)[:-1],  # FitNet has one seed less
        lambda run: 80 + gains[run.method] + run.seed * (1.5 if run.method == "kd" else 1),
    )
    table = kd.against("dckd:2", ["KD", "FitNet"], "Student")
    printed = kd.cells("dckd:2").pivot(index="column", columns="row", values="published")
    for name in ("KD", "FitNet"):
        gain = printed[name] - printed["Student"]
        row = table.set_index("method").loc[name]
        wanted = gain.mean().round(2), gain.min().round(2), gain.max().round(2), 7
        assert tuple(row[["published", "least", "most", "networks"]]) == pytest.approx(wanted)
    kd_row, fitnet = (table.loc[k] for k in (1, 2))
    assert (kd_row["ours"], kd_row["n"], fitnet["ours"], fitnet["n"]) == (2.5, 3, -1.0, 2)
    assert kd_row["±"] == round(statistics.half_width(0.5, 3), 2) and fitnet["±"] == 0
    assert kd_row["ours - published"] == pytest.approx(2.5 - kd_row["published"], abs=0.011)


def test_errors_count_downwards_and_groups_have_their_mean(reference_of):
    reference_of([], lambda run: 0)
    table = kd.against("okddip:2", ["DML", "OKDDip (branch)"], "Ind")
    printed = kd.cells("okddip:2").pivot(index="row", columns="column", values="published")
    assert table["published"].tolist() == pytest.approx(
        [(printed["Ind"] - printed[name]).mean().round(2) for name in table["method"]]
    )
    assert table["n"].tolist() == [0, 0] and np.isnan(table["ours"]).all()
    group = kd.against("dckd:2", ["DCKD"], "KD")["published"].iloc[0]
    three = kd.cells("dckd:2").pivot(index="column", columns="row", values="published")
    nets = three[[f"DCKD Net{k}" for k in (1, 2, 3)]].mean(axis=1)
    assert group == pytest.approx((nets - three["KD"]).mean(), abs=0.006)


def test_a_teacher_is_the_run_that_it_is(reference_of):
    reference_of(
        runs("baseline") + runs("baseline", student="resnet14"),
        lambda run: 90 if run.student == "resnet14" else 80,
    )
    table = kd.against("dckd:2", ["Teacher"], "Student")
    assert table["ours"].tolist() == [10] and table["n"].tolist() == [3]


def test_a_printed_ensemble_is_compared_with_an_ensemble(reference_of):
    reference_of(runs("ind") + runs("one"), lambda run: 80)
    for row in reference.load().rows.values():
        row["ensemble"] = "85.00" if row["method"] == "one" else "84.00"
    table = kd.against("okddip:4", ["ONE"], "Ind")
    assert table["ours"].tolist() == [1] and table["published"].tolist() == [-0.35]
    assert kd.against("okddip:8", ["DML"], "Baseline")["n"].tolist() == [0]


@pytest.mark.parametrize("names, control", [(["Nobody"], "Student"), (["KD"], "Nobody")])
def test_unknown_names_are_refused(names, control):
    with pytest.raises(ValueError, match="seen 'Nobody'; allowed: .*FitNet"):
        kd.against("dckd:2", names, control)


def test_levels_on_other_data_have_no_difference():
    (cell,) = papers_runs.compare("okddip:2:ResNet-32:DML")
    cell |= {"ours": 20.0, "n": 1}
    gap = papers_runs.TABLE_COLUMNS.index("diff")
    rows, _ = papers_runs.table_rows([cell], epochs=5)
    assert rows[0][gap] == f"{20 - cell['published']:+.2f}"
    for changes, seen in (({"data": "cifar100"}, True), ({"data": "lesson"}, False)):
        rows, _ = papers_runs.table_rows([cell], **changes)
        assert bool(rows[0][gap]) is seen
