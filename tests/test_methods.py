"""What all methods promise, and the rules of the house that a syntax tree can check."""

import ast
import importlib.util
import io
import linecache
import math
import subprocess
import sys
import tokenize
import typing
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import kdkit as kd
from kdkit.fields import fields
from kdkit.methods import (
    KD,
    METHODS,
    Method,
    OKDDip,
    Probe,
    Step,
    list_methods,
    method_class,
    term_weights,
)
from kdkit.models import Branches, Peers, build
from kdkit.study.fingerprint import class_digest, is_builtin
from kdkit.study.plans import Run, plan, preset

ROOT = Path(kd.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
STUDY = ROOT / "study"
# `python -m kdkit` starts the kit's command line; all else outside its folder is the engine.
ENGINE = [p for p in FILES if STUDY not in p.parents and p != ROOT / "__main__.py"]
OURS = [name for name in list_methods() if is_builtin(method_class(name))]


# ---- which parameters the gradient of each term reaches ----
# Students are s0, s1, ...; `trunk` is what branches share; Wq, ... are the method's own layers.

REACH = {
    "baseline": {(): {"ce": "s0"}},
    "kd": {(): {"ce": "s0", "kd": "s0"}},
    "fitnet": {(): {"ce": "s0", "hint": "s0 regressor"}},
    "at": {(): {"ce": "s0", "attention": "s0"}},
    "ft": {(): {"ce": "s0", "factor": "s0 translator"}},  # the paraphraser has had its stage
    "reviewkd": {
        (): {"ce": "s0", "review": "s0 abfs"},
        (("preact", True),): {"ce": "s0", "review": "s0 abfs"},
    },
    "ofd": {(): {"ce": "s0", "maps": "s0 connectors"}},
    "rkd": {(): {"ce": "s0", "distance": "s0", "angle": "s0"}},
    "cc": {(): {"ce": "s0", "correlation": "s0 E_s E_t"}},
    "crd": {(): {"ce": "s0", "contrast": "s0 E_s E_t"}},
    "crd_kd": {(): {"ce": "s0", "contrast": "s0 E_s E_t", "teacher": "s0"}},
    "ensembled_student": {(): {"ce": "s0", "kd": "s0"}},
    "ind": {
        (): {"ce": "trunk s0 s1 s2"},
        (("based", "network"),): {"ce": "s0 s1 s2"},
    },
    "dml": {(): {"ce": "s0 s1 s2", "mutual": "s0 s1 s2"}},
    "kdcl": {
        (): {"ce": "s0 s1 s2", "target": "s0 s1 s2"},
        (("form", "naive"),): {"ce": "s0 s1 s2", "target": "s0 s1 s2"},
        (("form", "linear"),): {"ce": "s0 s1 s2", "target": "s0 s1 s2"},
        (("form", "general"), ("with_teacher", True)): {"ce": "s0 s1 s2", "target": "s0 s1 s2"},
    },
    "cl_ilr": {(): {"ce": "trunk s0 s1 s2", "mutual": "trunk s0 s1 s2"}},
    "one": {
        (): {
            "ce": "trunk s0 s1 s2",
            "ce_ensemble": "trunk s0 s1 s2 fc bn",
            "ensemble": "trunk s0 s1 s2 fc bn",
        },
        (("detach", True),): {
            "ce": "trunk s0 s1 s2",
            "ce_ensemble": "trunk s0 s1 s2 fc bn",
            "ensemble": "trunk s0 s1 s2",
        },
    },
    "okddip": {  # s2 is the leader
        (): {
            "ce": "trunk s0 s1",
            "peers": "trunk s0 s1 Wq Wk",
            "ce_leader": "trunk s2",
            "leader": "trunk s0 s1 s2",
        },
        (("detach", True),): {
            "ce": "trunk s0 s1",
            "peers": "trunk s0 s1",
            "ce_leader": "trunk s2",
            "leader": "trunk s2",
        },
        (("aggregate", "probs"), ("based", "network")): {
            "ce": "s0 s1",
            "peers": "s0 s1 Wq Wk",
            "ce_leader": "s2",
            "leader": "s0 s1 s2",
        },
        (("two_level", False),): {"ce": "trunk s0 s1 s2", "peers": "trunk s0 s1 s2 Wq Wk"},
        (("attention", "entropy"),): {
            "ce": "trunk s0 s1",
            "peers": "trunk s0 s1",
            "ce_leader": "trunk s2",
            "leader": "trunk s0 s1 s2",
        },
    },
    "okddip_kd": {
        (): {
            "ce": "trunk s0 s1",
            "peers": "trunk s0 s1 Wq Wk",
            "ce_leader": "trunk s2",
            "leader": "trunk s0 s1 s2",
            "teacher": "trunk s0 s1 s2",
        },
    },
    "dckd": {
        (): {"ce": "s0 s1 s2", "teacher": "s0 s1 s2", "collection": "s0 s1 s2"},
        (("detach_collection", True),): {
            "ce": "s0 s1 s2",
            "teacher": "s0 s1 s2",
            "collection": "s0 s1 s2",
        },
    },
    "edckd": {(): {"ce": "s0 s1 s2", "teacher": "s0 s1 s2", "collection": "s0 s1 s2"}},
}


def world(method, class_weights=None, kind_of_step=Step):
    """(parts of the students and the method by name, teacher, the students' answer, labels, terms)
    of one step on eight small images."""
    torch.manual_seed(0)
    kind, m = method.group()
    nets = [build("resnet8_w0.25", 1, 5) for _ in range(m)]
    teacher = build("resnet8_w0.25", 1, 5).eval().requires_grad_(False)
    students = {
        "single": lambda: nets[0],
        "network": lambda: Peers(nets),
        "branch": lambda: Branches(nets, method.at_split),
    }[kind]()
    split = nets[0].split if kind == "branch" else 0
    parts = {f"s{i}": torch.nn.ModuleList([*n.parts[split:], n.fc]) for i, n in enumerate(nets)}
    if kind == "branch":
        parts["trunk"] = torch.nn.ModuleList(nets[0].parts[:split])
    x, y = torch.randn(8, 1, 12, 12), torch.arange(8) % 5
    s, t = students(x), teacher(x) if method.needs_teacher else None
    method.build(Probe(s, t, 5, y, teacher))
    parts |= dict(method.named_children())
    step = kind_of_step(torch.arange(8), 0, 1, torch.Generator().manual_seed(0), class_weights)
    return parts, teacher, s, y, method.terms(s, y, t, step)


def three(name, **given):
    """A method of the package; if it has a group, of three students."""
    cls = method_class(name)
    return cls(**({"m": 3} if "m" in fields(cls) else {}), **given)


CASES = [(name, given) for name, table in REACH.items() for given in table]


@pytest.mark.parametrize("name, given", CASES, ids=str)
def test_what_the_gradient_reaches(name, given):
    method = three(name, **dict(given))
    parts, teacher, _, _, terms = world(method)
    reach = {}
    for term, loss in terms.items():
        assert loss.shape == () and loss.isfinite()
        for part in parts.values():
            part.zero_grad()
        loss.backward(retain_graph=True)
        reach[term] = {
            k
            for k, part in parts.items()
            if any(p.grad is not None and p.grad.any() for p in part.parameters())
        }
    assert {k: set(v.split()) for k, v in REACH[name][given].items()} == reach
    assert set(method.weights()) == set(terms)
    assert given or set(method.ramped) <= set(terms)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", OURS)
def test_every_loss_reaches_all_students_and_no_teacher(name):
    """Whatever method it is, of whatever table."""
    method = three(name)
    parts, teacher, s, _, terms = world(method)
    weights = term_weights(method, terms, 0, 1)
    sum(weight * loss for weight, loss in zip(weights, terms.values(), strict=True)).backward()
    assert all(loss.shape == () and loss.isfinite() for loss in terms.values())
    for i in range(method.group()[1]):
        assert all(
            p.grad is not None and p.grad.isfinite().all() for p in parts[f"s{i}"].parameters()
        )
    assert all(p.grad is None for p in teacher.parameters())


# ---- the labels ----

CLASS_WEIGHTS = torch.tensor([0.5, 3.0, 1.0, 2.0, 0.1])


def weighted(z, y):
    """torch's weighted cross-entropy, summed over the students of z (m, B, K) or (B, K)."""
    return sum(F.cross_entropy(one, y, CLASS_WEIGHTS) for one in z.reshape(-1, *z.shape[-2:]))


@pytest.mark.parametrize("name", OURS)
def test_labels_are_weighted_by_class(name):
    """Each term on labels goes through `step.ce`; the others do not change."""
    heard = []

    class Heard(Step):
        def ce(self, z, y):
            heard.append(z)
            return super().ce(z, y)

    plain = world(three(name))[-1]
    _, _, s, y, terms = world(three(name), CLASS_WEIGHTS, Heard)
    on_labels = [term for term in terms if term.startswith("ce")]
    assert "ce" in on_labels and len(heard) == len(on_labels)
    for term, z in zip(on_labels, heard, strict=True):
        torch.testing.assert_close(terms[term], weighted(z, y))
        assert not torch.allclose(terms[term], plain[term])
    peers = three(name).peers()
    torch.testing.assert_close(terms["ce"], weighted(s.logits.reshape(-1, 8, 5)[:peers], y))
    assert all(terms[term].equal(plain[term]) for term in set(terms) - set(on_labels))


def test_no_terms_have_a_cross_entropy_of_their_own():
    for path in (ROOT / "methods").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "terms":
                called = {ast.unparse(c.func) for c in ast.walk(node) if isinstance(c, ast.Call)}
                assert not called & {"ce", "F.cross_entropy", "F.nll_loss"}, path


# ---- groups, deployment, controls ----

SHAPE = {  # group of the defaults, peers, student deployed under seed 0
    "baseline": ("single", 1, 1, 0),
    "kd": ("single", 1, 1, 0),
    "fitnet": ("single", 1, 1, 0),
    "at": ("single", 1, 1, 0),
    "ft": ("single", 1, 1, 0),
    "reviewkd": ("single", 1, 1, 0),
    "ofd": ("single", 1, 1, 0),
    "rkd": ("single", 1, 1, 0),
    "cc": ("single", 1, 1, 0),
    "crd": ("single", 1, 1, 0),
    "crd_kd": ("single", 1, 1, 0),
    "kdcl": ("network", 4, 4, None),
    "ensembled_student": ("single", 1, 1, 0),
    "ind": ("branch", 4, 4, None),
    "dml": ("network", 4, 4, None),
    "cl_ilr": ("branch", 4, 4, None),
    "one": ("branch", 4, 4, None),
    "okddip": ("branch", 4, 3, 3),
    "okddip_kd": ("branch", 4, 3, 3),
    "dckd": ("network", 3, 3, None),
    "edckd": ("network", 3, 3, None),
}


@pytest.mark.parametrize("name", SHAPE)
def test_group_peers_deployed(name):
    method = method_class(name)()
    assert (*method.group(), method.peers(), method.deployed(0)) == SHAPE[name]


def test_without_the_second_level_the_seed_draws_the_student():
    method = OKDDip(two_level=False)
    drawn = [method.deployed(seed) for seed in range(40)]
    assert method.peers() == 4 and set(drawn) == {0, 1, 2, 3}
    assert drawn == [method.deployed(seed) for seed in range(40)]
    assert OKDDip(m=5, based="network").group() == ("network", 5) and OKDDip(m=5).deployed(9) == 4


@pytest.mark.parametrize("name", SHAPE)
def test_control_is_a_method_with_those_fields(name):
    method = method_class(name)()
    control = method.control()
    if name == method_class().name:
        assert control is None
    else:
        other = control[0](**control[1])
        assert other.name != name and is_builtin(control[0])
        alike = {"m", "based"} & set(fields(control[0]))
        assert all(getattr(other, k) == getattr(method, k) for k in alike if hasattr(method, k))


def test_groups_compare_with_groups_of_their_kind():
    assert OKDDip(based="network", m=3).control()[1] == {"m": 3, "based": "network"}
    dml = method_class("dml")(m=2)
    assert dml.control()[0](**dml.control()[1]).group() == dml.group() == ("network", 2)


# ---- fields ----


@pytest.mark.parametrize("name", OURS)
def test_unknown_field_is_refused(name):
    cls = method_class(name)
    with pytest.raises(ValueError) as error:
        cls(temprature=3.0)
    message = str(error.value)
    assert "temprature" in message and "\n" not in message
    assert all(key in message for key in fields(cls)) and name in message


BAD = {
    float: [math.nan, math.inf, -math.inf, "warm", None],
    int: [2.5, "two", None],
    bool: ["maybe", 2, None],
}
EVERY = [(name, key) for name in OURS for key in fields(method_class(name))]


def outside(field):
    """The nearest numbers beyond the field's bounds."""
    if field.kind is int:
        return [field.low - 1, field.high + 1]
    if field.kind is float:
        return [math.nextafter(field.low, -math.inf), math.nextafter(field.high, math.inf)]
    return []


@pytest.mark.parametrize("name, key", EVERY)
def test_bad_value_is_refused(name, key):
    cls = method_class(name)
    field = fields(cls)[key]
    bad = ["nonsense", None, 1] if field.options else BAD[field.kind]
    for value in [*bad, *outside(field)]:
        with pytest.raises(ValueError) as error:
            cls(**{key: value})
        message = str(error.value)
        assert key in message and "\n" not in message
        assert all(str(allowed) in message for allowed in field.options)
    for value in () if field.options or field.kind is bool else (field.low, field.high):
        assert getattr(cls(**{key: value}), key) == value


@pytest.mark.parametrize("name, key", EVERY)
def test_good_value_is_kept_as_its_type(name, key):
    cls = method_class(name)
    start = fields(cls)[key].default
    assert getattr(cls(), key) == start
    text = str(start)  # as the command line gives it
    got = getattr(cls(**{key: text}), key)
    assert got == start and type(got) is type(start)


def test_fields_of_a_child_include_its_parents():
    assert set(fields(method_class("okddip_kd"))) == set(fields(OKDDip)) | {"beta"}
    assert "name" not in fields(KD) and "ramped" not in fields(KD)


@pytest.mark.parametrize("cls", [*map(method_class, OURS), Run], ids=lambda cls: cls.__name__)
def test_every_field_is_described_and_every_number_bounded(cls):
    for field in fields(cls).values():
        assert field.description and field.description == field.description.strip(), field
        items = typing.get_args(field.kind) if typing.get_origin(field.kind) is tuple else ()
        if {field.kind, *items} & {int, float}:
            assert field.low < field.high, field
            numbers = field.default if items else (field.default,)
            assert all(field.low <= number <= field.high for number in numbers), field


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean okddip") as error:
        method_class("okdip")
    assert all(name in str(error.value) for name in OURS)
    assert method_class().name == "baseline"


def test_a_plan_forgets_what_has_no_effect():
    default = plan(Run(method="kd", params=(("T", 4.0),)))
    assert default.run.params == () and default.method.T == 4
    paper = plan(Run(method="kd", preset="okddip_paper")).run
    assert dict(paper.params) == {"T": 3.0, "r": 1.0, "alpha": 1.0, "eps": 1e-7}
    mine = plan(Run(method="kd", preset="okddip_paper", params=(("T", 2.0),))).run
    assert dict(mine.params)["T"] == 2.0 and dict(mine.params)["r"] == 1.0
    assert plan(Run(method="ind", teacher="resnet20", teacher_seed=7)).run.teacher == ""
    assert plan(Run()).run == plan(plan(Run()).run).run


# ---- docstrings ----


@pytest.mark.parametrize("name", SHAPE)  # those of papers
def test_docstring_has_the_fixed_order(name):
    doc = method_class(name).__dict__["__doc__"]
    order = ["\n    L ", "| symbol", "Gradient stops", "Differences from the paper"]
    at = [doc.find(part) for part in order]
    assert -1 not in at and at == sorted(at), dict(zip(order, at, strict=True))
    rows = [line.strip() for line in doc.splitlines() if line.strip().startswith("|")]
    assert [cell.strip() for cell in rows[0].strip("|").split("|")] == ["symbol", "code", "shape"]
    assert len(rows) >= 3 and any("(" in row for row in rows[2:])
    rest = doc[at[3] :]
    assert "1. " in rest or "none" in rest
    numbers = [
        int(line.split(".")[0])
        for line in map(str.strip, rest.splitlines())
        if line.split(".")[0].isdigit()
    ]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("name", OURS)
def test_title_and_name(name):
    cls = method_class(name)
    assert cls.name == name and name.isidentifier() and name.islower() and cls.title
    titles = [method_class(n).title for n in OURS]
    assert len(set(titles)) == len(titles)
    assert getattr(kd, cls.__name__) is cls and cls.__name__ in kd.__all__
    assert getattr(kd.methods, cls.__name__) is cls


# ---- source digests ----

SOURCE = '''
class Mine(KD):
    """A learner's own."""

    T: float = 3.0

    def terms(self, s, y, t, step):
        """Terms."""
        return {"ce": s.logits.mean()}
'''


def cell(source, count=[0], register=True):  # noqa: B006  numbers cells as a notebook does
    """The class Mine as a notebook's cell would define it: its source only in linecache."""
    count[0] += 1
    file = f"<cell-{count[0]}>"
    if register:
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    space = {"KD": KD, "__name__": "__main__"}
    exec(compile(source, file, "exec"), space)
    return space["Mine"]


def test_digest_ignores_docstrings_and_comments_alone():
    first = class_digest(cell(SOURCE))
    assert len(first) == 16
    assert first == class_digest(cell(SOURCE))
    assert first == class_digest(cell(SOURCE.replace("A learner's own.", "Better said.")))
    assert first == class_digest(cell(SOURCE.replace('"""Terms."""', '"""T."""  # a comment')))
    assert first == class_digest(cell("\n\nx = 1\n" + SOURCE))
    assert first == class_digest(cell(SOURCE.replace('        """Terms."""\n', "")))


@pytest.mark.parametrize(
    "old, new",
    [
        (".mean()", ".sum()"),
        ("T: float = 3.0", "T: float = 4.0"),
        ("T: float", "tau: float"),
        ('"ce"', '"other"'),
    ],
)
def test_digest_changes_with_code(old, new):
    assert old in SOURCE
    assert class_digest(cell(SOURCE)) != class_digest(cell(SOURCE.replace(old, new)))


@pytest.mark.parametrize("old, new", [("3.0", "4.0"), ("T", "tau")])
def test_digest_of_a_class_without_functions(old, new):
    source = "class Mine(KD):\n    T: float = 3.0\n"
    first = class_digest(cell(source))
    assert first == class_digest(cell(source))
    assert first != class_digest(cell(source.replace(old, new)))


def test_digest_covers_parents_below_method():
    plain = "class Base(KD):\n    def terms(self):\n        return 1\n"
    child = "class Mine(Base):\n    def weights(self):\n        return 2\n"
    first = class_digest(cell(plain + child))
    assert first == class_digest(cell(plain + child))
    assert first != class_digest(cell(plain.replace("1", "3") + child))


@pytest.mark.parametrize(
    "old, new",
    [
        ("A = 1", "A = 2"),
        ("B = 'x'", "B = 'y'"),
        ("v + A", "v - A"),
        ("C = 3.0", "C = 4.0"),
        ("E = (1, 2)", "E = (1, 3)"),
    ],
)
def test_digest_sees_what_methods_take_from_their_cell(old, new):
    """Values, functions and what these take; a default; also inside a lambda and by a parent."""
    source = """
A = 1
B = 'x'
C = 3.0
D = [9]
E = (1, 2)
T = 5
def helper(v):
    return v + A
class Base(KD):
    def weights(self):
        return {B: 1.0}
class Mine(Base):
    T: float = C
    def terms(self, s, y, t, step):
        D.append(1)
        return {"ce": (lambda v: helper(v) * E[0])(s.T)}
"""
    assert old in source
    first = class_digest(cell(source))
    assert first == class_digest(cell(source)) != class_digest(cell(source.replace(old, new)))
    # A list may change in a run, and it is an attribute of that name that is read.
    assert first == class_digest(cell(source.replace("[9]", "[7]").replace("T = 5", "T = 7")))


def test_digest_takes_the_right_class_of_a_cell():
    twice = SOURCE.replace("3.0", "9.0") + SOURCE
    assert class_digest(cell(twice)) == class_digest(cell(SOURCE))


@pytest.mark.parametrize("name", OURS)
def test_digests_of_our_classes_differ(name):
    assert [
        n for n in OURS if class_digest(method_class(n)) == class_digest(method_class(name))
    ] == [name]


def test_whose_class_it_is():
    assert is_builtin(KD) and not is_builtin(cell(SOURCE))


def test_a_class_without_terms_says_so():
    mine = type("Nothing", (Method,), {})
    with pytest.raises(TypeError, match="Nothing has no terms"):
        mine().terms(None, None, None, None)


# ---- rules of the house ----


def docstrings(tree):
    """Line numbers that docstrings occupy."""
    lines = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", 0), str):
                lines |= set(range(first.lineno, first.end_lineno + 1))
    return lines


def imported(path):
    """Modules of kdkit that a file imports, wherever in it: {"fields", "study.plans", ...}."""
    place = ["kdkit", *path.relative_to(ROOT).with_suffix("").parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = place[: len(place) - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{base}.{a.name}" for a in node.names} | {base}
    return {n.removeprefix("kdkit.") for n in names if n.startswith("kdkit.")}


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_engine_does_not_import_the_kit(path):
    assert not [name for name in imported(path) if name.partition(".")[0] == "study"]


def test_what_a_file_imports_is_seen():
    assert "study.cli" in imported(ROOT / "__main__.py")
    packages = {name.partition(".")[0] for name in imported(STUDY / "plans.py")}
    assert {"fields", "methods", "study"} <= packages
    assert {"losses", "models", "fields"} <= imported(ROOT / "methods" / "base.py")


def test_imports_have_no_cycle():
    """Of the engine's files and packages: some order has each import only what comes before."""
    rest = {}
    for path in ENGINE:
        first = path.relative_to(ROOT).parts[0].removesuffix(".py")
        rest.setdefault(first, set()).update(n.partition(".")[0] for n in imported(path))
    del rest["__init__"]
    rest = {name: needs & rest.keys() - {name} for name, needs in rest.items()}
    done = set()
    while free := {name for name, needs in rest.items() if needs <= done}:
        done |= free
        rest = {name: needs for name, needs in rest.items() if name not in free}
    assert rest == {} and {"fields", "methods", "train"} <= done


HEAVY = (
    "matplotlib pandas seaborn IPython ipywidgets papermill torchvision scipy kdkit.study".split()
)


def test_importing_kdkit_brings_the_engine_alone():
    code = (
        "import sys, kdkit\n"
        "kdkit.fit, kdkit.DCKD, kdkit.Recipe, kdkit.models.wrap, kdkit.data.tensors\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


# What reads the environment, or a file, or writes one.
OUTSIDE_WORLD = set(
    "os environ getenv open Path pathlib shutil tempfile subprocess read_text write_text "
    "read_bytes write_bytes savez savez_compressed loadtxt savetxt fromfile tofile memmap".split()
)


def outside_world(source):
    """The names in a file that reach out of the process."""
    for node in ast.walk(ast.parse(source)):
        names = [getattr(node, "id", ""), getattr(node, "attr", "")]
        if isinstance(node, ast.alias):
            names += node.name.split(".")
        if isinstance(node, ast.ImportFrom):
            names += (node.module or "").split(".")
        yield from OUTSIDE_WORLD.intersection(names)
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            if whole in ("torch.save", "torch.load", "np.save", "np.load", "numpy.load"):
                yield whole


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_engine_reads_no_variable_and_no_file(path):
    assert list(outside_world(path.read_text())) == []


@pytest.mark.parametrize(
    "source", ["import os", "from os import environ", "open(x)", "import pathlib", "torch.load(f)"]
)
def test_reaching_out_is_seen(source):
    assert list(outside_world(source))


# ---- size ----

BUDGET = 31_000  # tokens of the engine


def tokens(source):
    """How many tokens a file has: comments, docstrings and layout do not count."""
    layout = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    documents = docstrings(ast.parse(source))
    return sum(
        token.type not in layout
        and not (token.type == tokenize.STRING and token.start[0] in documents)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    )


def test_tokens_are_counted():
    source = '"""Doc."""\n# a comment\ndef f(x):\n    """Doc\n    two."""\n\n    return x + "a"\n'
    assert tokens(source) == len(["def", "f", "(", "x", ")", ":", "return", "x", "+", '"a"'])


def test_the_engine_is_within_its_budget():
    sizes = {
        str(p.relative_to(ROOT)): tokens(p.read_text()) for p in [*ENGINE, ROOT / "__main__.py"]
    }
    total = sum(sizes.values())
    print(f"\nthe engine has {total} tokens, of {BUDGET} allowed; its largest files:")
    for name in sorted(sizes, key=sizes.get, reverse=True)[:10]:
        print(f"{sizes[name]:6} {name}")
    assert total <= BUDGET


# ---- names ----


def names_spoken(path):
    """(method's name, line) for each string constant of a file that is exactly one, outside the
    class of that method."""
    tree = ast.parse(path.read_text())
    documents = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in OURS and node.lineno not in documents:
            own = method_class(node.value)
            home = sys.modules[own.__module__].__file__ == str(path)
            inside = [
                c
                for c in tree.body
                if home
                and isinstance(c, ast.ClassDef)
                and c.name == own.__name__
                and c.lineno <= node.lineno <= c.end_lineno
            ]
            if not inside:
                yield node.value, node.lineno


# The figures and the papers' tables are of certain methods.
SPEAKING = [
    p
    for p in FILES
    if not {STUDY / "figures", STUDY / "papers"} & set(p.parents) and p.name != "__init__.py"
]


@pytest.mark.parametrize("path", SPEAKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_methods_name_outside_its_class(path):
    assert list(names_spoken(path)) == []


def test_a_spoken_name_is_found(tmp_path):
    path = tmp_path / "plots.py"
    path.write_text('"""kd"""\nx = "okddip"\ny = f("kd, dml", m="one")\n')
    assert list(names_spoken(path)) == [("okddip", 2), ("one", 3)]


def test_nothing_unpickles_code():
    """torch.load with weights_only=True, numpy without pickles, and no pickle.load(s)."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
                assert called not in ("pickle.load", "pickle.loads", "joblib.load"), path
                for function, key, value in (
                    ("torch.load", "weights_only", True),
                    ("np.load", "allow_pickle", False),
                ):
                    if called == function:
                        assert getattr(given.get(key), "value", None) is value, (path, node.lineno)


@pytest.mark.parametrize("T", [3.0, 4.0, 5.0])
def test_the_plan_of_a_plans_run_is_the_plan(T):
    """Also where a field is set to the class's default and the preset has another value."""
    planned = plan(preset("okddip_paper", method="kd", T=T))
    again = plan(planned.run)
    assert again.run == planned.run and again.method.T == T and again.id == planned.id
    assert plan(planned) is planned
    plain = plan(preset("lesson", method="kd", T=T))
    assert (plain.id == plan(preset("lesson", method="kd")).id) == (T == 4.0)


HELPED = '''
def inner(v):
    return v.square()
def helper(v):
    """Doc."""
    return inner(v).mean()
def unused(v):
    return v
class Helped(Method):
    name = "helped"
    def terms(self, s, y, t, step):
        return {"ce": helper(s.logits)}
'''


def test_functions_that_a_learners_class_calls_count(tmp_path):
    """An edited helper is an edited method; one that nobody calls is not."""

    def digest(text):
        file = tmp_path / f"h{abs(hash(text))}.py"
        file.write_text(text)
        space = {"__name__": "learner_helped", "Method": type("Local", (Method,), {})}
        exec(compile(text, str(file), "exec"), space)
        return class_digest(space["Helped"])

    before = dict(METHODS)
    try:
        first = digest(HELPED)
        assert first == digest(HELPED.replace("def unused(v):\n    return v", "# nothing"))
        assert first != digest(HELPED.replace("v.square()", "v.abs()"))
        assert first != digest(HELPED.replace("inner(v).mean()", "inner(v).sum()"))
    finally:
        METHODS.clear()
        METHODS.update(before)


def test_names_are_words():
    """Six letters and more on average, the equations' letters left out (benchmarks/names.py)."""
    spec = importlib.util.spec_from_file_location("names", ROOT.parent / "benchmarks" / "names.py")
    counting = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counting)
    assert counting.mean_length(counting.names()) >= 6
