"""Drawn diagrams: what they claim of a method is what its class does, and nothing overlaps."""

from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text

import kdkit as kd
from kdkit.methods import METHODS, Method, Probe, Step, method_class
from kdkit.models import Branches, Peers, build
from kdkit.study import figures
from kdkit.study.figures import Diagram, Panel, map_table, methods_map, style
from kdkit.study.figures.drawing import KINDS
from kdkit.study.plans import preset

DRAWN_BY = {n: getattr(f.draw, "__self__", None) for n, f in figures.FIGURES.items()}
DIAGRAMS = {n: drawn for n, drawn in DRAWN_BY.items() if isinstance(drawn, Diagram)}
PANELS = {f"{n}-{i}": p for n, d in DIAGRAMS.items() for i, p in enumerate(d.panels)}
# The trained layers that stand behind a part of a diagram.
LAYERS = {
    "regressor": {"regressor"},
    "gate": {"fc", "bn"},
    "attention": {"Wq", "Wk"},
    "embed_S": {"E_s"},
    "embed_T": {"E_t"},
}
# What a panel leaves out, and says so: labels and their weight 0; the other half of CRD's loss,
# where the teacher's embedding learns; what eDCKD has in common with DCKD.
LEFT_OUT = {
    "diagram_hidden-0": {"ce"},
    "diagram_dckd-1": {"collection"},
}


def base(name):
    return name.partition("_")[0]


def shape(name):
    return KINDS.get(base(name), ("",))[0]


def students(panel):
    """The networks that learn, the parts of one before are left out; `students` are three."""
    found = [n for n in panel.names if shape(n) in ("network", "group") and n not in panel.frozen]
    found = [n for n in found if base(n) != "trunk" and not n.endswith("_new")]
    return found if found != ["students"] else ["student_1", "student_2", "student_3"]


def behind(panel, part, through=lambda arrow: True):
    """All parts from which arrows lead to `part`, itself included."""
    found, todo = {part}, [part]
    while todo:
        end = todo.pop()
        new = {a.start for a in panel.edges if a.end == end and through(a)} - found
        found, todo = found | new, todo + sorted(new)
    return found


def reached(panel, loss):
    """What the gradient of a loss reaches: it passes back along all arrows without bars."""
    return behind(panel, loss, lambda arrow: not arrow.stops)


def losses(panel):
    """Loss circles of each term: name of the term -> parts."""
    found = {}
    for name in panel.names:
        terms = panel.terms.get(name) or panel.terms.get(base(name), "")
        for term in terms.split():
            found.setdefault(term, []).append(name)
    return found


def world(panel):
    """(method, its parts by name, the students' Out, the terms as a function of an Out)."""
    torch.manual_seed(0)
    cls, m = method_class(panel.method), len(students(panel))
    method = cls(m=m) if m > 1 else cls()
    kind = method.group()[0]
    nets = [build("resnet8_w0.25", 1, 5) for _ in range(m)]
    teacher = build("resnet8_w0.25", 1, 5).eval().requires_grad_(False)
    made = {"single": lambda: nets[0], "network": lambda: Peers(nets)}
    group = made.get(kind, lambda: Branches(nets, method.at_split))()
    split = nets[0].split if kind == "branch" else 0
    parts = {f"s{i}": torch.nn.ModuleList([*n.parts[split:], n.fc]) for i, n in enumerate(nets)}
    if kind == "branch":
        parts["trunk"] = torch.nn.ModuleList(nets[0].parts[:split])
    x, y = torch.randn(8, 1, 12, 12), torch.arange(8) % 5
    s, t = group(x), teacher(x) if method.needs_teacher else None
    method.build(Probe(s, t, 5, y, teacher))

    def terms(out):
        step = Step(torch.arange(8), 0, 1, torch.Generator().manual_seed(0))
        return method.terms(out, y, t, step)

    return method, parts | dict(method.named_children()), s, terms


# ---- what a diagram claims ----


@pytest.mark.parametrize("name", PANELS)
def test_networks_are_those_of_the_class(name):
    panel = PANELS[name]
    m = len(students(panel))
    cls = method_class(panel.method)
    method = cls(m=m) if m > 1 else cls()
    kind, count = method.group()
    assert count == m
    assert (kind == "branch") == ("trunk" in panel.names)
    frozen = [n for n in panel.names if n in panel.frozen]
    assert bool(frozen) == method.needs_teacher
    # Who teaches a teacher: `ensemble` are students of another run, a `teacher` is a plain one.
    taught = method.teacher_method()
    assert (frozen == ["ensemble"]) == bool(taught and not taught[0].teaches)
    assert ("leader" in panel.names) == (method.peers() < m)
    assert ("x_1" in panel.names) == method.views


