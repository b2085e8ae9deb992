"""The reference's rows, the claims ledger that is computed from them, and hidden characters."""

import csv
import math

import numpy as np
import pytest
from scipy import stats

from kdkit import metrics
from kdkit.fields import fields
from kdkit.methods import method_class
from kdkit.study import cli, figures, hidden, reference, sources
from kdkit.study.papers import cells, claims
from kdkit.study.plans import label, plan, preset, unusual
from kdkit.study.runs import get
from kdkit.study.teach import lab

SIDES = sorted({row[side] for row in claims.claims() for side in ("better", "worse")})


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """An empty reference of the smoke preset."""
    monkeypatch.setattr(reference, "folder", lambda: tmp_path / "reference")
    monkeypatch.setattr(reference, "PRESET", "smoke")
    return tmp_path / "reference"


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def made_up(seeds, number, monkeypatch, preset_name="lesson"):
    """A reference whose rows are given by number(side, seed) -> accuracy; nothing is trained."""
    found, faces, epochs = {}, {}, {}
    for text in SIDES:
        for seed in seeds:
            planned = plan(claims.claim_run(text, seed, preset_name))
            value = number(text, seed)
            found[planned.id] = dict.fromkeys(reference.COLUMNS, "") | {
                "id": planned.id,
                "seconds": "1",
                "top1_deployed": f"{value:.4f}",
                "ensemble": f"{value:.4f}",
                "correlation_number": f"{value:.4f}",
            }
            faces[planned.id] = value + np.arange(100) % 3 - 1.0
            curves = dict.fromkeys(reference.EPOCHS, [value, value + 2])
            epochs[planned.id] = curves
    made = reference.Reference(found, epochs, faces)
    monkeypatch.setattr(reference, "load", lambda: made)
    return made


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"method": "baseline"},
        {"method": "dckd"},
        {"method": "okddip", "m": 6},
        {"method": "kd", "T": 2.0, "hide": "é,Q"},
        {"method": "baseline", "schedule": "step", "milestones": (0.25, 0.5)},
    ],
)
def test_a_row_gives_back_what_its_record_says(rows, change):
    record = get(preset("smoke", **change))
    assert reference.append(record) and not reference.append(record)
    found = reference.load().find(record.run)
    assert found.id == record.id and found.run == record.run
    for name, value in found.result.items():
        if record.result.get(name) is not None:
            assert np.allclose(value, record.result[name], atol=0.5 / 10 ** reference.NUMBERS[name])
    assert set(record.result) - set(found.result) <= {"best_probe", "deployed", "diversity"}
    assert [row["epoch"] for row in found.history] == [row["epoch"] for row in record.history]
    for ours, theirs in zip(found.history, record.history, strict=True):
        assert ours["lr"] == pytest.approx(theirs["lr"], rel=1e-3)
        assert sum(ours["terms"].values()) == pytest.approx(sum(theirs["terms"].values()), rel=1e-3)
        assert np.allclose(ours["probe_top1"], np.mean(theirs["probe_top1"]), rtol=1e-3)
        assert (ours["diversity"] is None) == (theirs["diversity"] is None)
    (row,) = read(rows / "reference.csv")
    again = reference.run_of(row["method"], row["fields"], int(row["seed"]), "smoke")
    assert plan(again).id == row["id"]
    assert row["data"] and record.meta["data"]["digest"].startswith(row["data"])
    (named,) = read(rows / "reference_faces.csv")
    counts = np.array(named["named"].split(), float)
    assert len(counts) == 5  # typefaces of glyphs_few
    assert counts.mean() == pytest.approx(record.result["top1_deployed"], abs=1e-3)
    with pytest.raises(ValueError, match="it has numbers alone"):
        found.logits()
    with pytest.raises(ValueError, match="it has numbers alone"):
        _ = found.arrays


def test_another_recipe_or_other_data_finds_no_row(rows):
    record = get(preset("smoke"))
    reference.append(record)
    known = reference.load()
    for change in ({"lr": 0.05}, {"seed": 1}, {"data": "glyphs_val"}, {"n_train": 300}):
        assert known.find(record.run.replace(**change)) is None
    assert known.find(record.run.replace(data="glyphs_few", preset="lesson")).id == record.id


def test_changed_code_of_a_method_is_told_and_drops_no_row(rows):
    record = get(preset("smoke", method="kd"))
    reference.append(record)
    known = reference.load()
    found = known.find(record.run)
    assert known.other_code([found]) == []
    known.rows[record.id]["code"] = "another"
    found = known.find(record.run)
    assert found is not None and known.other_code([found]) == ["KD"]


