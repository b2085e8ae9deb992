"""Votes, movement, printed gains and verdicts: numbers by hand, and sentences that follow them."""

import numpy as np
import pandas as pd
import pytest

import kdkit as kd
from kdkit.study import figures
from kdkit.study.figures import movement, published, results, tables, verdicts, votes
from kdkit.study.plans import preset

rng = np.random.default_rng(0)


def test_the_vote_has_the_mean_error_less_the_diversity():
    p, y = kd.metrics.softmax(rng.normal(size=(3, 7, 5))), rng.integers(0, 5, 7)
    error, diversity, vote = votes.squared_parts(p, y)
    each = [np.mean([np.sum((q[i] - np.eye(5)[y[i]]) ** 2) for i in range(7)]) for q in p]
    assert error == pytest.approx(np.mean(each)) and vote == pytest.approx(error - diversity)
    pairs = [np.mean(np.sum((a - b) ** 2, -1)) for a in p for b in p]
    assert diversity == pytest.approx(np.mean(pairs) / 2)


def test_the_toy_groups_have_one_mean_error_and_are_distributions():
    table = votes.toy_table()
    first = table.drop_duplicates("group").set_index("group")
    assert first["error"].iloc[0] == pytest.approx(first["error"].iloc[1])
    assert first["diversity"].iloc[0] > 10 * first["diversity"].iloc[1]
    assert np.allclose(first["error"] - first["diversity"], first["error of the vote"])
    answers = table[[f"p({c})" for c in votes.CLASSES]]
    assert np.allclose(answers.sum(axis=1), 1) and (answers >= 0).all(axis=None)
    assert np.allclose(np.linalg.norm(np.diff(votes.CORNERS, axis=0), axis=1), np.sqrt(2))


def parts(**groups):
    rows = [
        {"method": "ind", "label": name, "error": e, "diversity": d, "error of the vote": e - d}
        for name, (e, d) in groups.items()
    ]
    return tables.frame([row | tables.spread({0: row["diversity"]}) for row in rows], [])


def test_the_measured_sentence_names_the_best():
    says = votes.say_measured(parts(A=(0.3, 0.1), B=(0.25, 0.01), C=(0.4, 0.15)))
    assert "A 0.3000 − 0.1000 = 0.2000" in says[0] and "4.0 to 37.5 %" in says[1]
    assert says[2] == (
        "The best peers alone are B's, the most diverse C's, and the best vote is A's."
    )


def test_movement_is_that_of_the_same_peer():
    z = np.zeros((2, 2, 1, 2))
    z[1, 0, 0] = 40, 0  # the first peer becomes certain in the second epoch
    distance, moved = movement.peer_movement(z)
    assert np.isnan(moved[0]) and moved[1] == pytest.approx(np.sqrt(0.5) / 2)
    assert distance.tolist() == pytest.approx([0, np.sqrt(0.5)])


def test_the_other_schedule_is_another_one():
    for name, other in (("lesson", "step"), ("smoke", "sgdr")):
        assert movement.two_schedules(preset(name))[-1]["schedule"] == other


def moving(distances):
    rates = [0.1, 0.1, 0.01, 0.01]
    rows = [
        {"label": "Ind", "schedule": "step", "epoch": i + 1, "distance": d, "movement": d / 2}
        | {"rate": rate, "train": 90.0 + i, "n": 1}
        for i, (d, rate) in enumerate(zip(distances, rates, strict=True))
    ]
    return pd.DataFrame(rows)


def test_what_a_drop_of_the_rate_does_is_told():
    text = movement.say_movement(moving([0.3, 0.4, 0.2, 0.25]))[1]
    assert "goes from 0.400 to 0.200 within an epoch, and from there to the end to 0.250" in text
    assert "training accuracy is 92.0 %" in text
    assert "drop" not in movement.say_movement(moving([0.3, 0.4, 0.2, 0.25]).iloc[:2])[1]


def test_printed_gains_have_the_sign_of_their_metric():
    table = published.gains_table("okddip:1", "okddip:2", "dckd:2")
    row = table[(table["paper"] == "okddip") & (table["name"] == "DML") & (table["table"] == "2")]
    printed = kd.cells("okddip:2").pivot(index="row", columns="column", values="published")
    by_hand = (printed["Baseline"] - printed["DML"]).tolist()
    assert sorted(row["gain"]) == pytest.approx(sorted(by_hand))
    net = kd.cells("dckd:2:KD:VGG13/VGG8")["published"].iloc[0]
    alone = kd.cells("dckd:2:Student:VGG13/VGG8")["published"].iloc[0]
    of_net = table[(table["name"] == "KD") & table["networks"].str.contains("VGG13")]
    assert of_net["gain"].tolist() == pytest.approx([net - alone])


@pytest.mark.parametrize("names", [("okddip:1", "okddip:2"), ("dckd:3",), ("okddip:2", "dckd:4")])
def test_any_tables_with_a_network_alone_can_be_drawn(names):
    table = published.gains_table(*names)
    fig = figures.published.draw_gains(table)
    assert len(fig.axes) == table["paper"].nunique()
    means = published.mean_gains(table)
    first = table[(table["table"] == names[0].split(":")[1])]
    name = first["name"].iloc[0]
    mean = first[first["name"] == name]["gain"].mean()
    assert f"{mean:+.2f}" in fig.axes[0].texts[0].get_text() and len(means.columns) == len(names)


def test_a_table_without_a_network_alone_is_refused():
    with pytest.raises(ValueError, match="okddip:4: this table has no network"):
        published.gains_table("okddip:2", "okddip:4")


def test_the_examples_have_their_verdicts():
    table = verdicts.example_table()
    assert table["verdict"].tolist() == ["shown", "contradicted", "not shown", "not shown"]
    assert table["half_width"].iloc[0] == pytest.approx(2.776 * (0.1 / 5) ** 0.5)


def accuracies(*rows):
    made = []
    for label, control, difference, half, pairs in rows:
        made.append(
            {"method": "kd", "label": label, "control": control, "difference": difference}
            | {"half_width": half, "pairs": pairs, "shown": abs(difference) > half}
            | tables.spread({s: 80.0 for s in range(pairs)})
        )
    return tables.frame(made, [])


def test_results_are_told_by_verdict():
    judged = accuracies(
        ("A", "C", 2.0, 1.0, 3),
        ("B", "C", -2.0, 1.0, 3),
        ("D", "C", 0.5, 1.25, 3),
        ("E", "C", 9.0, float("nan"), 1),
    )
    says = results.say_results(judged)
    assert says[1:] == [
        "Shown above the control: A (+2.00 ± 1.00).",
        "Shown below the control: B (−2.00 ± 1.00).",
        "Not shown, with the smallest difference that these seeds could have shown: D (1.25).",
        "1 of 4 differences have one seed, which gives no interval and so no verdict.",
    ]
    one = accuracies(("A", "C", 2.0, float("nan"), 1))
    assert results.say_results(one)[1:] == [
        "1 of 1 differences have one seed, which gives no interval and so no verdict."
    ]
    assert results.say_results(one, judged)[1:] == says[1:]
