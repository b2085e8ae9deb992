"""Tables recomputed from records, sentences that follow the numbers, drawings that do not drift,
and figures added in one place."""

import ast
import copy
import doctest
import json
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import kdkit as kd
from kdkit import metrics
from kdkit.methods import METHODS, list_methods
from kdkit.study import figures, store, sweep
from kdkit.study.figures import curves, features, index, style, tables, unseen
from kdkit.study.plans import plan, preset
from kdkit.study.sources import load
from kdkit.train import Fitted

rng = np.random.default_rng(0)
N, K, E = 500, 100, 3
LESSON = load("lesson")
LESSON = replace(LESSON, x_test=LESSON.x_test[:N], y_test=LESSON.y_test[:N])
Y = LESSON.y_test.numpy()


def fake(run):
    """A record in the store whose numbers follow from drawn logits; nothing is trained."""
    planned = plan(run)
    method = planned.method
    m, peers = method.group()[1], method.peers()
    own = np.random.default_rng([run.seed, zlib.crc32(figures.label(run).encode())])
    z = own.normal(size=(m, N, K)) + 1.5 * np.eye(K)[Y]
    t = np.random.default_rng(9).normal(size=(N, K)) + 2 * np.eye(K)[Y]
    history = [
        {
            "epoch": e,
            "lr": 0.1 / (e + 1),
            "ramp": 1.0,
            "terms": {k: 2.0 / (e + 1) for k in method.weights()},
            "train_top1": [50.0 + e + run.seed] * m,
            "probe_top1": [45.0 + e] * m,
            "probe_ensemble": 50.0,
            "diversity": 0.1 / (e + 1) if m > 1 else None,
            "seconds": 1.0,
        }
        for e in range(E)
    ]
    arrays = {
        "attention": own.dirichlet([4] * peers, (E, peers)),
        "probe_logits": z[None, :, :64].repeat(E, 0) * np.linspace(0.5, 1, E)[:, None, None, None],
    }
    fitted = Fitted(
        torch.nn.Module(),
        {},  # the store computes the result from the logits
        history,
        arrays,
        z,
        t if planned.teacher else None,
        method,
        1.0,
        {},
    )
    return store.save(planned, fitted, LESSON)


def drawn_hidden_numbers(record):
    """What `hidden.hidden_numbers` would say of a record that has weights."""
    own = np.random.default_rng([record.run.seed, zlib.crc32(record.id.encode())])
    names = [f"{which}_top1{end}" for end in ("", "_bias") for which in ("hidden", "seen")]
    return dict(zip(names, own.uniform(0, 100, 4).tolist(), strict=True))


def drawn_outputs(records, index):
    """What `features.outputs` would give of records that have weights."""
    titles = [r.method.title if plan(r.run).teacher else "labels alone" for r in records]
    answers = {}
    for who in ["Teacher", *dict.fromkeys(titles)]:
        draw = torch.Generator().manual_seed(zlib.crc32(who.encode()))
        feats = [torch.rand(len(index), 3, side, side, generator=draw) for side in (20, 20, 10)]
        h = torch.rand(len(index), 8, generator=draw)
        answers[who] = kd.models.Out(h, tuple(feats), tuple(feats), h)
    return answers


