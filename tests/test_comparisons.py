"""Figures that compare: by hand, on made-up runs. Two parts in a square, groups with one teacher,
leads of teachers, schedules, sorted students, and what chance does."""

from types import SimpleNamespace

import numpy as np
import pytest

import kdkit as kd
from kdkit.study import figures, statistics
from kdkit.study.figures import ablations, chance, curves, teachers
from kdkit.study.plans import plan, preset


def record(top1_deployed, seed=0, result=(), history=(), **fields):
    """What a figure reads of a record."""
    run = preset("smoke", seed=seed, **fields)
    planned = plan(run)
    result = {"top1_deployed": top1_deployed} | dict(result)
    return SimpleNamespace(
        run=run, method=planned.method, id=planned.id, result=result, history=list(history)
    )


def square(accuracies):
    """Records of the four kinds: (reverse, collection) -> accuracy of each seed."""
    return [
        record(value, seed, method="dckd", reverse=reverse, collection=collection)
        for (reverse, collection), values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_a_square_by_hand():
    found = ablations.square_table(
        square(
            {
                (True, "lmax"): (80.0, 81.0, 82.0),
                (False, "lmax"): (79.0, 79.0, 82.0),
                (True, "avg"): (78.0, 80.0, 83.0),
                (False, "avg"): (78.0, 79.5, 81.0),
            }
        )
    ).set_index("label")
    worth = {
        "reverse KL, with the maximum": (1.0, 2.0, 0.0),
        "reverse KL, with the average": (0.0, 0.5, 2.0),
        "reverse KL, mean of both": (0.5, 1.25, 1.0),
        "maximum, mean of both": (1.5, 0.25, 0.0),
        "interaction, first less second": (1.0, 1.5, -2.0),
    }
    assert list(found.index[4:]) == list(worth)
    for name, values in worth.items():
        row = found.loc[name]
        assert tuple(row[["seed 0", "seed 1", "seed 2"]]) == pytest.approx(values), name
        wanted = statistics.half_width(np.std(values, ddof=1), 3)
        assert row["difference"] == pytest.approx(np.mean(values))
        assert row["half_width"] == pytest.approx(wanted) and row["pairs"] == 3
    assert found.loc["forward KL, average", "mean"] == pytest.approx(79.5)


def test_a_square_says_whether_its_parts_add_up():
    table = ablations.square_table(
        square(
            {
                (True, "lmax"): (80.0,),
                (False, "lmax"): (79.0,),
                (True, "avg"): (78.5,),
                (False, "avg"): (79.5,),
            }
        )
    )
    text = ablations.say_square(table)
    assert "-1.00 points" in text[1] and "alone by -1.50: -2.50 if they added up" in text[1]
    assert "both changes it by -0.50" in text[1] and len(text) == 2  # one seed: no verdict
    assert "Interaction, first less second: +2.00" not in " ".join(text)
    several = ablations.say_square(
        ablations.square_table(
            square({cell: (80.0, 81.0 + k, 82.0) for k, cell in enumerate(cells())})
        )
    )
    assert len(several) == 2 + 5 and all("shown" in line for line in several[2:])


def cells():
    return [(r, c) for c in ("lmax", "avg") for r in (True, False)]


def test_groups_against_the_first_and_the_last():
    kinds = [{"method": "kd"}, {"method": "dml", "m": 3, "teacher_weight": 1.0}, {"method": "dckd"}]
    accuracies = ((80.0, 81.0), (83.0, 83.0), (82.0, 84.0))
    mine = [
        record(value, seed, **fields)
        for fields, values in zip(kinds, accuracies, strict=True)
        for seed, value in enumerate(values)
    ]
    table = teachers.rivals_table(mine).set_index(["title", "control"])
    assert table.loc[("DML", "KD"), "difference"] == pytest.approx(2.5)
    assert table.loc[("DML", "DCKD"), "difference"] == pytest.approx(0.0)
    assert table.loc[("KD", "DCKD"), "difference"] == pytest.approx(-2.5)
    half = statistics.half_width(np.sqrt(0.5), 2)
    assert table.loc[("DML", "KD"), "half_width"] == pytest.approx(half)
    assert table.loc[("KD", "KD"), "pairs"] == 0 and len(table) == 6
    text = " ".join(teachers.say_rivals(table.reset_index()))
    assert "DCKD is 2.50 points above KD" in text and "DML is level with DCKD" in text
    one = teachers.say_rivals(teachers.rivals_table([r for r in mine if r.run.seed == 0]))
    assert "DML minus DCKD: +1.00 points." in one and "shown" not in " ".join(one)


def test_who_passes_the_teacher():
    mine = [record(80.0, s, method="baseline") for s in (0, 1)]
    for lr, teacher, students in ((0.01, 82.0, (81.0, 84.0)), (0.02, 90.0, (84.0, 85.0))):
        mine += [
            record(v, s, {"teacher_top1": teacher}, method="kd", teacher="resnet8", teacher_lr=lr)
            for s, v in enumerate(students)
        ]
    table = teachers.lead_table(mine)
    ours = table[table["source"] == "lesson"]
    assert ours["lead"].tolist() == [2.0, 10.0] and ours["gain"].tolist() == [2.5, 4.5]
    assert ours["passed"].tolist() == [True, False]
    printed = kd.cells("dckd:4").set_index(["row", "column"])["published"]["CIFAR-10"]
    row = table[(table["networks"] == "CIFAR-10") & (table["method"] == "dckd")].iloc[0]
    nets = printed[[f"DCKD Net{k}" for k in (1, 2, 3)]].mean()
    assert row["gain"] == pytest.approx(nets - printed["Student"]) and row["passed"]
    kd_row = table[(table["networks"] == "CIFAR-10") & (table["method"] == "kd")].iloc[0]
    assert kd_row["lead"] == pytest.approx(92.10 - 91.56) and kd_row["passed"]
    assert len(table) == 2 + 2 * (7 + 6 + 2)
    text = next(line for line in teachers.say_lead(table) if line.startswith("KD, lesson"))
    assert "leads of +2.0 points are passed by their student, those of +10.0 are not" in text
    text = next(line for line in teachers.say_lead(table) if line.startswith("DCKD, DCKD's"))
    assert "of 7 teachers with a lead below the middle one (5.0 points) 4 are passed" in text
    assert "of the 8 others 1." in text


def test_schedules_are_told_by_their_rates():
    told = {
        (1.0, 0.5, 0.02): "one cycle",
        (1.0, 0.01, 1.0, 0.5, 0.01): "1 restarts, ends with a cycle",
        (1.0, 0.01, 1.0, 0.01, 1.0, 0.9): "2 restarts, ends 2 epochs into a cycle",
    }
    for rates, text in told.items():
        assert curves.cycles_text(np.array(rates)) == text
    runs = figures.get_figure("schedules").runs(preset("lesson"))
    texts = []
    for fields in runs:
        run = preset("lesson", **fields)
        rates = [kd.recipe.learning_rate(run, epoch) for epoch in range(run.epochs)]
        texts.append(curves.cycles_text(np.array(rates)))
    assert texts[0] == "one cycle" and texts[1].endswith("ends with a cycle")
    assert texts[2].endswith("2 epochs into a cycle")


def test_the_schedules_sentences_follow_the_curves():
    def history(*accuracies, lrs):
        return [{"probe_top1": [a], "lr": lr} for a, lr in zip(accuracies, lrs, strict=True)]

    def runs(*seeds):
        once, again = history(50, 60, 70, lrs=(1, 0.5, 0.01)), history(50, 80, 40, lrs=(1, 0.01, 1))
        first = [record(81.0 + s, s, history=once, schedule="sgdr", T_0=1.0) for s in seeds]
        return first + [record(84.0, s, history=again, schedule="sgdr", T_0=0.5) for s in seeds]

    figure = figures.get_figure("schedules")
    table = figure.table(runs(0))
    text = figure.say(table)
    assert "One cycle: 81.00 % of the test images at the end; of the probe 70.00 %" in text[1]
    assert "probe 40.00 %, at most 80.00 %, after epoch 2." in text[2] and len(text) == 3
    several = figure.say(figure.table(runs(0, 1)))
    assert "1 restarts, ends 1 epochs into a cycle, is 2.50 points above one cycle" in several[3]
    assert figure.say(table, figure.table(runs(0, 1)))[3] == several[3]


def test_the_best_of_many_is_not_their_mean():
    def group(m, *tops):
        return [
            record(0.0, seed, {"top1": list(top)}, method="dckd", m=m)
            for seed, top in enumerate(tops)
        ]

    alone = [record(0.0, s, {"top1": [70.0]}, method="kd") for s in (0, 1)]
    mine = alone + group(2, (80, 82), (81, 81)) + group(3, (79, 81, 83), (80, 82, 84))
    table = ablations.students_table(mine).set_index(["m", "place"])
    assert table["mean"].to_dict() == pytest.approx(
        {
            (1, "mean"): 70.0,
            (2, "best"): 81.5,
            (2, "mean"): 81.0,
            (2, "worst"): 80.5,
            (3, "best"): 83.5,
            (3, "mean"): 81.5,
            (3, "worst"): 79.5,
        }
    )
    text = " ".join(ablations.say_students(table.reset_index()))
    assert "the best by +2.00, the mean by +0.50, the worst by -1.00 points" in text
    assert "by 0.50 (m = 2), 2.00 (m = 3) points" in text


def test_the_share_of_experiments_that_show_a_gap():
    draws = np.random.default_rng(0)
    for n, gap, spread in ((3, 0.5, 0.4), (5, 0.5, 0.4), (10, 0.3, 0.5)):
        values = draws.normal(gap, spread, (20_000, n))
        half = statistics.half_width(1.0, n) * values.std(1, ddof=1)
        simulated = (values.mean(1) > half).mean()
        assert statistics.share_shown(gap, spread, n) == pytest.approx(simulated, abs=0.01)
    assert statistics.share_shown(0.0, 0.4, 5) == pytest.approx(0.025, abs=1e-4)
    assert statistics.student_t(3) == 4.303 and statistics.half_width(1.0, 4) == 3.182 / 2


def test_how_many_seeds_it_takes():
    count = chance.needed(0.5, 0.4)
    assert statistics.share_shown(0.5, 0.4, count) >= chance.ENOUGH
    assert statistics.share_shown(0.5, 0.4, count - 1) < chance.ENOUGH
    assert chance.needed(0.1, 5.0) == 0
    text = chance.say_seeds(chance.seeds_table(gap=0.1, spreads=[5.0]))[0]
    assert "no number up to 60" in text and "0.1 points" in text


def test_without_rows_a_usual_spread_is_taken(monkeypatch):
    monkeypatch.setattr(chance.claims, "ledger", lambda: [])
    assert chance.lesson_spreads() == [chance.USUAL_SPREAD]
    row = {"metric": "top1_deployed", "n": 3, "half_width": statistics.half_width(0.7, 3)}
    monkeypatch.setattr(chance.claims, "ledger", lambda: [row, row | {"n": 1}])
    assert chance.lesson_spreads() == pytest.approx([0.7] * 3)


CORRECTIONS = [(draw, corrected) for draw in range(40) for corrected in (False, True)]


def test_what_comes_out_of_nothing():
    shares = chance.counts_by_chance(20, 0.05)
    assert shares.sum() == pytest.approx(1) and len(shares) == 21
    assert shares[0] == pytest.approx(0.95**20)
    many = chance.chance_table(questions=4000, n=4)["shown"]
    assert many.mean() == pytest.approx(0.05, abs=0.01)
    pairs = [chance.chance_table(draw=draw, questions=2, corrected=c) for draw, c in CORRECTIONS]
    apart = [pair["shown"].any() for pair in pairs]
    assert 0 < sum(apart[1::2]) <= sum(apart[::2])  # of the same drawings
    assert {pair["level"].iloc[0] for pair in pairs} == {0.05, 0.025}
    text = chance.say_chance(chance.chance_table(corrected=True))
    assert "99.75 % interval" in text[0] and "On average 0.05 do" in text[1]


def test_pictures_of_chance_can_be_drawn_again_in_the_same_figure():
    fig = chance.draw_chance(chance.chance_table())
    again = chance.draw_chance(chance.chance_table(questions=5, draw=3), fig)
    new = chance.draw_chance(chance.chance_table(questions=5, draw=3))
    assert again is fig and figures.html(again, "") == figures.html(new, "")
    fig = chance.draw_seeds(chance.seeds_table(spreads=[0.2, 0.4]))
    again = chance.draw_seeds(chance.seeds_table(gap=1.0, spreads=[0.9]), fig)
    new = chance.draw_seeds(chance.seeds_table(gap=1.0, spreads=[0.9]))
    assert again is fig and figures.html(again, "") == figures.html(new, "")


def test_each_direction_of_kl_prefers_another_student():
    table = figures.get_figure("kl_directions").table(())
    for direction, rows in table.groupby("direction"):
        p, q = rows["student"].to_numpy(), rows["target"].to_numpy()
        assert q.argmax() == 2 and q[9] == pytest.approx(q[2])  # two peaks
        both = min(p[:6].sum(), p[6:].sum())
        assert both > 0.4 if direction == "forward" else both < 0.01
        wanted = (q, p) if direction == "forward" else (p, q)
        assert rows["divergence"].iloc[0] == pytest.approx(kd.metrics.kl_divergence(*wanted))
    text = figures.get_figure("kl_directions").say(table)
    assert "reverse direction leads this student to the lower entropy" in text[1]
    turned = table.assign(entropy=-table["entropy"])
    assert "to the higher entropy" in figures.get_figure("kl_directions").say(turned)[1]
