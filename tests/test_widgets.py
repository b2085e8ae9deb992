"""Widgets without a browser: their controls are set, and what they then show is read."""

import base64
import html
import io
import re
import shutil
import threading
import time

import ipywidgets as W
import numpy as np
import pytest
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.image import imread

import kdkit as kd
from kdkit import metrics
from kdkit.fields import fields
from kdkit.methods import list_methods, method_class
from kdkit.study import figures, hidden, reference, runs, store, sweep
from kdkit.study.figures import predictions
from kdkit.study.plans import control, plan, preset
from kdkit.study.widgets import ablations, images, panels, training

NAMES = ["a", "b", "c", "cd"]
Z = np.array([[9.0, 0, 0, 0], [9, 5, 0, 0], [9, 8.5, 0, 0], [0, 9, 5, 0]])  # (N, K)
Y = np.array([0, 0, 0, 0])


@pytest.fixture(scope="module")
def trained(apart):
    """trained(method, ...): a finished smoke run."""
    return lambda method, **fields: runs.get(preset("smoke", method=method, **fields))


@pytest.fixture
def shown(monkeypatch):
    """What a page was given, with controls."""
    monkeypatch.delenv("KDKIT_BATCH")
    found = []
    monkeypatch.setattr(panels, "display", found.append)
    return found


def text(widget) -> str:
    return html.unescape(re.sub("<[^>]*>", "", widget.value))


def alt(panel) -> str:
    return html.unescape(re.search('<img alt="([^"]*)"', panel.picture.value)[1])


# ---- images to choose from ----


def test_orders_begin_with_what_fits_most():
    z = np.stack([Z, Z, Z[::-1]])
    orders = kd.widgets.image_orders(z, Z, Y)
    assert list(orders) == ["clear rival", "sure", "unsure", "wrong", "teacher ≠ student",
                            "students differ", "all"]  # fmt: skip
    assert orders["clear rival"][0] == kd.widgets.clear_rival(Z, Y) == 1
    assert orders["sure"][0] == 0 and orders["unsure"][0] == 2
    assert orders["wrong"].tolist() == [3] and orders["all"].tolist() == [0, 1, 2, 3]
    assert orders["students differ"][0] in (0, 3)  # Z[0] and Z[3] change places
    student = np.where(np.arange(4)[:, None] == 2, Z[3], Z)  # another answer to image 2
    assert kd.widgets.image_orders(student[None], Z, Y)["teacher ≠ student"][0] == 2
    right = kd.widgets.image_orders(Z[None, :3], None, Y[:3])
    assert list(right) == ["clear rival", "sure", "unsure", "all"]  # none is wrong, nobody differs


def test_the_first_images_are_one_of_each_class():
    y = np.array([2, 2, 1, 0, 0, 2, 1])
    order = images.one_of_each(np.arange(7), y)
    assert order.tolist() == [0, 2, 3, 1, 4, 6, 5]
    rng = np.random.default_rng(0)
    y, order = rng.integers(0, 9, 200), rng.permutation(200)
    found = images.one_of_each(order, y)
    assert sorted(found) == list(range(200)) and set(y[found[:9]]) == set(range(9))
    place = {image: k for k, image in enumerate(order)}
    for c in range(9):
        own = [place[image] for image in found if y[image] == c]
        assert own == sorted(own)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_a_thumbnail_is_its_image_at_most_64_pixels_high(channels, kind):
    image = np.random.default_rng(0).integers(0, 200, (channels, 20, 30)).astype(kind)

    def read(image):
        address = predictions.thumbnail(image)
        assert address.startswith("data:image/png;base64,")
        return imread(io.BytesIO(base64.b64decode(address.partition(",")[2])))

    seen = read(image)
    assert seen.shape[:2] == (20, 30)
    order = np.argsort(image[0].ravel(), kind="stable")
    values = seen[..., 0].ravel()[order]
    assert (np.diff(values if channels == 3 else -values) >= 0).all()  # one channel: dark is much
    assert read(np.zeros((channels, 300, 200), kind)).shape[0] <= 64


def items(*words):
    image = np.zeros((1, 4, 4), "u1")
    return [(10 + k, image, word, f"tip of {word}") for k, word in enumerate(words)]


