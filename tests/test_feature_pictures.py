"""Pictures of maps and of relations: their tables against the networks, and what a map forgets."""

import numpy as np
import pytest
import torch

import kdkit as kd
from kdkit.study import figures, runs, sources
from kdkit.study.figures import features, relations
from kdkit.study.plans import plan
from kdkit.study.teach import lab


@pytest.fixture(scope="module")
def records(apart):
    """Smoke runs of both figures; the store keeps them for the other tests."""
    known = lab("smoke")
    return {
        name: [known.get(**fields) for fields in figures.get_figure(name).runs(known.base)]
        for name in ("features_where", "relations_map")
    }


def answers(record, images):
    """The outputs of a record's network, or of its teacher's, to test images."""
    data = sources.load(record.run.data)
    x = next(data.batches(False, len(images), "none", None, subset=torch.as_tensor(images)))[0]
    return record.model()(x)


def test_each_is_drawn_and_says_how_far_everybody_is(records):
    for name, given in records.items():
        table, fig, (alt, *findings) = figures.make(name, given)
        assert figures.html(fig, alt).startswith("<img") and len(table)
        for who in table["who"].unique()[1:]:
            assert any(who in sentence for sentence in findings)


def test_maps_and_distances_are_those_of_the_networks(records):
    plain, at = records["features_where"]
    table = features.where_table([plain, at])
    assert list(table["who"].unique()) == ["Teacher", "labels alone", "AT"]
    assert (table.loc[table["who"] == "Teacher", "distance"] == 0).all()
    shown = table["image"].unique()
    assert list(table.drop_duplicates("image")["true"]) == list(features.LOOKED_AT)
    for stage, size in ((1, 20), (2, 10)):
        rows = table[(table["stage"] == stage) & (table["who"] == "AT")]
        look = rows[rows["image"] == shown[2]].iloc[:, 5:].dropna(axis=1).to_numpy(float)
        want = kd.losses.attention_map(answers(at, shown).feats[stage])[2].view(size, size)
        assert np.allclose(look, want, atol=6e-4)
    many = np.arange(features.MEASURED)
    teacher = runs.get(plan(at.run).teacher)
    maps = [answers(r, many).feats[2] for r in (plain, teacher)]
    want = kd.losses.map_difference(*maps).square().sum(1).mean()
    rows = table[(table["stage"] == 2) & (table["who"] == "labels alone")]
    assert rows["distance"].iloc[0] == pytest.approx(float(want), abs=1e-4)


def test_likeness_is_the_correlation_of_distances(records):
    given = records["relations_map"]
    table = relations.map_table(given)
    assert list(table["who"].unique()) == ["Teacher", "labels alone", "KD", "RKD", "CC", "CRD"]
    images = table["image"].unique()
    assert list(table["true"].unique()) == list(relations.MAPPED)
    assert set(table.value_counts(["who", "true"])) == {min(relations.EACH, 5)}  # of smoke's few
    teacher = runs.get(plan(given[1].run).teacher)
    far = [torch.pdist(answers(r, images).pooled) for r in (given[2], teacher)]
    rows = table[table["who"] == "RKD"]
    want = torch.corrcoef(torch.stack(far))[0, 1]
    assert rows["likeness"].iloc[0] == pytest.approx(float(want), abs=1e-3)
    assert (table.loc[table["who"] == "Teacher", "likeness"] == 1).all()


def test_a_flat_map_keeps_distances_and_is_laid_upon_another():
    points = np.random.default_rng(0).normal(size=(9, 2))
    points -= points.mean(0)
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = relations.flat_map(far)
    assert np.allclose(np.linalg.norm(found[:, None] - found[None], axis=-1), far)
    assert np.allclose(relations.laid_upon(found, points), points)
    turned = 3 * points @ np.array([[0.0, 1.0], [1.0, 0.0]])  # mirrored, too
    assert np.allclose(relations.laid_upon(turned, points), points)


def test_other_classes_stand_in_where_the_characters_are_missing(records):
    record = records["features_where"][0]
    names = record.meta["class_names"]
    index = features.of_characters(record, "é3", 2)
    assert [names[c] for c in record.labels[index]] == ["é", "é", "3", "3"]
    other = features.of_characters(record, "éжю", 1)  # those that are there
    assert [names[c] for c in record.labels[other]] == ["é"]
    none = features.of_characters(record, "жю", 2)
    assert record.labels[none].tolist() == [0, 0, 1, 1]
