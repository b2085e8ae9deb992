"""Each widget moved by keyboard in a real browser, and what the page then says."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from kdkit import metrics
from kdkit.fields import fields
from kdkit.methods import method_class
from kdkit.study import store
from kdkit.study.plans import plan, preset
from kdkit.study.sources import load
from kdkit.study.widgets import image_orders

# Milliseconds from the first key to the changed picture, by the page's own clock.
TIMED = """of => { let began; window.kdTook = null;
  addEventListener('keydown', () => began = performance.now(), {capture: true, once: true});
  new MutationObserver((_, seen) => { window.kdTook = performance.now() - began;
    seen.disconnect();
  }).observe(document.querySelector(of), {subtree: true, childList: true}); }"""
PICTURE = "button => getComputedStyle(button).backgroundImage"
SAYS = "([of, text]) => document.querySelector(of)?.innerText.includes(text)"


class Panel:
    """A widget's panel on the page: its line, its picture, its knobs."""

    def __init__(self, nb, name):
        self.nb, self.name, self.took = nb, name, []
        self.picture = nb.find(f"kd-{name}-picture").locator("img")
        expect(self.picture).to_be_visible()

    def line(self) -> str:
        return self.nb.find(f"kd-{self.name}-line").inner_text()

    def press(self, knob: str, *keys: str, says: str, of=None, at=None, draws=True) -> None:
        """Press keys on a knob until the line holds `says`; the picture must follow.

        of: the text of the button that is pressed, where the knob is a row of them; at: the element
        itself. draws: False where only the line and the alt text change.
        """
        before = self.picture.get_attribute("src"), self.picture.get_attribute("alt")
        name = f"kd-{self.name}-{knob}"
        at = at or (self.nb.button(name, of) if of else self.nb.knob(name))
        at.focus()
        self.nb.page.evaluate(TIMED, f".kd-{self.name}-picture")
        for key in keys:
            at.press(key)
        self.nb.page.wait_for_function(SAYS, arg=[f".kd-{self.name}-line", says])
        expect(self.picture).to_have_attribute("alt", self.line())
        assert self.picture.get_attribute("alt") != before[1]
        if draws:
            expect(self.picture).not_to_have_attribute("src", before[0])
        assert self.picture.evaluate("i => i.complete && i.naturalWidth > 300")
        self.took.append(self.nb.page.evaluate("window.kdTook") / 1000)

    def thumbnail(self, knob: str, number: int):
        """The button of this number (from 0) among a knob's thumbnails."""
        buttons = self.nb.find(f"kd-{self.name}-{knob}").locator(".kd-thumbnails button")
        expect(buttons).to_have_count(12)
        return buttons.nth(number)

    def speed(self) -> str:
        return (
            f"{self.name} answers a key in {np.median(self.took):.2f} s "
            f"({min(self.took):.2f} to {max(self.took):.2f})"
        )


@pytest.fixture(scope="module")
def page(open_shared, trained):
    """A notebook with a panel in each cell."""
    trained(*(preset("smoke", method=name) for name in ("kd", "okddip", "dckd", "ind")))
    nb = open_shared(
        "panels.ipynb",
        "import kdkit as kd\nlab = kd.lab('smoke')",
        "kd.widgets.temperature(lab.get(method='kd'), 4.0, 7)",
        "kd.widgets.attention(lab.get(method='okddip'))",
        "kd.widgets.collection(lab.get(method='dckd'), 3)",
        "kd.widgets.class_map(lab.get(method='kd'))",
        "kd.widgets.ablation_lab(lab, 'okddip')",
    )
    nb.run_all()
    yield nb
    nb.look()


@pytest.fixture
def panel(page, note):
    """panel(name): one of them; its times are noted and a picture of it is taken at the end."""
    shown = []

    def find(name):
        shown.append(Panel(page, name))
        return shown[-1]

    yield find
    page.look()
    for p in shown:
        note(p.speed())
        line = page.page.locator(f".kd-{p.name}-line")
        page.shoot(p.name, page.panel.locator(".jp-CodeCell").filter(has=line))


@pytest.fixture
def stored(apart):
    """stored(method): the finished smoke run, read in this process."""
    return lambda method: store.find(preset("smoke", method=method))