def test_each_thumbnail_can_be_pressed_and_says_what_it_is():
    made, heard = kd.widgets.Thumbnails(), []
    made.observe(lambda change: heard.append(change["new"]), "value")
    made.show(items("same", "same", "other"))
    assert made.value == 10 and heard == [10]
    for place, button in enumerate((11, 12, 10)):
        made.buttons.index = button - 10  # what a click sets
        assert made.value == button and len(heard) == place + 2
    assert [word.strip("\u200b") for word in made.buttons._options_labels] == [
        "same", "same", "other"]  # fmt: skip
    assert made.buttons.tooltips == ("tip of same", "tip of same", "tip of other")
    style = made.look.value
    assert style.count("background-image: url(data:image/png") == 3 and made.mark in style
    assert made.mark in made.buttons._dom_classes and made.mark != kd.widgets.Thumbnails().mark
    made.show(items("same", "new"), pressed=11)
    assert made.value == 11 and heard[-1] == 11 and made.buttons.index == 1
    made.show(items("same", "new"), pressed=99)  # it is none of them
    assert made.value == 99 and made.buttons.index is None
    made.show([])
    assert made.buttons.options == ()


@pytest.fixture
def picker():
    rng = np.random.default_rng(1)
    y = np.arange(40) % 4
    x, z = rng.integers(0, 256, (40, 1, 6, 6)).astype("u1"), rng.normal(size=(2, 40, 4))
    return kd.widgets.ImagePicker(x, y, NAMES, z, z[0], "sure")


def test_a_picker_turns_pages_and_picks_the_first_of_each(picker):
    order = picker.orders["sure"]
    assert picker.value == order[0] and picker.thumbnails.buttons.index == 0
    assert len(picker.thumbnails.buttons.options) == 12 and text(picker.count) == "1 to 12 of 40"
    assert picker.back.disabled and not picker.more.disabled
    for _ in range(3):
        picker.more.click()
    assert picker.value == order[36] and text(picker.count) == "37 to 40 of 40"
    assert picker.more.disabled
    picker.thumbnails.buttons.index = 2
    assert picker.value == order[38]
    picker.back.click()
    assert picker.value == order[24]
    picker.order.value = "unsure"  # from the beginning
    assert picker.value == picker.orders["unsure"][0] and text(picker.count) == "1 to 12 of 40"