@pytest.fixture(scope="module", autouse=True)
def shelf(tmp_path_factory):
    """A store and a folder of figures of this module's own."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("KDKIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        m.setenv("KDKIT_FIGURES", str(tmp_path_factory.mktemp("figures")))
        m.setattr(tables, "test_images", lambda name: LESSON.x_test.numpy())
        m.setattr(unseen, "hidden_numbers", drawn_hidden_numbers)  # a fake has no weights
        m.setattr(features, "outputs", drawn_outputs)
        yield


@pytest.fixture(scope="module")
def records(shelf):
    """Every run that any figure wants, for two seeds, drawn."""
    return {plan(run).id: fake(run) for run in figures.wanted(None, "smoke", 2)}


def of(name, records):
    return [records[plan(run).id] for run in figures.wanted(name, "smoke", 2)]


def changed(record, **result):
    """The record with other results, as if it had been falsified."""
    meta = copy.deepcopy(record.meta)
    meta["result"] |= result
    return store.Record(record.path, meta)


@pytest.mark.parametrize("name", figures.list_figures())
def test_every_figure_draws_and_speaks(name, records):
    mine = of(name, records)
    table, fig, (alt, *findings) = figures.make(name, mine)
    assert len(findings) >= 1 and all(s.endswith((".", ")")) for s in [alt, *findings])
    assert "nan" not in " ".join([alt, *findings]).lower()
    if name != "claims":  # of the reference, whatever this store holds
        assert set(table.attrs["runs"]) <= {r.id for r in mine}
        assert table.attrs["runs"] or not mine
    with figures.kdkit_style():
        fig.draw_without_rendering()  # lays it out
    texts = [t for ax in fig.axes for t in ax.texts if t.get_text()]
    bounds = fig.bbox.padded(2)
    for t in texts:  # nothing is cut off at the edge of the picture
        box = Text.get_window_extent(t)
        assert bounds.contains(box.x0, box.y0) and bounds.contains(box.x1, box.y1), t.get_text()
    assert re.fullmatch(r"\d\d", figures.get_figure(name).notebook)


def test_wanted_is_in_notebook_order_without_duplicates():
    runs = figures.wanted(None, "smoke", 3)
    ids = [plan(run).id for run in runs]
    assert len(set(ids)) == len(ids)
    every = {
        plan(r).id for name in figures.list_figures() for r in figures.wanted(name, "smoke", 3)
    }
    assert set(ids) == every
    wanted = (figures.wanted(name, "smoke", 3) for name in figures.list_figures())
    first = next(found for found in wanted if found)
    assert runs[: len(first)] == first and [r.seed for r in first[:3]] == [0, 1, 2]
    assert [r.seed for r in figures.wanted("kd_accuracy", "smoke", [7])] == [7, 7]
    assert figures.wanted("entropy_correlation", "smoke", 3) == []


def test_unknown_figure_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown figure 'kd_acuracy'.*kd_accuracy"):
        figures.wanted("kd_acuracy", "smoke", 1)


def test_every_control_is_in_its_own_figure(records):
    """Side by side means: with the control, unless there is none."""
    for name in ("results", "online_accuracy", "okddip_accuracy", "dckd_accuracy", "kd_accuracy"):
        table = figures.get_figure(name).table(of(name, records))
        ours = table[(table["method"] != "") & (table["label"] != "Baseline")]
        assert (ours["control"] != "").all(), name
        assert (ours["pairs"] == 2).all()


def test_labels_say_what_differs():
    def label(**fields):
        return figures.label(preset("smoke", **fields))

    assert label(method="okddip") == "OKDDip" == label(method="okddip", m=4, seed=3)
    assert label(method="okddip", attention="mean") == "OKDDip (attention=mean)"
    assert label(method="ind", based="network") == "Ind (network)"
    assert label(method="kd", T=2.0, epochs=5) == "KD (T=2, epochs=5)"
    assert label(method="baseline", schedule="sgdr") == "Baseline (schedule=sgdr)"
    assert figures.label(preset("okddip_paper", method="kd")) == "KD"
    assert figures.label(preset("dckd_paper", method="dckd")) == "DCKD"


def test_accuracy_is_recomputed_from_the_stored_logits(records):
    mine = of("okddip_accuracy", records)
    table = figures.accuracy_table(mine).set_index("label")

    def top1(r):
        z, i = r.test_logits["students"].astype("f8"), r.result["deployed"]
        each = 100 * (z.argmax(-1) == Y).mean(-1)
        return each.mean() if i is None else each[i]

    for label, group in tables.grouped(mine).items():
        values = [top1(r) for r in group]
        row = table.loc[label]
        assert row[["seed 0", "seed 1"]].tolist() == pytest.approx(values)
        assert row["n"] == 2 and row["mean"] == pytest.approx(np.mean(values))
        assert row["sd"] == pytest.approx(np.std(values, ddof=1))
    d = [
        a - b
        for a, b in zip(
            table.loc["OKDDip", ["seed 0", "seed 1"]],
            table.loc["Ind", ["seed 0", "seed 1"]],
            strict=True,
        )
    ]
    half = 12.706 * np.std(d, ddof=1) / np.sqrt(2)
    assert table.loc["OKDDip", "control"] == "Ind"
    assert table.loc["OKDDip", "difference"] == pytest.approx(np.mean(d))
    assert table.loc["OKDDip", "half_width"] == pytest.approx(half)
    teacher = (
        100 * (mine[2].test_logits["teacher"].argmax(-1) == Y).mean()
        if "teacher" in mine[2].test_logits
        else mine[-1].result["teacher_top1"]
    )
    assert table.loc["Teacher", "mean"] == pytest.approx(teacher)


def test_a_finding_follows_the_numbers(records):
    say, table = figures.say_accuracy, figures.accuracy_table
    base = [r for r in of("kd_accuracy", records) if r.run.method == "baseline"]
    kd = [r for r in of("kd_accuracy", records) if r.run.method == "kd"]

    def finding(*values):
        top = [changed(r, top1_deployed=v) for r, v in zip(base + kd, values, strict=True)]
        return say(table(top))[1]

    assert finding(80.0, 81.0, 82.0, 83.001) == (
        "KD is 2.00 points above Baseline (95 % interval ± 0.01, n = 2): shown."
    )
    assert "below Baseline (95 %" in finding(82.0, 83.0, 80.0, 81.001)
    assert finding(80.0, 81.0, 80.0, 83.0).endswith("(n = 2): not shown.")
    assert "level with" in finding(80.0, 81.0, 80.0, 81.0)
    for ours, count in ((81.0, 1), (79.0, 0)):
        one = [changed(base[0], top1_deployed=80.0), changed(kd[0], top1_deployed=ours)]
        assert say(table(one))[1:] == [
            f"{count} of 1 differences are above 0; one seed gives no interval, so nothing is "
            "shown by this run alone."
        ]


def test_diversity_findings_flip(records):
    mine = of("online_diversity", records)
    low, high = (copy.deepcopy([r.meta for r in mine]) for _ in range(2))
    for metas, step in ((low, -0.01), (high, 0.01)):
        for meta in metas:
            if meta["run"]["method"] == "okddip":
                for row in meta["history"]:
                    row["diversity"] += step

    def sentences(metas):
        falsified = [store.Record(r.path, meta) for r, meta in zip(mine, metas, strict=True)]
        return " ".join(figures.make("online_diversity", falsified)[2])

    low, high = sentences(low), sentences(high)
    assert "has the most diverse" in low and "has not the most diverse" in high
    assert "OKDDip's diversity is 0.0100 below Ind's" in low
    assert "OKDDip's diversity is 0.0100 above Ind's" in high


def test_curves_are_means_and_deviations_over_seeds(records):
    table = figures.curves_table(
        of("baseline_curves", records), "training accuracy (%)", "diversity"
    )
    assert set(table["quantity"]) == {"training accuracy (%)"}  # one network has no diversity
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["mean"].tolist() == [50.5, 51.5, 52.5]
    assert table["sd"].tolist() == pytest.approx([np.sqrt(0.5)] * 3)


@pytest.mark.parametrize(
    "above, first",
    [([-1, 2, 3], 2), ([1, 2], 1), ([1, 0, 4], 3), ([3, -1], 0), ([5, 5, 0], 0)],
)
def test_where_training_and_probe_part(above, first):
    assert curves.parting(pd.Series(above, index=range(1, len(above) + 1))) == first


def test_the_picture_of_the_baseline_marks_where_its_curves_part(records):
    mine = of("baseline_curves", records)[:1]  # seed 0: always 5 points apart
    _, fig, (_, where, *_) = figures.make("baseline_curves", mine)
    assert "stays above the probe's from epoch 1 on" in where and "at the end by 5.0." in where
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert any("epoch 1 on" in text for text in texts) and "5.0 points " in texts
    low = copy.deepcopy(mine[0].meta)
    low["history"][-1]["train_top1"] = [0.0]
    _, fig, (_, where, *_) = figures.make("baseline_curves", [store.Record(mine[0].path, low)])
    assert where.startswith("Training accuracy does not end above the probe's")
    assert not any("apart" in text.get_text() for text in fig.axes[0].texts)


def test_attention_and_its_asymmetry(records):
    mine = of("okddip_attention", records)
    table = figures.attention_table(mine)
    A = mine[1].arrays["attention"][2]
    t = table[(table["seed"] == 1) & (table["epoch"] == 3)]
    assert t.pivot(index="peer", columns="source", values="attention").to_numpy() == pytest.approx(
        A
    )
    assert t.pivot(index="peer", columns="source", values="asymmetry").to_numpy() == pytest.approx(
        A - A.T
    )


@pytest.mark.parametrize("cmap, middle", [("Blues", 0.5), ("PuOr", 0.0)])
def test_a_matrix_has_values_that_can_be_read_on_their_colours(cmap, middle):
    """Near the best that dark or white text can have on a middle tone: a contrast of 3.5 (WCAG)."""
    fig = Figure()
    ax = fig.subplots()
    values = np.linspace(middle - 0.5, middle + 0.5, 100).reshape(10, 10)
    figures.attention.draw_matrix(ax, values, cmap, middle, 0.5)

    def luminance(colour):
        rgb = np.array(to_rgb(colour))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    (image,) = ax.images
    ratios = []
    for text, value in zip(ax.texts, values.flat, strict=True):
        one, two = sorted((luminance(text.get_color()), luminance(image.to_rgba(value)[:3])))
        ratios.append((two + 0.05) / (one + 0.05))
    assert min(ratios) > 3.2 and np.mean(np.array(ratios) > 4.5) > 0.8


def test_a_matrix_has_no_negative_zero():
    ax = Figure().subplots()
    figures.attention.draw_matrix(ax, np.array([[0, -1e-4], [1e-4, 0]]), "PuOr", 0, 1)
    assert [text.get_text() for text in ax.texts] == ["0"] * 4


def test_each_partner_is_compared_with_itself_alone(records):
    alone, alone_1, together, together_1 = of("mixed_groups", records)
    alone, alone_1 = changed(alone, top1=[60.0, 80.0]), changed(alone_1, top1=[62.0, 80.0])
    together = changed(together, top1=[65.0, 79.0])
    together_1 = changed(together_1, top1=[67.0, 80.0])
    table, _, sentences = figures.make("mixed_groups", [alone, alone_1, together, together_1])
    small, large = table[table["way"] == "together"].to_dict("records")
    assert (small["difference"], large["difference"]) == (5.0, -0.5)
    assert small["student"] == 1 and small["network"] == alone.run.student.split(",")[0]
    assert table[table["way"] == "alone"]["pairs"].tolist() == [0, 0]
    assert sentences[1] == f"{small['network']} gains most, +5.00 points."
    assert "5.00 points above the same network alone" in sentences[2]
    assert "not shown" in sentences[3]


def test_a_group_has_peers_a_vote_and_perhaps_a_leader(records):
    mine = [
        changed(r, top1=[70.0, 72.0, 74.0, 73.0 + r.run.seed], ensemble=80.0)
        for r in of("okddip_levels", records)
    ]
    table, _, sentences = figures.make("okddip_levels", mine)
    of_method = {label: rows.set_index("who") for label, rows in table.groupby("label")}
    assert "leader" not in of_method["Ind"].index
    assert of_method["Ind"].loc["peers", "seed 1"] == (70 + 72 + 74 + 74) / 4
    okddip = of_method["OKDDip"]
    assert okddip.loc["peers", "mean"] == 72 and okddip.loc["leader", "mean"] == 73.5
    assert okddip.loc["leader", "difference"] == 1.5 and okddip.loc["vote", "difference"] == 8
    assert "The leader of OKDDip is 1.50 points above the mean of its peers" in sentences[1]


def test_correlation_numbers_by_hand(records):
    mine = [r for r in of("dckd_correlation", records) if r.run.seed == 0]
    table = figures.correlation_table(mine).query("T == 4").set_index("who")
    logits = {r.run.method: r.test_logits["students"].astype("f8") for r in mine}
    z = logits["dckd"]
    others = np.stack([np.delete(z, k, 0).max(0) for k in range(len(z))])
    teacher = mine[-1].test_logits["teacher"].astype("f8")
    wanted = {"Baseline": logits["baseline"], "KD": logits["kd"], "DCKD": z}
    wanted |= {"Collection": others, "Teacher": teacher}
    assert list(table.index) == list(wanted)
    for who, v in wanted.items():
        p = np.exp(v / 4)
        want = (p / p.sum(-1, keepdims=True) > 1 / K).sum(-1).mean()
        assert table.loc[who, "mean"] == pytest.approx(want)


def test_correlation_sentences_follow_the_numbers(records):
    mine = of("dckd_correlation", records)
    say = figures.get_figure("dckd_correlation").say

    def told(number, count):
        falsified = [
            changed(r, correlation_number=number + r.run.seed / 100)
            if r.run.method == "dckd"
            else changed(r, correlation_number=30.0, correlation_teacher=20.0)
            for r in mine
        ]
        return say(figures.correlation_table([r for r in falsified if r.run.seed < count]))

    assert "above the teacher are Baseline, KD, DCKD" in told(40.0, 1)[1]
    assert len(told(40.0, 1)) == 3 and "shown" not in " ".join(told(40.0, 1))
    high, low = told(40.0, 2), told(25.0, 2)
    assert " DCKD has most." in high[1] and " DCKD has most." not in low[1]
    assert "DCKD is 10.005 above that of KD" in high[5] and "below that of KD" in low[5]


def test_class_maximum_by_hand(records):
    mine = of("dckd_classmax", records)
    table = figures.class_maximum_table(mine, true=3, student=1, tau=2.0)
    p = metrics.softmax(mine[0].test_logits["students"][1], 2.0)[Y == 3]
    assert table["student"].tolist() == pytest.approx(p.max(0).tolist())
    shown = [int(i) for i in table["images"][5].split()]
    assert shown[0] == np.flatnonzero(Y == 3)[p[:, 5].argmax()] and set(Y[shown]) == {3}
    assert {int(Y[int(i)]) for i in table["like"][5].split()} == {5}
    with pytest.raises(ValueError, match="student of 0 to 2; seen student=3"):
        figures.class_maximum_table(mine, student=3)


def test_reliability_adds_up(records):
    table = figures.reliability_table(of("calibration", records))
    for label, t in table.groupby("label"):
        assert t["share"].sum() == pytest.approx(1), label
        right = (t["share"] * t["accuracy"]).sum()
        mine = [r for r in of("calibration", records) if figures.label(r.run) == label]
        assert 100 * right == pytest.approx(np.mean([r.result["top1_deployed"] for r in mine]))


def test_bins_of_confidence_are_open_below():
    bins = metrics.confidence_bins(np.array([0.0, 0.1, 0.11, 0.2, 0.95, 1.0]), 10)
    assert bins.tolist() == [0, 0, 1, 1, 9, 9]


def test_divergence_by_hand():
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    want = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert metrics.kl_divergence(p, q) == pytest.approx(want)
    assert metrics.kl_divergence(p, p) == 0 < metrics.kl_divergence(q, p)


def test_the_papers_two_distributions():
    say, whole = figures.get_figure("entropy_correlation").say, figures.distribution_table()
    table = whole.drop_duplicates("distribution")
    assert table["entropy"].round(3).tolist() == [1.677, 0.688]
    assert table["correlation_number"].tolist() == [1, 2]
    assert "in opposite ways" in say(whole)[1]
    assert " alike" in say(whole.assign(entropy=[0.1] * 10 + [0.2] * 10))[1]


def test_logits_of_many_classes_are_refused(records):
    r = next(iter(records.values()))
    short = store.Record(r.path, r.meta)
    short.__dict__["test_logits"] = {"students": np.zeros((1, 4, 11)), "students_classes": None}
    with pytest.raises(ValueError, match="only the largest logits"):
        short.logits()


def test_save_is_the_same_twice(records):
    mine, seen = of("online_accuracy", records), []
    for _ in range(2):
        table, fig, _ = figures.make("online_accuracy", mine)
        path = figures.save(fig, "online_accuracy", 'say <what> it "shows" ±', table)
        files = {p.suffix: p.read_bytes() for p in path.parent.glob("online_accuracy.*")}
        seen.append(files)
    assert set(seen[0]) == {".png", ".svg", ".csv", ".json"} and path.suffix == ".png"
    assert seen[0] == seen[1]
    about = json.loads(seen[0][".json"])
    assert about == {"alt": 'say <what> it "shows" ±', "runs": sorted(r.id for r in mine)}
    assert pd.read_csv(path.with_suffix(".csv"))["mean"].tolist() == pytest.approx(
        table["mean"].tolist(), rel=1e-5
    )
    assert b"<dc:date>" not in seen[0][".svg"] and path.parent == figures.figures_root()


def test_alt_text_is_escaped():
    class Image(HTMLParser):
        def handle_starttag(self, tag, attrs):
            self.found = tag, dict(attrs)

    alt, parser = 'KD\'s "p" < .05 & <b>T</b>', Image()
    text = figures.html(figures.draw_progress([], "nothing yet"), alt)
    parser.feed(text)
    tag, attrs = parser.found
    assert tag == "img" and attrs["alt"] == alt and text.count("<") == 1
    assert attrs["src"].startswith("data:image/png;base64,")


def test_each_method_has_its_own_look():
    looks = [figures.method_style(m) for m in ["", *list_methods()]]
    assert len({s["color"] for s in looks}) == len(looks)
    assert len({(s["marker"], str(s["linestyle"])) for s in looks}) == len(looks)
    for s in looks:  # text in a method's colour can be read on white: luminance ratio above 3.9
        r, g, b = (
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
            for v in to_rgb(figures.text_colour(s["color"]))
        )
        assert 1.05 / (0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05) > 3.9, s


def test_end_labels_do_not_overlap():
    fig = Figure(figsize=(5, 3), layout="constrained")
    ax = fig.subplots()
    ax.set_ylim(0, 1)
    figures.end_labels(ax, [(0.5, f"label {k}", "#333333") for k in range(5)])
    fig.draw_without_rendering()
    spans = sorted((b.y0, b.y1) for b in (Text.get_window_extent(t) for t in ax.texts))
    assert all(low[1] <= high[0] + 1 for low, high in zip(spans, spans[1:], strict=False))


def history(*terms: str, epochs: int) -> list[dict]:
    return [
        {
            "terms": {k: (1 + i) / (2 + e) for i, k in enumerate(terms)},
            "train_top1": [50.0 + e, 60.0],
            "probe_top1": [40.0 + e, 50.0],
        }
        for e in range(epochs)
    ]


def test_widgets_pictures_are_the_same_drawn_anew_or_in_an_earlier_figure():
    names, z = list(LESSON.class_names), rng.normal(size=(6, K))
    a, b, p = rng.dirichlet(np.ones(3), 3), np.eye(3), rng.dirichlet(np.ones(K), 4)
    x = rng.integers(0, 256, (8, 1, 20, 20)).astype("u1")
    for draw, *cases in (
        (figures.draw_temperature, (z[0], z[1], 4.0, names), (z[2], 3 * z[3], 0.5, names)),
        (
            figures.draw_collection,
            (z[:3], z.max(0), 1, 2.0, names),
            (z[3:], z.min(0), 0, 9.5, names),
        ),
        (figures.draw_class_map, (*p[:2], 2, 6, x[:4], names), (*p[2:], 0, 9, x[4:], names)),
        (figures.draw_matrices, ([("epoch 0", a)],), ([("epoch 12", b)],)),
        (
            figures.draw_progress,
            ([], "not trained yet"),
            (history("ce", "collection", epochs=7), "DCKD: 83.20 %"),
            ([], "not trained yet"),
            (history("reconstruction", epochs=1), "FT"),
        ),
    ):
        fig, seen = None, set()
        for case in cases:
            fig = draw(*case, fig=fig)
            again, text = figures.html(fig, "a"), figures.html(draw(*case), "a")
            assert again == text and text.startswith('<img alt="a"') and fig.axes
            seen.add(again)
        assert len(seen) == len({str(case) for case in cases})
        fig = draw(*case)
        for part in (part for ax in fig.axes for part in ax.get_children()):
            part.set_animated(False)
        assert style.figure_bytes(fig, "svg") == style.figure_bytes(
            draw(*case), "svg"
        )  # files hold it all


def test_more_images_than_before_are_not_squeezed():
    fig, names = None, [f"class {k}" for k in range(K)]
    for n in (2, 4, 1):
        fig = figures.draw_class_map(
            np.ones(K), np.ones(K), 0, 1, np.zeros((n, 1, 20, 20), "u1"), names, fig=fig
        )
        figures.html(fig, "a")
        box, (high, wide) = fig.axes[1].get_window_extent(), fig.axes[1].images[0].get_size()
        assert box.width / box.height == pytest.approx(wide / high)


def test_a_figure_that_was_changed_is_shown_so():
    fig = figures.draw_images(np.zeros((1, 1, 20, 20), "u1"), ["before"])
    first = figures.html(fig, "a")
    assert figures.html(fig, "a") == first
    fig.axes[0].set_title("after")
    assert figures.html(fig, "a") != first


def test_pyplot_is_never_imported():
    paths = list(Path(figures.__file__).parent.glob("*.py"))
    assert len(paths) > 10
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert "pyplot" not in text and "pylab" not in text and "import *" not in text
    code = (
        "import sys, kdkit.study.figures as f\nf.html(f.draw_progress([], ''), '')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def registry():
    """What a test registers is forgotten after it."""
    before = [(known, dict(known)) for known in (index.FIGURES, METHODS)]
    yield index.FIGURES
    for known, things in before:
        known.clear()
        known.update(things)


RUNS = [{"method": "baseline"}, {"method": "kd"}]


def test_a_line_is_an_accuracy_figure(registry, records):
    kd.figure("mine", runs=RUNS)
    table, fig, sentences = figures.make("mine", of("mine", records))
    assert figures.list_figures()[-1] == "mine" and figures.get_figure("mine").notebook == ""
    again, _, usual = figures.make("kd_accuracy", of("kd_accuracy", records))
    assert table.equals(again) and sentences == usual and fig.axes


def test_a_figure_of_no_notebook_is_drawn_when_asked_for_alone(registry):
    kd.figure("mine", runs=[{"method": "kd", "T": 9.0}])
    (run,) = figures.wanted("mine", "smoke", 1)
    assert run.params == (("T", 9.0),) and run not in figures.wanted(None, "smoke", 1)


def test_the_table_is_computed_once(registry, records, monkeypatch):
    counted = []

    @kd.figure("counted", runs=RUNS)
    def count(records):
        counted.append([r.id for r in records])
        return figures.accuracy_table(records)

    assert registry["counted"].table is count
    for name in ("counted", "kd_accuracy", "dckd_classmax"):
        mine = of(name, records)
        usual = figures.get_figure(name)

        def table(given, usual=usual):
            counted.append([r.id for r in given])
            return usual.table(given)

        if name != "counted":
            monkeypatch.setitem(registry, name, index.replace(usual, table=table))
        counted.clear()
        figures.make(name, mine)
        assert counted == [[r.id for r in mine]]


def test_a_class_replaces_what_it_defines(registry, records):
    @kd.figure("mine", runs=RUNS)
    class Mine:
        def say(table):
            return [f"{len(table)} rows.", "Nothing more."]

    table, fig, sentences = figures.make("mine", of("mine", records))
    assert sentences[:-1] == [f"{len(table)} rows.", "Nothing more."] == Mine.say(table)
    assert sentences[-1] == "Whose numbers: runs of this store, seeds 0 to 1."
    assert registry["mine"].draw is figures.draw_accuracy and len(fig.axes) == 2

    @kd.figure("mine", runs=RUNS, kind=figures.Sweep("T", "temperature"))  # a cell that runs again
    class Swept:
        say = figures.say_accuracy

    assert "T" in figures.make("mine", of("mine", records))[0].columns


def test_names_of_figures(registry):
    with pytest.raises(ValueError, match="there already, in kdkit.study.figures.results"):
        kd.figure("results", runs=RUNS)
    for name in ("", "../x", "two words", "a.b"):
        with pytest.raises(ValueError, match="use letters, digits"):
            kd.figure(name, runs=RUNS)
    with pytest.raises(ValueError, match=r"unknown figure 'kd_acuracy'.*kd_accuracy"):
        figures.make("kd_acuracy", [])
    assert figures.list_figures() == sorted(registry, key=lambda name: registry[name].notebook)


def test_the_example_of_the_documentation_runs(registry, records):
    example = doctest.DocTestParser().get_doctest(
        index.__doc__, {"__name__": "learner"}, "index", None, 0
    )
    found = doctest.DocTestRunner().run(example, clear_globs=False)
    assert found.attempted > 3 and found.failed == 0
    table, fig, (alt, finding, whose) = figures.make("my_seconds", of("my_seconds", records))
    assert table["mean"].tolist() == [1.0, 1.0] and len(fig.axes[0].patches) == 2
    assert finding == "Baseline takes longest."


LEARNERS = """
import kdkit as kd

class Quiet(kd.KD):
    name = "quiet"
    title = "Quiet KD"

kd.figure("quiet", runs=[{"method": "baseline"}, {"method": "quiet"}])
"""


def test_a_learners_file_adds_a_figure_and_the_command_line_draws_it(
    registry, call, runs, tmp_path, monkeypatch
):
    monkeypatch.setenv("KDKIT_FIGURES", str(tmp_path / "figures"))
    file = tmp_path / "quiet.py"
    file.write_text(LEARNERS)
    code, _, errors = call(
        "figures", "--only", "quiet", "--preset", "smoke", "--module", str(file), "--workers", "1"
    )
    assert code == 0, errors
    about = json.loads((tmp_path / "figures" / "quiet.json").read_text())
    assert "Quiet KD" in about["alt"] and len(about["runs"]) == 2
    code, _, errors = call("figures", "--only", "quit", "--preset", "smoke")
    assert code == 2 and "did you mean quiet" in errors[0]
    sweep.load_module.cache_clear()