@pytest.mark.alone
def test_temperature(panel, stored):
    p = panel("temperature")
    z, y = stored("kd").test_logits["teacher"].astype(float), stored("kd").labels
    names = stored("kd").meta["class_names"]

    def told(image, T):  # what the line must say of the teacher
        entropy = metrics.entropy(metrics.softmax(z[image], T))
        name = names[y[image]]
        return f"image {image} ({name}), T = {T:g}: entropy {entropy:.3f} (teacher)"

    assert told(7, 4) in p.line()
    for k in range(1, 4):
        p.press("T", "ArrowRight", says=told(7, 4 + 0.5 * k))
    p.press("T", "Home", says=told(7, 0.5))
    typed = p.nb.find("kd-temperature-image").locator(".kd-images-of input")
    expect(typed).to_have_value(names[y[7]])  # it opened with an image of this class
    expect(p.nb.find("kd-temperature-image").locator("button.mod-active")).to_have_count(2)
    typed.fill("")
    order = image_orders(*stored("kd").logits(), y)["clear rival"]
    for place, key in ((4, "Enter"), (0, "Space"), (11, "Enter")):
        button, image = p.thumbnail("image", place), order[place]
        p.press("image", key, at=button, says=told(image, 0.5))
        name = names[y[image]]
        assert button.get_attribute("title").startswith(f"test image {image}, {name}: the teacher")
        assert button.inner_text().startswith(name)
        assert button.evaluate(PICTURE).startswith('url("data:image/png')
    box = p.thumbnail("image", 3).bounding_box()
    p.nb.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)  # on the picture itself
    expect(p.picture).to_have_attribute("alt", re.compile(re.escape(told(order[3], 0.5))))
    typed.press_sequentially("é")
    first = next(image for image in order if names[y[image]] == "é")
    expect(p.picture).to_have_attribute("alt", re.compile(re.escape(told(first, 0.5))))


FOLLOWED = """() => { window.kdSeen = [];
  const at = document.querySelector('.kd-temperature-picture');
  new MutationObserver(() => window.kdSeen.push(at.querySelector('img').alt))
    .observe(at, {subtree: true, childList: true}); }"""


@pytest.mark.alone
def test_a_slider_that_is_moved_quickly_is_followed(panel, note):
    p = panel("temperature")
    knob = p.nb.knob("kd-temperature-T")
    knob.press("Home")
    expect(p.picture).to_have_attribute("alt", re.compile(r"T = 0\.5:"))
    p.nb.page.evaluate(FOLLOWED)
    for _ in range(25):
        knob.press("ArrowRight")
    last = p.nb.page.evaluate("performance.now()")
    expect(p.picture).to_have_attribute("alt", re.compile("T = 13:"))
    lag = (p.nb.page.evaluate("performance.now()") - last) / 1000
    seen = p.nb.page.evaluate("window.kdSeen")
    assert len(seen) <= 25 and "T = 13:" in seen[-1]
    assert len({text for text in seen}) > 2  # it was followed on the way
    note(f"25 quick keys gave {len(seen)} pictures, the last {lag:.2f} s after the last key")
    p.took.append(lag)


@pytest.mark.alone
def test_attention(panel, stored):
    p = panel("attention")
    A = stored("okddip").arrays["attention"].astype(float)

    def told(epoch):
        row = A[epoch - 1][0]
        whom = f"peer {row.argmax() + 1}" if row.argmax() else "itself"
        return f"epoch {epoch}: peer 1 learns most from {whom} ({row.max():.2f})"

    opens = np.abs(A - A.transpose(0, 2, 1)).max((1, 2)).argmax() + 1
    assert told(opens) in p.line()
    for key, epoch in (("End", 3), ("ArrowLeft", 2), ("Home", 1), ("ArrowRight", 2)):
        if told(epoch) not in p.line():
            p.press("epoch", key, says=told(epoch))


@pytest.mark.alone
def test_collection(panel, stored):
    p = panel("collection")
    z = stored("dckd").test_logits["students"].astype(float)[:, 3]
    m = np.delete(z, 0, 0).mean(0)
    q = metrics.softmax(m, 2.0)
    assert "image 3 (3), tau = 2: student 1 receives lmax; reverse KL" in p.line()
    p.press("kind", "Enter", of="average", says="tau = 2: student 1 receives avg; reverse KL")
    assert f"above 1/K {int(metrics.correlation_number(q))} in the collection" in p.line()
    p.press("reverse", "Space", says="receives avg; forward KL", draws=False)
    s = metrics.softmax(z[0], 2.0)
    assert f"forward KL {(q * np.log(q / s)).sum():.4f};" in p.line()
    p.press("student", "ArrowRight", says="student 2 receives avg")
    p.press("tau", "ArrowRight", says="tau = 2.5: student 2 receives avg; forward KL")
    p.nb.find("kd-collection-image").locator(".kd-images-of input").fill("")
    differ = image_orders(stored("dckd").logits()[0], None, stored("dckd").labels)
    first, _, image = differ["students differ"][:3]
    expect(p.picture).to_have_attribute("alt", re.compile(rf"^image {first} \("))
    p.press("image", "Enter", at=p.thumbnail("image", 2), says=f"image {image} (")


