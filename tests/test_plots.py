"""Tables recomputed from records, sentences that follow the numbers, pictures that do not drift."""

import ast
import copy
import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from kdkit import metrics, pictures, plots, store, tables
from kdkit.config import preset
from kdkit.data import load
from kdkit.methods import make, methods, resolve

rng = np.random.default_rng(0)
N, K, E = 500, 10, 3
LESSON = load("lesson")
Y = LESSON.y_test[:N].numpy()


def fake(shift=0.0, **fields):
    """A record in the store whose numbers follow from drawn logits; nothing is trained."""
    run = resolve(preset("smoke", **fields))
    method = make(run)
    m, peers = method.group()[1], method.peers()
    own = np.random.default_rng([run.seed, zlib.crc32(plots.label(run).encode())])
    right = np.eye(K)[Y]
    z = (own.normal(size=(m, N, K)) + (1.5 + shift) * right).astype("f2")
    its = method.teacher_run(run)
    t = (np.random.default_rng(9).normal(size=(N, K)) + 2 * right).astype("f2") if its else None
    result = metrics.report(z, Y, peers, method.deployed(run.seed), t)
    history = [
        {
            "epoch": e,
            "lr": 0.1 / (e + 1),
            "ramp": 1.0,
            "terms": {k: 2.0 / (e + 1) for k in method.weights()},
            "train_top1": [50.0 + e + run.seed] * m,
            "probe_top1": [45.0 + e] * m,
            "probe_ensemble": 50.0,
            "diversity": 0.1 / (e + 1) + shift if m > 1 else None,
            "seconds": 1.0,
        }
        for e in range(E)
    ]
    arrays = {"attention": own.dirichlet([4] * peers, (E, peers)), "probe_index": np.arange(64)}
    logits = {"students": z} | ({} if t is None else {"teacher": t})
    names = list(LESSON.class_names)
    meta = {
        "method": method.title,
        "shape": [1, 28, 28],
        "classes": K,
        "class_names": names,
        "teacher": its and store.run_id(its),
        "environment": {},
        "seconds": 1.0,
        "history": history,
        "result": result,
    }
    return store.save(run, meta, {}, {"history.npz": arrays, "test_logits.npz": logits})