def test_a_picker_opens_with_a_chosen_image_among_its_class(picker):
    x, y, z = picker.images, np.zeros(40, int), np.stack([picker.p] * 2)
    for first in (0, 17, 39):
        made = kd.widgets.ImagePicker(x, y, NAMES, z, None, "sure", first)
        shown = [value for _, value in made.thumbnails.buttons.options]
        place = made.orders["sure"].tolist().index(first)
        assert made.value == first and made.of.value == "a"
        assert shown == made.orders["sure"][place // 12 * 12 :][:12].tolist()
        assert shown[made.thumbnails.buttons.index] == first


def test_a_picker_shows_one_class_when_it_is_typed(picker):
    for typed, classes in (("b", {1}), ("c", {2}), ("CD", {3}), ("", {0, 1, 2, 3})):
        picker.of.value = typed
        numbers = [value for _, value in picker.thumbnails.buttons.options]
        assert set(picker.labels[numbers]) == classes, typed
        assert picker.value == numbers[0]
    before = picker.value
    picker.of.value = "<x>"
    assert text(picker.count) == "none of '<x>'" and picker.value == before
    assert picker.thumbnails.buttons.options == ()


def test_a_thumbnail_says_what_was_answered(picker):
    for number in range(40):
        _, image, word, tip = picker.item(number)
        said, true = int(picker.p[number].argmax()), number % 4
        assert (image == picker.images[number]).all()
        arrow = "" if said == true else f"→{NAMES[said]}"
        assert word == f"{NAMES[true]}{arrow} {picker.p[number, said]:.2f}"
        assert tip.startswith(f"test image {number}, {NAMES[true]}: the teacher says {NAMES[said]}")


# ---- panels ----


def test_of_quick_changes_the_last_is_shown_and_not_all_are_drawn():
    drawn, begun = [], threading.Event()

    def draw(fig, x):
        begun.set()
        time.sleep(0.01)
        drawn.append(x)
        return Figure(figsize=(1, 1)), f"x is {x}"

    knob = kd.widgets.slider("x", 0, 0, 1000, 1)
    panel = kd.widgets.Panel("quick", draw, x=knob)
    threads = [threading.Thread(target=setattr, args=(knob, "value", k)) for k in range(1, 101)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert text(panel.line) == f"x is {knob.value}" == alt(panel) and drawn[-1] == knob.value
    assert len(drawn) < 100
    panel.redraw()  # when it is asked for, it is drawn again
    assert drawn[-2:] == [knob.value] * 2


def test_a_panel_shows_its_error_and_its_figures_come_and_go(monkeypatch):
    def draw(fig, x):
        if x == 3:
            raise ValueError("3 is <not> allowed")
        return None if x == 4 else Figure(figsize=(1, 1)), f"x is {x}"

    monkeypatch.delenv("KDKIT_BATCH")
    knob = kd.widgets.slider("x", 2, 0, 9, 1)
    panel = kd.widgets.Panel("odd", draw, x=knob)
    knob.value = 3
    assert text(panel.line) == "ValueError: 3 is <not> allowed" and alt(panel) == "x is 2"
    knob.value = 4
    assert text(panel.line) == "x is 4" and panel.picture.value == ""
    knob.value = 5
    assert alt(panel) == "x is 5"
    monkeypatch.setenv("KDKIT_BATCH", "1")
    with pytest.raises(ValueError, match="not"):
        knob.value = 3


# ---- what is said of single images ----


def test_temperature_opens_on_a_clear_rival_and_follows(trained, shown):
    record = trained("kd")
    z, y, names = record.logits()[1], record.labels, record.meta["class_names"]
    kd.widgets.temperature(record)
    (panel,) = shown
    T, picker = panel.controls["T"], panel.controls["image"]
    first = kd.widgets.clear_rival(z, y)
    assert text(panel.line).startswith(f"image {first} ({names[y[first]]}), T = 4: entropy")
    assert alt(panel) == text(panel.line) and picker.thumbnails.buttons.index == 0
    T.value = 1.5
    entropy = metrics.entropy(metrics.softmax(z[first], 1.5))
    assert f"T = 1.5: entropy {entropy:.3f} (teacher)" in text(panel.line)
    before = panel.picture.value
    picker.thumbnails.buttons.index = 3
    other = picker.orders["clear rival"][3]
    assert f"image {other} ({names[y[other]]})" in text(panel.line)
    assert panel.picture.value != before
    kd.widgets.temperature(record, image=7)
    picker = shown[-1].controls["image"]
    assert text(shown[-1].line).startswith("image 7 (") and picker.of.value == names[y[7]]
    assert picker.thumbnails.buttons.value == 7
    for image in (-1, len(y)):
        with pytest.raises(ValueError, match=f"image={image}: must be from 0 to {len(y) - 1}"):
            kd.widgets.temperature(record, image=image)


def test_collection_opens_where_students_disagree(trained, shown):
    record = trained("dckd")
    z = record.logits()[0]
    kd.widgets.collection(record)
    (panel,) = shown
    image = int(metrics.softmax(z).var(0).sum(-1).argmax())
    assert text(panel.line).startswith(f"image {image} (")
    panel.controls["kind"].value = "avg"
    panel.controls["student"].value = 2
    panel.controls["reverse"].value = False
    received = metrics.softmax(np.delete(z[:, image], 1, 0).mean(0), 2.0)
    own = metrics.softmax(z[1, image], 2.0)
    kl = (received * np.log(received / own)).sum()
    assert f"student 2 receives avg; forward KL {kl:.4f};" in text(panel.line) == alt(panel)


def test_attention_opens_where_it_is_least_symmetric(trained, shown):
    record = trained("okddip")
    A = record.arrays["attention"].astype(float)
    kd.widgets.attention(record)
    (panel,) = shown
    gaps = np.abs(A - A.transpose(0, 2, 1)).max((1, 2))
    assert panel.controls["epoch"].value == gaps.argmax() + 1
    panel.controls["epoch"].value = 1
    own = A[0].argmax(1)[0] == 0
    assert f"peer 1 learns most from {'itself' if own else 'peer '}" in text(panel.line)
    assert f"largest asymmetry |A - Aᵀ| {gaps[0]:.3f}" in alt(panel)
    with pytest.raises(ValueError, match="kept no attention"):
        kd.widgets.attention(trained("kd"))


def test_class_map_opens_with_the_largest_extra_peak(trained, shown):
    record = trained("kd")
    names, y = record.meta["class_names"], record.labels
    (z,), z_teacher = record.logits()
    K = len(names)

    def top(z, of, tau):
        return metrics.softmax(z, tau)[y == of].max(0)

    above = np.stack([top(z, c, 4.0) - top(z_teacher, c, 4.0) for c in range(K)])
    above[np.eye(K, dtype=bool)] = -1
    of, peak = map(int, np.unravel_index(above.argmax(), above.shape))
    kd.widgets.class_map(record)
    (panel,) = shown
    picker = panel.controls["classes"]

    def told(of, peak, tau):
        return (
            f"largest p({names[peak]}) over the {(y == of).sum()} images of {names[of]}, tau = "
            f"{tau:g}: student {top(z, of, tau)[peak]:.3f}, "
            f"teacher {top(z_teacher, of, tau)[peak]:.3f}; "
        )

    assert picker.value == (of, peak) and text(panel.line).startswith(told(of, peak, 4.0))
    assert (picker.of.value, picker.peak.value) == (names[of], names[peak])
    drawn, other = [], names.index("é")
    panel.line.observe(lambda change: drawn.append(change["new"]), "value")
    picker.of.value = "é"  # of its images the highest peak elsewhere is shown, drawn once
    heights = top(z, other, 4.0)
    heights[other] = 0
    highest = int(heights.argmax())
    assert picker.value == (other, highest) and picker.peak.value == names[highest]
    assert text(panel.line).startswith(told(other, highest, 4.0)) and len(drawn) == 1
    assert picker.thumbnails.buttons.index == 0
    picker.thumbnails.buttons.index = 5
    fifth = int(np.argsort(-heights, kind="stable")[5])
    assert picker.value == (other, fifth) and picker.peak.value == names[fifth]
    assert len(drawn) == 2
    picker.peak.value = "Q"
    assert text(panel.line).startswith(told(other, names.index("Q"), 4.0))
    panel.controls["tau"].value = 0.5
    assert text(panel.line).startswith(told(other, names.index("Q"), 0.5)) and alt(panel)
    picker.of.value = "no such class"
    assert text(picker.note) == "no class begins so" and picker.value[0] == other
    picker.of.value = ""
    assert picker.value[0] == other
    with pytest.raises(ValueError, match="has no teacher"):
        kd.widgets.class_map(trained("ind"))


def test_class_peaks_are_the_largest_of_a_class():
    rng = np.random.default_rng(2)
    z, y = rng.normal(size=(30, 5)), np.arange(30) % 5
    top, behind = figures.class_peaks(z, y, 3, 2.0)
    p = metrics.softmax(z, 2.0)
    assert behind.shape == (4, 5) and set(y[behind.ravel()]) == {3}
    for c in range(5):
        own = p[y == 3, c]
        assert top[c] == own.max() and p[behind[:, c], c].tolist() == sorted(own)[::-1][:4]


def test_names_of_peaks_have_room():
    rng = np.random.default_rng(0)
    for names in ([f"long_name_{k}" for k in range(100)], list("ab" * 50)):
        p = rng.dirichlet(np.ones(100), 2)
        fig = figures.draw_class_map(*p, 3, 50, np.zeros((4, 1, 20, 20), "u1"), names)
        figures.html(fig, "a")
        boxes = [t.get_window_extent() for t in fig.axes[0].texts if t.get_text() in names]
        spans = sorted((b.x0, b.x1) for b in boxes)
        assert len(spans) > 3
        assert all(a[1] <= b[0] + 1 for a, b in zip(spans, spans[1:], strict=False))


# ---- characters that were never seen ----


@pytest.fixture(scope="module")
def hides(apart):
    """A student from whom two characters were hidden, at T = 4."""
    fields = figures.hidden_fields("é,Q", 4.0)
    return runs.get(preset("smoke", **fields))


def test_unseen_follows_the_temperature(hides, shown, monkeypatch):
    unlabelled = hides.logits()[0][0][::7]  # the network is asked elsewhere
    for module in (hidden, figures.unseen):
        monkeypatch.setattr(module, "unlabelled_logits", lambda record: unlabelled)
    kd.widgets.unseen(kd.lab("smoke"))
    (box,) = shown
    row, training_box, picture, line = box.children
    button, *_, note = training_box.children
    hide, T, _, bias = row.children
    numbers = hidden.hidden_numbers(hides, bias=False)
    told = f"at T = 4: it names {numbers['hidden_top1']:.0f} % of their test images, and"
    assert told in text(line) and button.disabled and note.value == "trained"
    T.value = 7.0
    assert "at T = 7: it is not trained yet" in text(line)
    assert not button.disabled and note.value == "not trained yet"
    assert "not trained yet" in re.search('alt="([^"]*)"', picture.value)[1]
    T.value = 4.0
    assert told in text(line) and note.value == "trained"
    bias.value = True
    both = hidden.hidden_numbers(hides)
    assert set(both) > set(numbers) == {"hidden_top1", "seen_top1"}
    assert f"names {both['hidden_top1_bias']:.0f} % of their test images with" in text(line)
    hide.value = "é,nothing"
    assert text(line).startswith("ValueError: unknown class 'nothing'")


def test_what_was_asked_and_what_was_answered_have_one_form(hides):
    asked, answered = figures.asked_table(hides.run), figures.answers_table([hides])
    assert asked[["true", "image"]].equals(answered[["true", "image"]])
    assert set(asked["said"]) == {"?"} and asked["named"].isna().all()
    fig = figures.draw_calls(asked)
    assert figures.draw_calls(answered, fig) is fig
    names = [t.get_text() for t in fig.axes[0].texts]
    assert [n for n in names if "\n" not in n] == answered["said"].tolist()
    three = figures.asked_table(hides.run.replace(hide="a,b,é"))
    assert figures.draw_calls(three, fig) is not fig


# ---- knobs ----


@pytest.mark.parametrize("method", list_methods())
def test_a_knob_says_what_its_field_is(method):
    described = fields(method_class(method))
    for name, knob in kd.widgets.knobs(plan(preset("lesson", method=method)).method).items():
        assert knob.tooltip == described[name].description != ""
        assert knob.description == name
        # ipywidgets shows a tooltip on these alone, for a widget with a description.
        assert isinstance(knob, W.ToggleButtons | W.IntSlider | W.FloatSlider)


def test_knobs_begin_where_the_recipe_is():
    method = plan(preset("lesson", method="at")).method
    assert method.beta != fields(type(method))["beta"].default  # the lesson has another weight
    assert kd.widgets.knobs(method)["beta"].value == method.beta


def test_light_sliders_act_while_they_move(trained, shown):
    kd.widgets.temperature(trained("kd"))
    kd.widgets.collection(trained("dckd"))
    kd.widgets.attention(trained("okddip"))
    kd.widgets.class_map(trained("kd"))
    live = ("T",), ("tau", "student"), ("epoch",), ("tau",)
    for panel, names in zip(shown, live, strict=True):
        assert all(panel.controls[name].continuous_update for name in names)
        knob = panel.controls[names[0]]
        spent = []
        for _ in range(3):
            knob.value = knob.min if knob.value == knob.max else knob.max
            began = time.process_time()
            knob.value = knob.min
            spent.append(time.process_time() - began)
        assert min(spent) < 0.1, panel  # seconds of one core
    knobs = kd.widgets.knobs(plan(preset("smoke", method="okddip")).method)
    assert not knobs["T"].continuous_update  # a run for each value is more than is stored


# ---- the ablation lab ----


@pytest.fixture
def stocked(trained, tmp_path, monkeypatch):
    """stocked(method, ...): a store of this test's own with these runs and their teachers."""

    shared = str(store.root())

    def stock(*methods):
        monkeypatch.setenv("KDKIT_RUNS", shared)
        records = [trained(method) for method in methods]
        monkeypatch.setenv("KDKIT_RUNS", str(tmp_path / "runs"))
        for record in records:
            for name in filter(None, (record.id, record.meta["teacher"])):
                folder = record.path.parent / name
                shutil.copytree(folder, tmp_path / "runs" / name, dirs_exist_ok=True)
        return records

    return stock


@pytest.fixture
def bench(trained, shown):
    """bench(method): the ablation lab of a method, over smoke runs."""

    return lambda method: ablations.AblationLab(kd.lab("smoke"), method)


def rows(lab) -> list[list[str]]:
    return [
        re.findall("<td>([^<]*)</td>", row) for row in re.findall("<tr.*?</tr>", lab.tried.value)
    ][1:]


def knob(lab, name):
    return lab.panel.controls[name]


def test_the_lab_overlays_the_whole_method_and_keeps_what_was_tried(trained, bench, monkeypatch):
    whole, changed = trained("okddip"), trained("okddip", detach=True)
    ind = runs.get(control(plan(whole.run)))
    drawn = []
    draw = figures.draw_overlay
    monkeypatch.setattr(figures, "draw_overlay", lambda c, *a: drawn.append(c) or draw(c, *a))
    lab = bench("okddip")
    assert list(drawn[-1].values()) == [whole.history] and list(drawn[-1]) == ["whole method"]
    gap = whole.result["top1_deployed"] - ind.result["top1_deployed"]
    top1 = f"{whole.result['top1_deployed']:.2f}"
    assert text(lab.panel.line) == f"OKDDip: {top1} %, {gap:+.2f} points against Ind (one seed)"
    knob(lab, "detach").value = True
    assert drawn[-1] == {"detach=True": changed.history, "whole method": whole.history}
    over = changed.result["top1_deployed"] - whole.result["top1_deployed"]
    assert f"{over:+.2f} points against the whole method" in text(lab.panel.line)
    found = {row[0]: row[1:] for row in rows(lab)}
    assert set(found) >= {"▸ detach=True", "whole method"}
    assert found["whole method"][0] == top1 and found["whole method"][1] == ""
    assert found["▸ detach=True"][1] == figures.mean_sd_text(over, float("nan"), "+")
    assert found["▸ detach=True"][4] == "store"
    accuracies = [float(row[1]) for row in rows(lab)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "detach=True" in [row[0] for row in rows(bench("okddip"))]  # the store's, at opening


def test_the_lab_explains_the_field_that_is_turned(bench):
    lab = bench("okddip")
    assert text(lab.explained) == ablations.HOVER
    knob(lab, "attention").value = "mean"
    assert text(lab.explained) == "attention: how the peers are weighted"


def test_the_lab_shows_nothing_stale(stocked, bench):
    stocked("kd")
    lab = bench("kd")
    trainer = lab.trainer
    assert trainer.bar.value == trainer.bar.max == 3 and trainer.note.value == "trained"
    trainer.notes[lab.bench.whole.id] = "done"
    lab.panel.redraw()
    assert trainer.note.value == "done" and trainer.buttons[0].disabled
    lab.pick.value = "one"  # which was never trained in this store
    assert trainer.bar.value == 0 and trainer.note.value == "not trained yet"
    button = trainer.buttons[0]
    assert not button.disabled and button.description == "Train this run"
    assert lab.panel.picture.value == "" and lab.tried.value == ""  # no empty axes
    assert "ONE is not trained yet" in text(lab.panel.line)
    lab.pick.value = "kd"
    assert trainer.note.value == "done" and trainer.bar.value == 3 and alt(lab.panel)


def visible(lab):
    return [b.description for b in lab.trainer.buttons if b.layout.display != "none"]


def test_the_lab_offers_what_is_missing(stocked, bench):
    stocked()
    lab = bench("kd")
    assert visible(lab) == ["Train this run", "Train its control, Baseline"]
    knob(lab, "T").value = 2.0
    assert visible(lab) == [
        "Train this run", "Train the whole method", "Train its control, Baseline"]  # fmt: skip
    stocked("kd")
    lab.panel.redraw()
    assert visible(lab) == ["Train this run"]  # the control was its teacher
    assert alt(lab.panel) == text(lab.panel.line)  # the whole method's curve is there


class Worker:
    """In the place of a worker process: it trains in this one."""

    def __init__(self, seen, stop=False):
        self.seen, self.stdin, self.stop = seen, io.StringIO(), stop

    def run(self, _, payload):
        run = sweep.run_from(payload["run"])
        told = []
        if self.stop:
            return
        yield "its teacher is trained first", {}
        self.seen("teacher")
        runs.get(run, on_epoch=lambda state: told.append(state.epoch + 1))
        for epoch in told:
            yield "", {"epoch": epoch}
            self.seen(f"epoch {epoch}")
        yield "", {"failed": None}

    def wait(self):
        return 0


def start(lab, monkeypatch, number=0, **worker):
    """Press a button and wait; what was seen on the way."""
    seen = []

    def look(when):
        trainer = lab.trainer
        seen.append((when, text(trainer.note), trainer.bar.value, trainer.buttons[0].disabled))

    made = Worker(look, **worker)
    monkeypatch.setattr(training, "start_worker", lambda env: made)
    monkeypatch.setattr(training, "run_on_worker", made.run)
    before = set(threading.enumerate())
    lab.trainer.buttons[number].click()
    for thread in set(threading.enumerate()) - before:
        thread.join(120)
    return seen


def test_the_lab_trains_and_says_what(stocked, bench, monkeypatch):
    stocked("baseline")
    lab = bench("kd")
    knob(lab, "T").value = 2.0
    seen = start(lab, monkeypatch)
    name = "training KD (T=2), seed 0"
    assert seen[0] == ("teacher", f"{name}: its teacher is trained first", 0, True)
    assert seen[-1][1:] == (f"{name}: epoch 3 of 3", 3, True)
    assert lab.trainer.note.value == "done" and lab.trainer.halt.disabled
    assert text(lab.panel.line).startswith("KD (T=2): ")
    assert [row[0] for row in rows(lab)] == ["▸ T=2"]
    assert visible(lab) == ["Train this run", "Train the whole method"]
    assert start(lab, monkeypatch, 1)[-1][1] == "training KD, seed 0: epoch 3 of 3"
    assert lab.trainer.note.value == "done"  # of the chosen run, as before
    assert {row[0] for row in rows(lab)} == {"▸ T=2", "whole method"}


def test_a_run_that_was_stopped_at_once_says_so(bench, runs, monkeypatch):
    lab = bench("kd")
    start(lab, monkeypatch, stop=True)
    assert text(lab.trainer.note) == "stopped before anything was trained"
    assert lab.trainer.halt.disabled and not lab.trainer.buttons[0].disabled
    knob(lab, "T").value = 2.0
    assert lab.trainer.note.value == "not trained yet"


def test_a_run_that_was_begun_is_resumed_and_its_curve_is_there(stocked, bench):
    history = stocked("kd")[0].history
    begun = plan(preset("smoke", method="kd", T=2.0))
    store.write_progress(begun, history[:2])
    store.write_checkpoint(begun, {})
    lab = bench("kd")
    knob(lab, "T").value = 2.0
    assert visible(lab) == ["Resume this run"] and lab.trainer.bar.value == 2
    assert "KD (T=2) has 2 of its 3 epochs" in text(lab.panel.line) == alt(lab.panel)


def test_rows_of_the_reference_answer_where_the_store_has_none(bench, runs, monkeypatch):
    whole, changed = (plan(preset("smoke", method="okddip", **f)) for f in ({}, {"m": 3}))
    found = {}
    for planned, top1 in ((whole, "60.0000"), (changed, "61.5000")):
        found[planned.id] = dict.fromkeys(reference.COLUMNS, "") | {
            "id": planned.id,
            "method": "okddip",
            "fields": reference.fields_text(planned),
            "seed": "0",
            "seconds": "1",
            "top1_deployed": top1,
        }
    curves = {id: dict.fromkeys(reference.EPOCHS, [10.0, 20.0, 30.0]) for id in found}
    made = reference.Reference(found, curves, {})
    monkeypatch.setattr(reference, "load", lambda: made)
    monkeypatch.setattr(reference, "PRESET", "smoke")
    lab = bench("okddip")
    knob(lab, "m").value = 3
    assert text(lab.panel.line) == (
        "OKDDip (m=3): 61.50 %, +1.50 points against the whole method (one seed, a row of the "
        "reference)"
    )
    assert [row[0] for row in rows(lab)] == ["▸ m=3", "whole method"]
    assert {row[5] for row in rows(lab)} == {"reference"}
    assert not lab.trainer.buttons[0].disabled  # it can be trained here, too


def test_a_method_of_the_notebook_is_trained_by_the_notebook(bench, runs, own_methods):
    class Own(kd.Method):
        name, title = "own_one", "Own"

        def terms(self, s, y, t, step):
            return {"ce": step.ce(s.logits, y)}

    lab = bench("own_one")
    assert text(lab.trainer.note).startswith("method own_one is defined in this notebook")
    assert lab.trainer.buttons[0].disabled and text(lab.explained) == "It has no knob."


# ---- chance ----


def test_seeds_that_are_needed_follow_the_knobs(shown):
    kd.widgets.seeds_needed(0.5, 0.4)
    (panel,) = shown
    for gap, spread in ((0.5, 0.4), (2.0, 0.4), (2.0, 1.5)):
        panel.controls["gap"].value, panel.controls["spread"].value = gap, spread
        count = figures.chance.needed(gap, spread)
        assert f"a deviation of {spread:.2f} points" in text(panel.line) == alt(panel)
        assert f"and {count} seeds in at least 80 %" in text(panel.line)


def test_what_chance_shows_is_drawn_again(shown):
    kd.widgets.by_chance()
    (panel,) = shown
    said = set()
    for number in range(6):
        panel.controls["draw"].value = number
        count = int(figures.chance.chance_table(draw=number)["shown"].sum())
        assert f"(drawing {number}): {count} of them lie outside" in text(panel.line) == alt(panel)
        said.add(count)
    assert len(said) > 1
    panel.controls["corrected"].value = True
    assert "their 99.75 % interval" in text(panel.line)
    panel.controls["questions"].value = 1
    assert "1 comparisons of 3 seeds" in text(panel.line) and "Error" not in text(panel.line)


# ---- without a front end ----


def test_batch_runs_show_a_picture_and_a_line_without_controls(trained, hides, monkeypatch):
    found = []
    monkeypatch.setattr(panels, "display", found.append)
    known = kd.lab("smoke")
    for show in (
        lambda: kd.widgets.temperature(trained("kd")),
        lambda: kd.widgets.attention(trained("okddip")),
        lambda: kd.widgets.collection(trained("dckd")),
        lambda: kd.widgets.class_map(trained("kd")),
        lambda: kd.widgets.unseen(known),
        kd.widgets.by_chance,
        kd.widgets.seeds_needed,
        lambda: kd.widgets.ablation_lab(known, "okddip"),
    ):
        show()
        page = found.pop()
        assert isinstance(page, HTML) and not found
        assert page.data.count("<img alt=") == 1 and page.data.count("<div") == 1


def test_drawings_of_widgets_are_the_same_in_an_earlier_figure(trained, hides):
    A = np.random.default_rng(0).dirichlet(np.ones(3), (5, 3))
    one, two = trained("kd").history, trained("okddip").history
    answered, asked = figures.answers_table([hides]), figures.asked_table(hides.run)
    for draw, *cases in (
        (figures.draw_attention_epoch, (A, 1), (A, 4)),
        (
            figures.draw_overlay,
            ({"m=3": two, "whole method": two[:1]}, 9),
            ({"m=3": [], "whole method": one}, 3),
        ),
        (figures.draw_calls, (answered,), (asked,)),
    ):
        fig, seen = None, set()
        for case in cases:
            fig = draw(*case, fig=fig)
            again = figures.html(fig, "a")
            assert again == figures.html(draw(*case), "a")
            seen.add(again)
        assert len(seen) == len(cases)
    assert figures.draw_overlay({"m=3": [], "whole method": []}, 3) is None


def test_the_overlay_labels_its_curves_where_they_end(trained):
    history = trained("okddip").history
    fig = figures.draw_overlay({"m=3": history, "whole method": history[:2]}, 3)
    last = [figures.curves.QUANTITIES["probe accuracy (%)"](history[k]) for k in (-1, 1)]
    labels = [t.get_text() for t in fig.axes[0].texts]
    assert sorted(labels) == sorted([f"m=3 {last[0]:.1f}", f"whole method {last[1]:.1f}"])
    assert {t.get_text() for t in fig.axes[1].texts} == set(history[0]["terms"])
    solid = [line.get_linestyle() for line in fig.axes[0].lines[:4]]
    assert solid == ["-", ":", "--", ":"]
    fig.draw_without_rendering()
    for ax in fig.axes:
        spans = sorted((b.y0, b.y1) for b in (t.get_window_extent() for t in ax.texts))
        assert all(low[1] <= high[0] + 1 for low, high in zip(spans, spans[1:], strict=False))
        assert all(t.get_window_extent().x1 <= fig.bbox.x1 for t in ax.texts)