@pytest.mark.alone
def test_class_map(panel, stored):
    p = panel("class-map")
    record = stored("kd")
    z, y = record.test_logits, load("glyphs_few").y_test.numpy()
    names = record.meta["class_names"]

    def told(of, peak, tau):
        s, t = (
            metrics.softmax(v.astype(float)[y == of], tau)[:, peak].max()
            for v in (z["students"][0], z["teacher"])
        )
        return (
            f"largest p({names[peak]}) over the {(y == of).sum()} images of {names[of]}, "
            f"tau = {tau:g}: student {s:.3f}, teacher {t:.3f}"
        )

    (student,), teacher = record.logits()
    typed = {k: p.nb.find(f"kd-peaks-{k}").locator("input") for k in ("of", "peak")}
    p.nb.page.evaluate(TIMED, ".kd-class-map-picture")
    typed["of"].fill("é")
    other = names.index("é")
    top = metrics.softmax(student[y == other], 4.0).max(0)
    order = [int(n) for n in np.argsort(-top, kind="stable") if n != other]
    p.nb.page.wait_for_function(SAYS, arg=[".kd-class-map-line", told(other, order[0], 4)])
    expect(typed["peak"]).to_have_value(names[order[0]])
    p.press("classes", "Enter", at=p.thumbnail("classes", 3), says=told(other, order[3], 4))
    expect(typed["peak"]).to_have_value(names[order[3]])
    p.press("tau", "Home", says=told(other, order[3], 0.5))
    typed["peak"].fill("Q")
    p.nb.page.wait_for_function(
        SAYS, arg=[".kd-class-map-line", told(other, names.index("Q"), 0.5)]
    )
    typed["of"].fill("nothing")
    expect(p.nb.find("kd-peaks-note")).to_have_text("no class begins so")


@pytest.mark.alone
def test_ablation_lab(panel, stored, page):
    p, record, train = panel("lab"), stored("okddip"), page.find("kd-lab-train-0")
    told = f"OKDDip: {record.result['top1_deployed']:.2f} %"
    assert told in p.line() and "points against" in p.line()  # stored runs answer at once
    expect(train).to_be_disabled()
    for knob in ("m", "T"):
        p.press(knob, "ArrowRight", says="not in the store")
        expect(train).to_be_enabled()
        expect(train).to_have_text("Train this run")
        expect(page.find("kd-lab-note")).to_have_text("not trained yet")
        p.press(knob, "ArrowLeft", says=told)
        expect(train).to_be_disabled()
        expect(page.find("kd-lab-note")).to_have_text("trained")
    for name, field in fields(method_class("okddip")).items():
        if page.find(f"kd-lab-{name}").count():
            label = page.find(f"kd-lab-{name}").locator("label").first
            assert label.get_attribute("title") == field.description != "", name
    row = page.find("kd-lab-tried").locator("tr[aria-current]")
    expect(row).to_contain_text(f"{record.result['top1_deployed']:.2f}")
    first, last = p.picture.bounding_box(), page.find("kd-lab-T").bounding_box()
    assert first["x"] > last["x"] + last["width"] - 5  # beside the knobs, not below them


def test_a_panel_shows_its_error_and_goes_on(open_notebook):
    nb = open_notebook(
        "error.ipynb",
        """
import kdkit as kd
from matplotlib.figure import Figure
def draw(_, x):
    if x == 3:
        raise ValueError("3 is <not> allowed")
    return Figure(), f"x is {x}"
kd.widgets.present(kd.widgets.Panel("odd", draw, x=kd.widgets.slider("x", 2, 0, 9, 1)))""",
    )
    nb.run_all()
    knob, line = nb.knob("kd-odd-x"), nb.find("kd-odd-line")
    knob.press("ArrowRight")
    expect(line).to_have_text("ValueError: 3 is <not> allowed")
    knob.press("ArrowRight")
    expect(line).to_have_text("x is 4")
    nb.look()