@pytest.mark.parametrize("name", PANELS)
def test_losses_are_the_terms_of_the_class(name):
    panel = PANELS[name]
    m = len(students(panel))
    method = method_class(panel.method)(**({"m": m} if m > 1 else {}))
    assert set(losses(panel)) == set(method.weights()) - LEFT_OUT.get(name, set())
    circles = [n for n in panel.names if panel.kind(n)[0] == "loss"]
    assert set(circles) == {part for parts in losses(panel).values() for part in parts}
    for circle in circles:  # the labels go into the losses of labels, and into no other
        labelled = any(base(part) == "y" for part in behind(panel, circle))
        assert labelled == (base(circle) == "CE")


@pytest.mark.parametrize("name", PANELS)
def test_the_gradient_goes_where_it_is_drawn(name):
    panel = PANELS[name]
    _, parts, s, terms = world(panel)
    names = {part: f"s{i}" for i, part in enumerate(students(panel))} | {"trunk": "trunk"}
    if "students" in panel.names:  # one picture of three
        names["students"] = "s0 s1 s2"
    values = terms(s)
    for term, circles in losses(panel).items():
        for part in parts.values():
            part.zero_grad()
        values[term].backward(retain_graph=True)
        real = {k for k, part in parts.items() if any(has_gradient(p) for p in part.parameters())}
        drawn = set()
        for circle in circles:
            for part in reached(panel, circle):
                assert part not in panel.frozen, f"{circle} would teach {part}"
                drawn |= LAYERS.get(part, set()) | set(names.get(part, "").split())
        if panel.method == "crd" and term == "contrast":
            real -= {"E_t"}  # the note beneath says what the other half of the loss does
        assert drawn == real, term


def has_gradient(p):
    return p.grad is not None and bool(p.grad.any())


def between(panel, sign):
    """Pairs (i, j) of two different students that a teaching loss connects; sign: "gradient" for
    both ways of the gradient, "answers" for who teaches (j) whom (i)."""
    answers = [n for n in panel.names if base(n) == "z" and not n.endswith(("_T", "_new"))]
    number, found = {n: i for i, n in enumerate(answers)}, set()
    for circle in {part for parts in losses(panel).values() for part in parts}:
        if sign == "gradient":
            both = [number[n] for n in reached(panel, circle) if n in number]
            found |= {(i, j) for i in both for j in both if i != j}
            continue
        learners = {a.start for a in panel.edges if a.end == circle and not a.teaches}
        teachers = {a.start for a in panel.edges if a.end == circle and a.teaches}
        for learner in learners & set(number):
            for teacher in set().union(*(behind(panel, t) for t in teachers)) & set(number):
                found |= {(number[learner], number[teacher])} if learner != teacher else set()
    return found


GROUPS = [n for n, p in PANELS.items() if len(students(p)) > 1 and "students" not in p.names]


@pytest.mark.parametrize("name", GROUPS)
def test_gradients_pass_from_student_to_student_where_no_bars_stand(name):
    """The derivative of one student's gradient by another's answers is 0 where a target is a
    constant."""
    panel = PANELS[name]
    _, _, s, terms = world(panel)
    z = s.logits
    total = sum(terms(s).values())
    (g,) = torch.autograd.grad(total, z, create_graph=True)  # (m, B, K)
    coupled = set()
    for i in range(len(z)):
        weights = torch.randn(g[i].shape, generator=torch.Generator().manual_seed(i))
        (h,) = torch.autograd.grad((g[i] * weights).sum(), z, retain_graph=True)
        coupled |= {(i, j) for j in range(len(z)) if i != j and h[j].abs().max() > 1e-9}
    assert coupled == between(panel, "gradient")


@pytest.mark.parametrize("name", GROUPS)
def test_who_teaches_whom(name, monkeypatch):
    """With targets held constant a student's gradient depends on another's answers only where the
    other teaches it."""
    panel = PANELS[name]
    method, _, s, terms = world(panel)
    for held in ("detach", "detach_collection"):
        if hasattr(method, held):
            setattr(method, held, True)
    mean = kd.losses.others_mean
    monkeypatch.setattr("kdkit.methods.online.others_mean", lambda z: mean(z.detach()))
    leaf = s.logits.detach()

    def gradient(z):
        z = z.clone().requires_grad_()
        teaching = [v for k, v in terms(s._replace(logits=z)).items() if not k.startswith("ce")]
        return torch.autograd.grad(sum(teaching), z)[0]

    before, taught = gradient(leaf), set()
    for j in range(len(leaf)):
        moved = leaf.clone()
        moved[j] += 3 * torch.randn(leaf[j].shape, generator=torch.Generator().manual_seed(j))
        change = (gradient(moved) - before).abs().amax((1, 2))
        taught |= {(i, j) for i in range(len(leaf)) if i != j and change[i] > 1e-6}
    assert taught == between(panel, "answers")