@pytest.fixture(scope="module", autouse=True)
def shelf(tmp_path_factory):
    """A store and a folder of figures of this module's own."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv("KDKIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        m.setenv("KDKIT_FIGURES", str(tmp_path_factory.mktemp("figures")))
        m.setattr(tables, "test_set", lambda name: (LESSON.x_test[:N].numpy(), Y))
        yield


@pytest.fixture(scope="module")
def records(shelf):
    """Every run that any figure wants, for two seeds, drawn."""
    return {
        store.run_id(run): fake(
            **dict(run.params), method=run.method, seed=run.seed, schedule=run.schedule
        )
        for run in plots.wanted(None, "smoke", 2)
    }


def of(name, records):
    return [records[store.run_id(run)] for run in plots.wanted(name, "smoke", 2)]


def changed(record, **result):
    """The record with other results, as if it had been falsified."""
    meta = copy.deepcopy(record.meta)
    meta["result"] |= result
    return store.Record(record.path, meta)


@pytest.mark.parametrize("name", plots.FIGURES)
def test_every_figure_draws_and_speaks(name, records):
    spec = plots.FIGURES[name]
    mine = of(name, records)
    table, fig = spec.table(mine), spec.draw(mine)
    alt, *findings = spec.say(table)
    assert len(findings) >= 1 and all(s.endswith((".", ")")) for s in [alt, *findings])
    assert "nan" not in " ".join([alt, *findings]).lower()
    assert set(table.attrs["runs"]) <= {r.id for r in mine} and (table.attrs["runs"] or not mine)
    with plots.look():
        fig.draw_without_rendering()  # lays it out
    texts = [t for ax in fig.axes for t in ax.texts if t.get_text()]
    bounds = fig.bbox.padded(2)
    for t in texts:  # nothing is cut off at the edge of the picture
        box = Text.get_window_extent(t)
        assert bounds.contains(box.x0, box.y0) and bounds.contains(box.x1, box.y1), t.get_text()
    notebook = re.fullmatch(r"\d\d", spec.notebook)
    assert notebook, spec.notebook


def test_wanted_is_in_notebook_order_without_duplicates():
    runs = plots.wanted(None, "smoke", 3)
    ids = [store.run_id(run) for run in runs]
    assert len(set(ids)) == len(ids)
    every = {store.run_id(r) for name in plots.FIGURES for r in plots.wanted(name, "smoke", 3)}
    assert set(ids) == every
    first = plots.wanted("baseline_curves", "smoke", 3)
    assert runs[:3] == first and [r.seed for r in first] == [0, 1, 2]
    assert [r.seed for r in plots.wanted("kd_accuracy", "smoke", [7])] == [7, 7]
    assert plots.wanted("entropy_correlation", "smoke", 3) == []


def test_unknown_figure_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown figure 'kd_acuracy'.*kd_accuracy"):
        plots.wanted("kd_acuracy", "smoke", 1)


def test_every_control_is_in_its_own_figure(records):
    """Side by side means: with the control, unless there is none."""
    for name in ("results", "online_accuracy", "okddip_accuracy", "dckd_accuracy", "kd_accuracy"):
        table = plots.FIGURES[name].table(of(name, records))
        ours = table[(table["method"] != "") & (table["label"] != "Baseline")]
        assert (ours["control"] != "").all(), name
        assert (ours["pairs"] == 2).all()


def test_labels_say_what_differs():
    def label(**fields):
        return plots.label(preset("smoke", **fields))

    assert label(method="okddip") == "OKDDip" == label(method="okddip", m=4, seed=3)
    assert label(method="okddip", attention="mean") == "OKDDip (attention=mean)"
    assert label(method="ind", based="network") == "Ind (network)"
    assert label(method="kd", T=2.0, epochs=5) == "KD (T=2, epochs=5)"
    assert label(method="baseline", schedule="sgdr") == "Baseline (schedule=sgdr)"
    assert plots.label(preset("okddip_paper", method="kd")) == "KD"
    assert plots.label(preset("dckd_paper", method="dckd")) == "DCKD"


def test_accuracy_is_recomputed_from_the_stored_logits(records):
    mine = of("okddip_accuracy", records)
    table = plots.FIGURES["okddip_accuracy"].table(mine).set_index("label")

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
    say, table = plots.FIGURES["kd_accuracy"].say, plots.FIGURES["kd_accuracy"].table
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
    one = plots.FIGURES["kd_accuracy"].say(table([base[0], kd[0]]))[1]
    assert one.endswith("in 1 seed: one seed gives no interval, so this is not shown.")


def test_diversity_findings_flip(records):
    spec, mine = plots.FIGURES["online_diversity"], of("online_diversity", records)
    low, high = (copy.deepcopy([r.meta for r in mine]) for _ in range(2))
    for metas, step in ((low, -0.01), (high, 0.01)):
        for meta in metas:
            if meta["run"]["method"] == "okddip":
                for row in meta["history"]:
                    row["diversity"] += step

    def said(metas):
        return " ".join(
            spec.say(
                spec.table(
                    [store.Record(r.path, meta) for r, meta in zip(mine, metas, strict=True)]
                )
            )
        )

    assert "has the most diverse" in said(low) and "has not the most diverse" in said(high)
    assert "OKDDip's diversity is 0.0100 below Ind's" in said(low)
    assert "OKDDip's diversity is 0.0100 above Ind's" in said(high)


def test_curves_are_means_and_deviations_over_seeds(records):
    table = tables.curves(of("baseline_curves", records), "training accuracy (%)", "diversity")
    assert set(table["quantity"]) == {"training accuracy (%)"}  # one network has no diversity
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["mean"].tolist() == [50.5, 51.5, 52.5]
    assert table["sd"].tolist() == pytest.approx([np.sqrt(0.5)] * 3)


def test_attention_and_its_asymmetry(records):
    mine = of("okddip_attention", records)
    table = tables.attention(mine)
    A = mine[1].arrays["attention"][2]
    t = table[(table["seed"] == 1) & (table["epoch"] == 3)]
    assert t.pivot(index="peer", columns="source", values="attention").to_numpy() == pytest.approx(
        A
    )
    assert t.pivot(index="peer", columns="source", values="asymmetry").to_numpy() == pytest.approx(
        A - A.T
    )


def test_correlation_numbers_by_hand(records):
    mine = of("dckd_correlation", records)[:1]
    table = tables.correlation(mine, (4.0,)).set_index("who")
    z, t = (mine[0].test_logits[k].astype("f8") for k in ("students", "teacher"))
    others = np.stack([np.delete(z, k, 0).max(0) for k in range(len(z))])
    for who, v in (("Teacher", t), ("Students", z), ("Collection", others)):
        p = np.exp(v / 4)
        want = (p / p.sum(-1, keepdims=True) > 1 / K).sum(-1).mean()
        assert table.loc[who, "mean"] == pytest.approx(want)


def test_class_maximum_by_hand(records):
    mine = of("dckd_classmax", records)
    table = tables.class_maximum(mine, true=3, student=1, tau=2.0)
    p = metrics.softmax(mine[0].test_logits["students"][1], 2.0)[Y == 3]
    assert table["student"].tolist() == pytest.approx(p.max(0).tolist())
    shown = [int(i) for i in table["images"][5].split()]
    assert shown[0] == np.flatnonzero(Y == 3)[p[:, 5].argmax()] and set(Y[shown]) == {3}
    assert {int(Y[int(i)]) for i in table["like"][5].split()} == {5}
    with pytest.raises(ValueError, match="student of 0 to 2; seen student=3"):
        tables.class_maximum(mine, student=3)


def test_reliability_adds_up(records):
    table = tables.reliability(of("calibration", records))
    for label, t in table.groupby("label"):
        assert t["share"].sum() == pytest.approx(1), label
        right = (t["share"] * t["accuracy"]).sum()
        mine = [r for r in of("calibration", records) if tables.label(r) == label]
        assert 100 * right == pytest.approx(np.mean([r.result["top1_deployed"] for r in mine]))


def test_the_papers_two_distributions():
    table = tables.distributions().drop_duplicates("distribution")
    assert table["entropy"].round(3).tolist() == [1.677, 0.688]
    assert table["correlation_number"].tolist() == [1, 2]
    assert "in opposite ways" in plots.FIGURES["entropy_correlation"].say(tables.distributions())[1]
    same = tables.distributions().assign(entropy=[0.1] * K + [0.2] * K)
    assert " alike" in plots.FIGURES["entropy_correlation"].say(same)[1]


def test_logits_of_many_classes_are_refused(records):
    r = next(iter(records.values()))
    short = store.Record(r.path, r.meta)
    short.__dict__["test_logits"] = {"students": np.zeros((1, 4, 11)), "students_classes": None}
    with pytest.raises(ValueError, match="only the largest logits"):
        tables.logits(short)


def test_save_is_the_same_twice(records):
    spec, mine = plots.FIGURES["online_accuracy"], of("online_accuracy", records)
    seen = []
    for _ in range(2):
        table = spec.table(mine)
        path = plots.save(spec.draw(mine), "online_accuracy", 'say <what> it "shows" ±', table)
        files = {p.suffix: p.read_bytes() for p in path.parent.glob("online_accuracy.*")}
        seen.append(files)
    assert set(seen[0]) == {".png", ".svg", ".csv", ".json"} and path.suffix == ".png"
    assert seen[0] == seen[1]
    about = json.loads(seen[0][".json"])
    assert about == {"alt": 'say <what> it "shows" ±', "runs": sorted(r.id for r in mine)}
    assert pd.read_csv(path.with_suffix(".csv"))["mean"].tolist() == pytest.approx(
        table["mean"].tolist(), rel=1e-5
    )
    assert b"<dc:date>" not in seen[0][".svg"] and path.parent == plots.figures_root()


def test_alt_text_is_escaped():
    class Image(HTMLParser):
        def handle_starttag(self, tag, attrs):
            self.found = tag, dict(attrs)

    alt, parser = 'KD\'s "p" < .05 & <b>T</b>', Image()
    text = plots.html(plots.draw_progress([], "nothing yet"), alt)
    parser.feed(text)
    tag, attrs = parser.found
    assert tag == "img" and attrs["alt"] == alt and text.count("<") == 1
    assert attrs["src"].startswith("data:image/png;base64,")


def test_each_method_has_its_own_look():
    looks = [plots.style(m) for m in ["", *methods()]]
    assert len({s["color"] for s in looks}) == len(looks)
    assert len({(s["marker"], str(s["linestyle"])) for s in looks}) == len(looks)
    for s in looks:  # text in a method's colour can be read on white: luminance ratio above 3.9
        r, g, b = (
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
            for v in to_rgb(pictures.ink(s["color"]))
        )
        assert 1.05 / (0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05) > 3.9, s


def test_end_labels_do_not_overlap():
    fig = Figure(figsize=(5, 3), layout="constrained")
    ax = fig.subplots()
    ax.set_ylim(0, 1)
    pictures.end_labels(ax, [(0.5, f"label {k}", "#333333") for k in range(5)])
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
    names, z = ["T-shirt", *(f"class {k}" for k in range(1, K))], rng.normal(size=(6, K))
    a, b, p = rng.dirichlet(np.ones(3), 3), np.eye(3), rng.dirichlet(np.ones(K), 4)
    x = rng.integers(0, 256, (8, 1, 28, 28)).astype("u1")
    for draw, *cases in (
        (plots.draw_temperature, (z[0], z[1], 4.0, names), (z[2], 3 * z[3], 0.5, names)),
        (plots.draw_collection, (z[:3], z.max(0), 1, 2.0, names), (z[3:], z.min(0), 0, 9.5, names)),
        (plots.draw_class_map, (*p[:2], 2, 6, x[:4], names), (*p[2:], 0, 9, x[4:], names)),
        (plots.draw_matrices, ([("epoch 0", a)],), ([("epoch 12", b)],)),
        (
            plots.draw_progress,
            ([], "not trained yet"),
            (history("ce", "collection", epochs=7), "DCKD: 83.20 %"),
            ([], "not trained yet"),
            (history("reconstruction", epochs=1), "FT"),
        ),
    ):
        fig, seen = None, set()
        for case in cases:
            fig = draw(*case, fig=fig)
            again, text = plots.html(fig, "a"), plots.html(draw(*case), "a")
            assert again == text and text.startswith('<img alt="a"') and fig.axes
            seen.add(again)
        assert len(seen) == len({str(case) for case in cases})
        fig = draw(*case)
        for part in (part for ax in fig.axes for part in ax.get_children()):
            part.set_animated(False)
        assert plots._bytes(fig, "svg") == plots._bytes(draw(*case), "svg")  # files hold it all


def test_more_images_than_before_are_not_squeezed():
    fig, names = None, [f"class {k}" for k in range(K)]
    for n in (2, 4, 1):
        fig = plots.draw_class_map(
            np.ones(K), np.ones(K), 0, 1, np.zeros((n, 1, 28, 28), "u1"), names, fig=fig
        )
        plots.html(fig, "a")
        box, (high, wide) = fig.axes[1].get_window_extent(), fig.axes[1].images[0].get_size()
        assert box.width / box.height == pytest.approx(wide / high)


def test_a_figure_that_was_changed_is_shown_so():
    fig = plots.draw_images(np.zeros((1, 1, 28, 28), "u1"), ["before"])
    first = plots.html(fig, "a")
    assert plots.html(fig, "a") == first
    fig.axes[0].set_title("after")
    assert plots.html(fig, "a") != first


def test_pyplot_is_never_imported():
    for path in (Path(plots.__file__), Path(pictures.__file__), Path(tables.__file__)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                said = ast.unparse(node)
                assert "pyplot" not in said and "pylab" not in said
    code = (
        "import sys, kdkit.plots as p\np.html(p.draw_progress([], ''), '')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