def test_ablation_lab_trains_stops_and_goes_on(open_notebook):
    nb = open_notebook(
        "long.ipynb",
        "import kdkit as kd\nkd.widgets.ablation_lab(kd.lab('smoke', epochs=24), 'okddip')",
        "6 * 7",
    )
    nb.run_all()
    run = plan(preset("smoke", method="okddip", epochs=24, T=4.0))
    train, stop, notes, line = (nb.find(f"kd-lab-{k}") for k in ("train-0", "stop", "note", "line"))
    picture = nb.find("kd-lab-picture").locator("img")
    nb.knob("kd-lab-T").press("ArrowRight")
    nb.knob("kd-lab-T").press("ArrowRight")
    expect(line).to_contain_text(f"run {run.id} is not in the store")
    expect(picture).to_have_count(0)  # no empty axes
    expect(nb.find("kd-lab-train-1")).to_have_text("Train the whole method")
    train.press("Enter")
    expect(train).to_be_disabled()
    stop.press("Enter")  # before it has begun
    expect(notes).to_have_text("stopped before anything was trained")
    expect(stop).to_be_disabled()
    expect(train).to_be_enabled()

    train.press("Enter")
    expect(notes).to_have_text(
        re.compile(r"training OKDDip \(T=4, epochs=24\), seed 0: epoch \d+ of 24")
    )
    expect(line).to_contain_text(re.compile(r"has \d+ of its 24 epochs"))
    seen = picture.get_attribute("alt")
    expect(picture).not_to_have_attribute("alt", seen)  # it grows
    cell = nb.panel.locator(".jp-CodeCell").last
    cell.locator(".cm-content").click()
    nb.page.keyboard.press("Control+Enter")  # the kernel is free
    expect(cell.locator(".jp-InputPrompt")).to_have_text("[3]:")
    expect(cell.locator(".jp-OutputArea-output")).to_have_text("42")
    assert stop.is_enabled()
    nb.shoot("ablation_lab_training", nb.panel)
    stop.dblclick()
    expect(notes).to_contain_text(re.compile(r"stopped at epoch \d+, step \d+, and saved"))
    expect(train).to_have_text("Resume this run")
    assert store.find(run) is None

    train.press("Enter")
    expect(notes).to_have_text("done", timeout=180_000)
    record = store.find(run)
    assert record.meta["resumed_at"] is not None
    expect(line).to_contain_text(f"{record.result['top1_deployed']:.2f} %")
    assert nb.knob("kd-lab-T").get_attribute("aria-valuenow") == "4.0"  # the knobs stay
    expect(train).to_be_disabled()
    nb.shoot("ablation_lab", nb.panel)
    nb.button("kd-lab-method", "one").press("Enter")
    expect(line).to_contain_text("ONE (epochs=24) is not trained yet")
    expect(notes).to_have_text("not trained yet")
    expect(nb.find("kd-lab-bar").locator(".progress-bar")).to_have_attribute(
        "style", re.compile(r"width: 0%")
    )
    expect(picture).to_have_count(0)
    nb.look()


def test_paper_tables(open_notebook):
    nb = open_notebook("tables.ipynb", "import kdkit as kd\nkd.widgets.paper_tables()")
    nb.run_all()
    page = nb.find("kd-tables-page")
    expect(page).to_contain_text("okddip:2, top1_error on cifar100")
    expect(page.locator("tbody tr")).to_have_count(35)
    assert set(page.locator("td:nth-of-type(3)").all_inner_texts()) == {"not run"}
    grey = page.locator("td:nth-of-type(3)").first
    assert grey.evaluate("e => getComputedStyle(e).opacity") == "0.6"
    nb.shoot("tables_okddip2")
    nb.button("kd-tables-table", "9").press("Enter")
    expect(page).to_contain_text("okddip:9, top1_error on cifar10")
    expect(page.locator("ol li").first).to_contain_text("CONTRADICTION")
    nb.button("kd-tables-paper", "dckd").press("Space")
    expect(page).to_contain_text("dckd:1, top1, top5 on imagenet")
    nb.button("kd-tables-table", "5").press("Enter")
    expect(page).to_contain_text("dckd:5, top1 on cifar100")
    expect(page.locator("tbody tr")).to_have_count(15)
    nb.shoot("tables_dckd5")
    box = page.locator("div[tabindex]")
    box.focus()
    expect(box).to_be_focused()
    nb.button("kd-tables-paper", "okddip").press("Enter")
    expect(page).to_contain_text("okddip:1, top1_error on cifar10")
    nb.look()