def test_a_row_that_was_not_finished_is_written_again(rows, monkeypatch):
    """Killed between two of the three files: the run has no row, and gets one the next time."""
    record, write = get(preset("smoke")), reference.write

    def dies(path, content):
        if path.name == "reference.csv":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(reference, "write", dies)
        reference.append(record)
    assert reference.load().find(record.run) is None
    assert reference.append(record)
    assert len(reference.load().find(record.run).history) == 3


# --- the ledger ----------------------------------------------------------------------------------


def test_claims_are_few_enough_and_whole():
    rows = claims.claims()
    assert 30 <= len(rows) <= 55
    assert tuple(rows[0]) == claims.FIELDS
    assert {row["paper"] for row in rows} == {"okddip", "dckd"}
    assert all(row["claim"] and row["place"].split()[0] in ("Table", "Figure") for row in rows)
    keys = [(row["better"], row["worse"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys)
    places = {(p, t) for p, t in cells()[["paper", "table"]].itertuples(index=False)}
    for row in rows:
        kind, number = row["place"].split()
        assert (row["paper"], number if kind == "Table" else f"fig{number}") in places


@pytest.mark.parametrize("text", SIDES)
def test_a_side_is_a_run_and_its_teacher_follows_its_seed(text):
    run = plan(claims.claim_run(text, 7)).run
    assert run.seed == 7 and run.preset == "lesson"
    method, _, changes = text.partition(" ")
    assert run.method == method_class(method).name
    for pair in changes.split():  # nothing is said that is so anyway
        name, value = pair.split("=")
        assert str(unusual(run)[name]) == value
        assert name in fields(method_class(method)) or hasattr(run, name)
    if plan(run).teacher:
        assert plan(run).teacher.run.seed == 7


def test_the_ledger_has_the_claims_that_the_papers_make():
    found = {(row["better"], row["worse"]) for row in claims.claims()}
    better_than_control = {("kd", "baseline"), ("ind", "baseline"), ("cl_ilr", "ind")}
    assert better_than_control | {("one", "ind"), ("dml", "ind based=network")} <= found
    assert {("okddip", w) for w in ("ind", "one", "cl_ilr", "kd")} <= found
    ablations = {b for a, b in found if a == "okddip" and ("attention" in b or "two_level" in b)}
    assert len(ablations) == 5
    assert {("dckd", m) for m in "fitnet at rkd ft cc ofd crd crd_kd reviewkd kd".split()} <= found
    teacher = preset("lesson").teacher
    assert ("dckd", f"baseline student={teacher}") in found


def test_verdicts_are_those_of_a_t_test(monkeypatch):
    rng = np.random.default_rng(3)
    values = {(text, seed): 80 + rng.normal() for text in SIDES for seed in range(10)}
    made_up(range(10), lambda text, seed: values[text, seed], monkeypatch)
    rows = claims.ledger()
    assert {row["verdict"] for row in rows} >= {claims.NOT_SHOWN}
    for row in rows:
        a, b = ([values[row[s], k] for k in range(10)] for s in ("better", "worse"))
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert row["n"] == 10
        assert row["difference"] == pytest.approx((low + high) / 2, abs=1e-3)
        assert row["half_width"] == pytest.approx((high - low) / 2, rel=1e-3)
        said = claims.SHOWN if low > 0 else claims.CONTRADICTED if high < 0 else claims.NOT_SHOWN
        if min(abs(low), abs(high)) > 1e-3:
            assert row["verdict"] == said
    assert claims.by_chance(rows) == pytest.approx(0.05 * len(rows))


def test_a_falsified_row_changes_the_verdict(monkeypatch):
    made = made_up(range(4), lambda text, seed: 80 + len(text) / 10 + seed, monkeypatch)
    before = {(r["better"], r["worse"]): r["verdict"] for r in claims.ledger(range(4))}
    one = plan(claims.claim_run("kd", 2)).id
    made.rows[one]["top1_deployed"] = "20.0"
    after = {(r["better"], r["worse"]): r["verdict"] for r in claims.ledger(range(4))}
    changed = {pair for pair in before if before[pair] != after[pair]}
    assert changed and all("kd" in pair for pair in changed)


def test_only_whole_pairs_count(monkeypatch):
    made = made_up(range(3), lambda text, seed: 80.0 + seed, monkeypatch)
    del made.rows[plan(claims.claim_run("kd", 1)).id]
    rows = {(r["better"], r["worse"]): r for r in claims.ledger(range(3))}
    assert (
        rows["kd", "baseline"]["n"] == 2 and rows["dckd", "okddip_kd based=network m=3"]["n"] == 3
    )
    made.rows.clear()
    assert {(r["n"], r["verdict"]) for r in claims.ledger(range(3))} == {(0, "")}


def test_typefaces_bring_an_uncertainty_of_their_own():
    rng = np.random.default_rng(1)
    of_face = rng.normal(2, 5, 100)
    half = claims.half_width_faces([of_face + 1, of_face - 1])
    assert half == pytest.approx(1.96 * of_face.std() / math.sqrt(100), rel=0.05)
    assert claims.half_width_faces([np.full(100, 2.0)]) == 0


def test_the_ledgers_figure_tells_chance_and_typefaces(monkeypatch):
    made_up(range(3), lambda text, seed: 80 + len(text) + seed * 0.01, monkeypatch)
    table, fig, sentences = figures.make("claims", [])
    assert list(table.columns[:10]) == list(claims.COLUMNS[:10])
    assert len(fig.axes) == 2 and len(table) == len(claims.claims())
    said = " ".join(sentences)
    assert "chance alone would give" in said and "typefaces" in said and "Contradicted" in said


# --- figures from the reference ------------------------------------------------------------------


def fill(rows, *changes, seeds=3):
    for change in changes:
        for seed in range(seeds):
            reference.append(get(preset("smoke", **change, seed=seed)))


def test_a_run_of_ones_own_is_drawn_over_the_reference(rows, monkeypatch):
    monkeypatch.setattr(reference, "SEEDS", range(3))
    fill(rows, {"method": "baseline"}, {"method": "kd"})
    one, all_of_it = lab("smoke"), lab("smoke", seeds="reference")
    own, beneath = one._records("kd_accuracy")
    assert len(own) == 2 and len(beneath) == 6
    *_, sentences = figures.make("kd_accuracy", own, beneath)
    assert (
        "runs of this store, seed 0; grey: the project's reference, seeds 0 to 2" in sentences[-1]
    )
    assert sum("not shown" in s for s in sentences) <= 1
    from_rows, none = all_of_it._records("kd_accuracy")
    assert len(from_rows) == 6 and none == []
    table, _, sentences = figures.make("kd_accuracy", from_rows)
    assert table["n"].tolist()[:2] == [3, 3] and "the project's reference" in sentences[-1]
    assert one._records("kd_temperature")[1] == []  # not all of its runs have a row


def test_rows_of_another_recipe_are_not_drawn_beneath(rows, monkeypatch):
    monkeypatch.setattr(reference, "SEEDS", range(2))
    fill(rows, {"method": "baseline"}, {"method": "kd"}, seeds=2)
    assert lab("smoke", lr=0.05)._records("kd_accuracy")[1] == []
    assert len(lab("smoke")._records("kd_accuracy")[1]) == 4


def test_what_is_drawn_from_rows_is_not_trained(rows, monkeypatch):
    monkeypatch.setattr(reference, "SEEDS", range(1))
    fill(rows, {"method": "baseline"}, {"method": "kd"}, seeds=1)
    wanted = figures.wanted("kd_accuracy", "smoke", 1, without_reference=True)
    assert wanted == [] and len(figures.wanted("kd_accuracy", "smoke", 1)) == 2
    whole = figures.wanted("calibration", "smoke", 1, without_reference=True)
    assert len(whole) == len(figures.get_figure("calibration").runs(preset("smoke")))


def test_seeds_are_a_number_or_the_reference(monkeypatch):
    assert lab("smoke", seeds="reference").reference and not lab("smoke", seeds=2).reference
    monkeypatch.setenv("KDKIT_SEEDS", "reference")
    assert lab("smoke").reference and lab("smoke").seeds == (0,)
    assert cli.parse(["figures", "--seeds", "reference"]).seeds == "reference"
    assert cli.parse(["figures", "--seeds", "3"]).seeds == 3


# --- hidden characters ---------------------------------------------------------------------------


def test_the_fitted_bias_gives_each_hidden_class_its_share():
    z = np.random.default_rng(0).normal(size=(500, 20))
    z[:, [3, 7]] -= 5
    bias = hidden.fitted_bias(z, [3, 7])
    z[:, [3, 7]] += bias
    assert np.allclose(metrics.softmax(z)[:, [3, 7]].mean(0), 1 / 20, rtol=1e-6)


def test_hidden_numbers_are_those_of_the_test_images():
    record = get(preset("smoke", method="kd", hide="é,Q", r=0.0, alpha=1.0))
    z, y = record.logits()[0][0], record.labels
    names = sources.load("glyphs").class_names
    of_hidden = np.isin(y, [names.index("é"), names.index("Q")])
    numbers = hidden.hidden_numbers(record)
    right = z.argmax(1) == y
    assert of_hidden.sum() == 10
    assert numbers["hidden_top1"] == pytest.approx(100 * right[of_hidden].mean())
    assert numbers["seen_top1"] == pytest.approx(100 * right[~of_hidden].mean())
    assert 0 <= numbers["hidden_top1_bias"] <= 100
    with pytest.raises(ValueError, match="hides no class"):
        hidden.hidden_numbers(get(preset("smoke")))
    assert "hide=Q,é" in label(record.run)