@pytest.mark.parametrize("name", GROUPS)
def test_the_gradient_is_divided_where_a_tag_says_so(name):
    panel = PANELS[name]
    f = torch.ones(3, requires_grad=True)
    method_class(panel.method)(m=3).at_split(f).sum().backward()
    assert torch.allclose(f.grad, torch.full((3,), 1 / 3 if "split" in panel.names else 1.0))


def test_two_levels_and_oneself_included():
    """OKDDip's peers are among their own teachers, its leader teaches nobody; nobody else is."""
    (panel,) = DIAGRAMS["diagram_okddip"].panels
    for i in (1, 2, 3):
        assert {f"z_{j}" for j in (1, 2, 3)} <= behind(panel, f"q_{i}")
        assert "z_L" not in behind(panel, f"q_{i}")
    assert "z_L" not in behind(panel, "q_L") and "attention" not in behind(panel, "q_L")
    for name in ("networks", "branches", "dckd"):
        other = DIAGRAMS[f"diagram_{name}"].panels[0]
        assert all(f"z_{i}" not in behind(other, f"q_{i}") for i in (1, 2, 3))


def test_a_false_diagram_is_found():
    """The checks above fail for a picture that has bars where there are none, and none where
    there are."""
    for name, old, new in (
        ("diagram_networks-0", "=>", "=|>"),
        ("diagram_networks-1", "=|>", "=>"),
    ):
        panel = PANELS[name]
        false = replace(panel, arrows=panel.arrows.replace(old, new))
        assert between(false, "gradient") != between(panel, "gradient")


def test_methods_that_notes_name_are_methods():
    titles = {cls.title for cls in METHODS.values()}
    for diagram in DIAGRAMS.values():
        for first, *rest in diagram.notes[1:] if len(diagram.tabs) > 1 else ():
            assert first in titles and all(rest)


# ---- how it looks ----


@cache
def made(name):
    """A figure, made once for all tests that look at it."""
    return figures.make(name, [])


def drawn(fig):
    """(figure, its texts with their boxes) as a browser shows it."""
    with figures.kdkit_style():
        fig.set_dpi(96)
        fig.draw_without_rendering()
        (ax,) = fig.axes
        texts = [t for t in ax.texts if t.get_text()]
        return fig, [(t, Text.get_window_extent(t)) for t in texts]


def apart(a, b, gap=0.0):
    return a.x1 + gap <= b.x0 or b.x1 + gap <= a.x0 or a.y1 + gap <= b.y0 or b.y1 + gap <= a.y0


PICTURES = [*DIAGRAMS, "methods_map"]


@pytest.mark.parametrize("name", PICTURES)
def test_texts_are_whole_large_enough_and_apart(name):
    look_at(made(name)[1])


def look_at(fig):
    """Check the texts of a figure."""
    fig, texts = drawn(fig)
    assert 700 <= fig.bbox.width <= 900  # pixels of a browser
    for text, box in texts:
        assert text.get_fontsize() >= 8, text
        assert fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1, text
        assert fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1, text
    for (a, box_a), (b, box_b) in combinations(texts, 2):
        # A text's box has room for accents and tails, which two lines may share.
        assert apart(box_a, box_b, -2), (a.get_text(), b.get_text())


@pytest.mark.parametrize("name", PANELS)
def test_parts_are_apart_and_arrows_touch_only_their_ends(name):
    panel = PANELS[name]
    parts, _ = panel.place(9.0)
    solid = {part.name: part for part in parts if part.shape != "zone"}
    for a, b in combinations(solid.values(), 2):
        assert (
            abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2
        ), (a.name, b.name)
    everything = {part.name: part for part in parts}
    for arrow in panel.edges:
        if arrow.way == "none":
            continue
        points = panel.route(everything, arrow)
        for start, end in pairwise(points):
            for share in range(21):
                x, y = (a + (b - a) * share / 20 for a, b in zip(start, end, strict=True))
                hit = [
                    part.name
                    for part in solid.values()
                    if abs(x - part.x) < part.width / 2 and abs(y - part.y) < part.height / 2
                ]
                assert hit == [], (arrow, hit)


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_signs_and_an_alt_text_that_says_it_all(name):
    _, fig, (alt, *findings) = made(name)
    assert 100 < len(alt) < 800 and alt.endswith(".") and alt.count(".") == 1 and findings
    if name in DIAGRAMS:
        legend = ["teaches: answers", "features", "relations", "no gradient passes back"]
        legend += ["computes", "frozen", "loss", "layers of the method"]
        texts = [t.get_text() for t in fig.axes[0].texts]
        assert texts[-8:] == legend
        assert ("no gradient passes back" in alt or "the gradient stops" in alt) == any(
            arrow.stops for panel in DIAGRAMS[name].panels for arrow in panel.edges
        )


