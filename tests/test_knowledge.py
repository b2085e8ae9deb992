"""Pictures of knowledge: their tables against the logits, drawings of what was never drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from kdkit import metrics
from kdkit.study import figures, hidden, sources
from kdkit.study.figures import knowledge, unseen
from kdkit.study.plans import plan, preset
from kdkit.study.runs import get
from kdkit.study.teach import lab

NAMES = sources.load("glyphs").class_names


@pytest.fixture(scope="module")
def records(apart):
    """Smoke runs of each kind of figure; the store keeps them for the other tests."""
    known = lab("smoke")
    return {
        name: [known.get(**fields) for fields in figures.get_figure(name).runs(known.base)]
        for name in (
            "class_similarity",
            "never_seen",
            "hidden_characters",
            "told_of_one_image",
            "peers_over_epochs",
        )
    }


def test_each_figure_is_drawn_and_says_whose_numbers_it_has(records):
    for name, given in records.items():
        table, fig, sentences = figures.make(name, given)
        assert isinstance(fig, Figure) and len(table) and len(sentences) >= 2
        assert sentences[-1] == "Whose numbers: runs of this store, seed 0."
        assert figures.html(fig, sentences[0]).startswith("<img")


def test_class_similarity_is_the_mean_softened_answer(records):
    z_teacher, y = records["class_similarity"][1].logits()[1], records["class_similarity"][1].labels
    table = knowledge.similarity_table(records["class_similarity"])
    assert list(dict.fromkeys(table["who"])) == ["teacher", "Baseline alone", "KD student"]
    teacher = table[table["who"] == "teacher"].set_index("class")
    for name in ("é", "0", "Q"):
        number = NAMES.index(name)
        p = metrics.softmax(z_teacher[y == number], 4.0).mean(0)
        for other in ("è", "O", "g"):
            assert teacher.loc[name, other] == pytest.approx(p[NAMES.index(other)], abs=6e-5)
    assert sorted(teacher.index) == sorted(NAMES) == sorted(table.columns[3:])


def test_look_alikes_stand_together():
    """Three families of classes that answer for each other are neighbours, and are one family."""
    family = np.array([0, 1, 2] * 4)
    similarity = np.where(family[:, None] == family, 0.2, 0.01) + np.eye(12)
    order, numbers = knowledge.family_order(similarity, families=3)
    assert sorted(order) == list(range(12))
    assert (np.diff(family[order]) != 0).sum() == 2
    assert len(set(zip(family[order], numbers, strict=True))) == 3


def test_answers_are_what_the_student_says_of_what_it_never_saw(records):
    table = unseen.answers_table(records["never_seen"])
    assert set(table["true"]) == {"é", "Q"}
    for label, rows in table.groupby("label"):
        record = next(r for r in records["never_seen"] if figures.label(r.run) == label)
        z, y = record.logits()[0][0], record.labels
        for _, row in rows.iterrows():
            assert NAMES[y[row["image"]]] == row["true"]
            assert NAMES[z[row["image"]].argmax()] == row["said"]
        numbers = hidden.hidden_numbers(record)
        named = rows.drop_duplicates("true")["named"].mean()
        assert named == pytest.approx(numbers["hidden_top1"])


def test_hidden_table_has_each_temperature_with_and_without_the_bias(records):
    table = unseen.hidden_table(records["hidden_characters"])
    assert table["T"].tolist() == [0, 0, 1, 1, 2, 2, 4, 4, 8, 8]
    assert set(table["bias"]) == {"as trained", "bias fitted"}
    for record in records["hidden_characters"]:
        assert not np.isin(record.run.hide.split(","), ["", None]).any()
        if record.run.method == "kd":
            assert record.method.r == 0  # without labels


def test_what_is_told_are_the_targets_of_the_losses(records):
    dckd, okddip = records["told_of_one_image"]
    table = knowledge.told_table([dckd, okddip], image=7)
    rows = {who: part.set_index("class")["p"] for who, part in table.groupby("who")}
    assert len(rows) == 1 + 1 + 3 + 3  # label, teacher, three collections, three peers
    others = dckd.logits()[0][[0, 2], 7].max(0)  # what student 2 collects: logit max
    wanted = metrics.softmax(others, dckd.method.tau)
    assert np.allclose(rows["DCKD: to student 2"].loc[list(NAMES)], wanted, atol=1e-5)
    A = okddip.arrays["attention"][-1][1]
    target = metrics.softmax(np.einsum("b,bk->k", A, okddip.logits()[0][:3, 7]), okddip.method.T)
    assert np.allclose(rows["OKDDip: to peer 2"].loc[list(NAMES)], target, atol=1e-4)
    assert rows["label"].sum() == 1 and rows["label"][table["true"].iloc[0]] == 1


def test_peers_are_followed_on_one_image(records):
    (record,) = records["peers_over_epochs"]
    table = knowledge.peers_table([record], image=5)
    p = metrics.softmax(record.arrays["probe_logits"])[:, :, 5]  # (E, m, K)
    assert table["epoch"].max() == len(p) and table["student"].nunique() == p.shape[1] == 4
    one = table[(table["student"] == "peer 2") & (table["epoch"] == 2)]
    for _, row in one.iterrows():
        assert row["p"] == pytest.approx(p[1, 1, NAMES.index(row["class"])])
    assert table["true"].iloc[0] in set(table["class"])


def test_few_images_take_as_many_steps_and_share_one_teacher():
    base = preset("lesson")
    runs = [plan(base.replace(**fields)) for fields in unseen.few_images_runs(base)]
    steps = {p.run.n_train * p.run.epochs for p in runs}
    assert max(steps) <= 1.05 * min(steps)
    teachers = {p.teacher.id for p in runs if p.teacher}
    assert len(teachers) == 1
    (teacher,) = {p.teacher.run for p in runs if p.teacher}
    assert teacher.n_train == max(p.run.n_train for p in runs)
    assert abs(teacher.n_train * teacher.epochs - min(steps)) <= 0.05 * min(steps)


def test_a_clear_rival_is_a_sure_right_answer_with_one_other():
    from kdkit.study.widgets import clear_rival

    z = np.array([[9.0, 0, 0, 0], [9, 5, 0, 0], [9, 8.5, 0, 0], [0, 9, 5, 0]])
    assert clear_rival(z, np.array([0, 0, 0, 0])) == 1  # the third is unsure, the fourth wrong


def test_a_student_without_hidden_classes_is_refused():
    with pytest.raises(ValueError, match="hides no class"):
        unseen.answers_table([get(preset("smoke"))])


@pytest.mark.parametrize("name", ["hidden_characters", "never_seen"])
@pytest.mark.parametrize("base", ["lesson", "smoke", "okddip_paper"])
def test_characters_are_hidden_from_runs_on_characters_alone(name, base):
    base = preset(base)
    for fields in figures.get_figure(name).runs(base):
        run = plan(base.replace(**fields)).run
        assert sources.SETS[run.data].family == "glyphs" and run.hide == "Q,é"
        usual = base if base.data.startswith("glyphs") else preset("lesson")
        assert (run.epochs, run.student, run.preset) == (usual.epochs, "resnet8_w0.5", usual.preset)


def test_an_image_is_called_chosen_only_where_it_was(records):
    told, peers = records["told_of_one_image"], records["peers_over_epochs"]
    for image in (None, 7):
        for say, table in (
            (knowledge.say_told, knowledge.told_table(told, image)),
            (knowledge.say_peers, knowledge.peers_table(peers, image)),
        ):
            assert any("was chosen" in sentence for sentence in say(table)) == (image is None)