def test_colours_of_what_is_handed_over_differ_without_colour():
    from matplotlib.colors import to_rgb

    grey = sorted(
        sum(w * c for w, c in zip((0.299, 0.587, 0.114), to_rgb(colour), strict=True))
        for colour in figures.shapes.HANDED.values()
    )
    assert min(b - a for a, b in pairwise(grey)) > 0.07


# ---- the map ----


def test_every_method_has_its_place_on_the_map():
    table = map_table([]).set_index("method")
    assert list(table.index) == kd.list_methods()
    at = table["group"].to_dict()
    assert at["kd"] == at["ensembled_student"] == "answers of teacher"
    assert at["reviewkd"] == at["ofd"] == "features of teacher"
    assert at["crd_kd"] == at["rkd"] == "relations of teacher"
    assert at["kdcl"] == at["one"] == at["okddip"] == "answers of peers"
    assert at["okddip_kd"] == at["edckd"] == "answers of both"
    assert at["baseline"] == at["ind"] == "nobody"
    years = table["year"].to_dict()
    assert [years[n] for n in ("kd", "fitnet", "okddip", "edckd", "ensembled_student", "ind")] == [
        "2014",
        "2015",
        "2020",
        "2023",
        "2023",
        "",
    ]


def test_the_notebook_of_a_method_is_about_it():
    """It speaks of it, or draws it."""
    folder, base_run = Path(kd.__file__).parents[1] / "notebooks", preset("smoke")
    for _, row in map_table([]).iterrows():
        (path,) = folder.glob(f"{row['notebook']}_*.ipynb")
        text = path.read_text()
        own = [spec for spec in figures.FIGURES.values() if spec.notebook == row["notebook"]]
        is_drawn = any(
            run.get("method") == row["method"] for spec in own for run in spec.runs(base_run)
        )
        assert is_drawn or row["title"] in text, row["title"]


def test_a_learners_method_appears_as_yours(own_methods):
    class Mine(kd.KD):
        name, title = "mine", "Mine with a long title"

    class Plain(Method):
        """As it stands in a cell."""

        name = "plain"

        def weights(self):
            return {"ce": 0.9, "uniform": 0.1}

    table, fig, (_, yours) = figures.make("methods_map", [])
    rows = table.set_index("method").loc[["mine", "plain"]]
    assert list(rows["group"]) == ["yours", "yours"] and list(rows["who"]) == ["teacher", "nobody"]
    assert yours == "Yours: Mine with a long title, plain."
    texts = [t.get_text() for t in fig.axes[0].texts]
    assert {"Mine with a", "long title", "plain"} <= set(texts)
    assert not any("that you write" in text for text in texts)
    look_at(fig)


def test_the_year_is_read_from_the_paper():
    class Young(kd.FitNet):
        """A method of one's own, of 1999."""

    assert methods_map.year(Young) == "1999" and methods_map.year(kd.Baseline) == ""


# ---- the vocabulary ----


@pytest.mark.parametrize(
    "arrows, says",
    [
        ("x -> student -> y", "x, student, z, q; seen y"),
        ("x student", "write 'a -> b'"),
        ("x", "seen no arrow"),
        ("x -> student @round", "way 'round', allowed: hv"),
        ("x, z => q", "no zone to cross"),
    ],
)
def test_a_diagram_that_cannot_be_read_says_why(arrows, says):
    panel = Panel("x | student | z\n | | | q", arrows, "kd", {})
    with pytest.raises(ValueError, match=says):
        parts = {part.name: part for part in panel.place(3.0)[0]}
        for arrow in panel.edges:
            panel.route(parts, arrow)


def test_a_learner_draws_a_method_of_ones_own():
    panel = Panel("x | student | z | CE | y", "x -> student -> z -> CE\ny -> CE", "baseline", {})
    diagram = Diagram((panel,), "Mine.")
    table = diagram.table([])
    assert list(table["from"]) == ["x", "student", "z", "y"] and table.attrs["runs"] == []
    assert diagram.say(table) == ["Mine.", "Baseline: the gradient stops nowhere."]
    assert style.figure_bytes(diagram.draw(table), "svg") == style.figure_bytes(
        diagram.draw(table), "svg"
    )


def test_the_command_line_draws_one(call, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_FIGURES", str(tmp_path))
    code, _, errors = call("figures", "--only", "diagram_okddip")
    assert code == 0, errors
    kinds = ("csv", "json", "png", "svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"diagram_okddip.{k}" for k in kinds]
