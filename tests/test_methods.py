"""What all methods promise, and the rules of the house that a syntax tree can check."""

import ast
import importlib
import linecache
import math
import sys
import typing
from pathlib import Path

import pytest
import torch

import kdkit
from kdkit.config import Run, preset
from kdkit.methods import (
    KD,
    Method,
    OKDDip,
    Probe,
    Step,
    fields,
    is_ours,
    make,
    method_class,
    methods,
    resolve,
    source_digest,
)
from kdkit.models import Branches, Peers, build
from kdkit.store import run_id

package = importlib.import_module("kdkit.methods")  # kdkit.methods is also a function

ROOT = Path(kdkit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
OURS = [name for name in methods() if is_ours(method_class(name))]


def all_of(names, table):
    """The table must speak of every method of the package, so that a new one is not forgotten."""
    assert set(table) == set(names), set(table) ^ set(names)
    return table


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


def world(method):
    """(students, their parts by name, teacher, terms) of one step on eight small images."""
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
    step = Step(torch.arange(8), 0, 1, torch.Generator().manual_seed(0))
    return parts, teacher, method.terms(s, y, t, step)


CASES = [(name, given) for name, table in REACH.items() for given in table]


@pytest.mark.parametrize("name, given", CASES, ids=str)
def test_what_the_gradient_reaches(name, given):
    cls = method_class(name)
    method = cls(**({"m": 3} if "m" in fields(cls) else {}), **dict(given))
    parts, teacher, terms = world(method)
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


def test_every_method_is_in_the_table():
    all_of(OURS, REACH)


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


def test_every_method_has_a_shape():
    all_of(OURS, SHAPE)


def test_without_the_second_level_the_seed_draws_the_student():
    method = OKDDip(two_level=False)
    drawn = [method.deployed(seed) for seed in range(40)]
    assert method.peers() == 4 and set(drawn) == {0, 1, 2, 3}
    assert drawn == [method.deployed(seed) for seed in range(40)]
    assert OKDDip(m=5, based="network").group() == ("network", 5) and OKDDip(m=5).deployed(9) == 4


@pytest.mark.parametrize("name", OURS)
def test_control_is_a_method_with_those_fields(name):
    method = method_class(name)()
    control = method.control()
    if name == method_class().name:
        assert control is None
    else:
        other = control[0](**control[1])
        assert other.name != name and is_ours(control[0])
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
    float: [math.nan, math.inf, -math.inf, "warm", None, -1],
    int: [-1, 2.5, "two", None],
    bool: ["maybe", 2, None],
    "choice": ["nonsense", None, 1],
}
EVERY = [(name, key) for name in OURS for key in fields(method_class(name))]


def base_of(kind):
    """(type, bound) of a field."""
    if typing.get_origin(kind) is typing.Annotated:
        return typing.get_args(kind)[:2]
    return ("choice", None) if typing.get_origin(kind) is typing.Literal else (kind, None)


@pytest.mark.parametrize("name, key", EVERY)
def test_bad_value_is_refused(name, key):
    cls = method_class(name)
    kind, bound = base_of(fields(cls)[key][0])
    values = list(BAD[kind])
    if bound == (">", 0):
        values += [0, 0.0]
    if kind is int:
        values += range(bound[1])  # all that is below the least allowed
    for value in values:
        with pytest.raises(ValueError) as error:
            cls(**{key: value})
        message = str(error.value)
        assert key in message and "\n" not in message
        if kind == "choice":
            allowed = typing.get_args(fields(cls)[key][0])
            assert all(str(a) in message for a in allowed)


@pytest.mark.parametrize("name, key", EVERY)
def test_good_value_is_kept_as_its_type(name, key):
    cls = method_class(name)
    kind, start = fields(cls)[key]
    assert getattr(cls(), key) == start
    text = str(start)  # as the command line gives it
    got = getattr(cls(**{key: text}), key)
    assert got == start and type(got) is type(start)


def test_fields_of_a_child_include_its_parents():
    assert set(fields(method_class("okddip_kd"))) == set(fields(OKDDip)) | {"beta"}
    assert "name" not in fields(KD) and "ramped" not in fields(KD)


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean okddip") as error:
        method_class("okdip")
    assert all(name in str(error.value) for name in OURS)
    assert method_class().name == "baseline"


def test_resolve_forgets_what_has_no_effect():
    run = Run(method="kd", params=(("T", 4.0),))  # the default
    assert resolve(run).params == () and make(run).T == 4
    paper = resolve(Run(method="kd", preset="okddip_paper"))
    assert dict(paper.params) == {"T": 3.0, "r": 1.0, "alpha": 1.0, "eps": 1e-7}
    mine = resolve(Run(method="kd", preset="okddip_paper", params=(("T", 2.0),)))
    assert dict(mine.params)["T"] == 2.0 and dict(mine.params)["r"] == 1.0
    assert resolve(Run(method="ind", teacher="resnet20", teacher_seed=7)).teacher == ""
    assert resolve(Run()) == resolve(resolve(Run()))


# ---- docstrings ----


@pytest.mark.parametrize("name", OURS)
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
    assert getattr(package, cls.__name__) is cls and cls.__name__ in package.__all__


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
    first = source_digest(cell(SOURCE))
    assert len(first) == 16
    assert first == source_digest(cell(SOURCE))
    assert first == source_digest(cell(SOURCE.replace("A learner's own.", "Better said.")))
    assert first == source_digest(cell(SOURCE.replace('"""Terms."""', '"""T."""  # a comment')))
    assert first == source_digest(cell("\n\nx = 1\n" + SOURCE))
    assert first == source_digest(cell(SOURCE.replace('        """Terms."""\n', "")))


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
    assert source_digest(cell(SOURCE)) != source_digest(cell(SOURCE.replace(old, new)))


@pytest.mark.parametrize("old, new", [("3.0", "4.0"), ("T", "tau")])
def test_digest_of_a_class_without_functions(old, new):
    source = "class Mine(KD):\n    T: float = 3.0\n"
    first = source_digest(cell(source))
    assert first == source_digest(cell(source))
    assert first != source_digest(cell(source.replace(old, new)))


def test_digest_covers_parents_below_method():
    plain = "class Base(KD):\n    def terms(self):\n        return 1\n"
    child = "class Mine(Base):\n    def weights(self):\n        return 2\n"
    first = source_digest(cell(plain + child))
    assert first == source_digest(cell(plain + child))
    assert first != source_digest(cell(plain.replace("1", "3") + child))


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
    first = source_digest(cell(source))
    assert first == source_digest(cell(source)) != source_digest(cell(source.replace(old, new)))
    # A list may change in a run, and it is an attribute of that name that is read.
    assert first == source_digest(cell(source.replace("[9]", "[7]").replace("T = 5", "T = 7")))


def test_digest_takes_the_right_class_of_a_cell():
    twice = SOURCE.replace("3.0", "9.0") + SOURCE
    assert source_digest(cell(twice)) == source_digest(cell(SOURCE))


@pytest.mark.parametrize("name", OURS)
def test_digests_of_our_classes_differ(name):
    assert [
        n for n in OURS if source_digest(method_class(n)) == source_digest(method_class(name))
    ] == [name]


def test_whose_class_it_is():
    assert is_ours(KD) and not is_ours(cell(SOURCE))


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


# What each module of kdkit may import, from the bottom up; plots never imports train.
BELOW = "config losses models files metrics data methods store"
ARROWS = {
    "config": "",
    "losses": "",
    "files": "",
    "metrics": "",
    "machine": "config models",
    "models": "config",
    "data": "config losses models files",
    "methods": "config losses models data",
    "papers": "config methods metrics store tables",
    "store": "config losses models files metrics data methods",
    "train": "config losses machine models files metrics data methods store",
    "tables": BELOW,
    "pictures": f"{BELOW} tables",
    "findings": f"{BELOW} tables",
    "plots": f"{BELOW} tables pictures findings",
    "teach": f"{BELOW} train plots",
    "widgets": f"{BELOW} papers tables train plots teach",
    "batch": f"{BELOW} machine train plots",
    "cli": f"{BELOW} papers machine train plots batch",
    "__main__": "cli",
    "__init__": f"{BELOW} papers machine train plots widgets teach",
}


def top(path):
    """The module of kdkit, or package in it, that a file belongs to."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported(path):
    """Modules of kdkit that a file imports, wherever in it."""
    place = ["kdkit", *path.relative_to(ROOT).with_suffix("").parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = place[: len(place) - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {base} if base != "kdkit" else {f"kdkit.{a.name}" for a in node.names}
    ours = {n.split(".")[1] for n in names if n.startswith("kdkit.")}
    return ours | ({"__init__"} if "kdkit" in names else set())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    module = top(path)
    assert module in ARROWS, f"{module} has no line in ARROWS"
    assert imported(path) - {module} <= set(ARROWS[module].split())


def test_arrows_have_no_cycle():
    done, rest = set(), {k: set(v.split()) for k, v in ARROWS.items()}
    while free := {k for k, v in rest.items() if v <= done}:
        done |= free
        rest = {k: v for k, v in rest.items() if k not in free}
    assert rest == {} and "train" not in ARROWS["plots"].split()


def names_spoken(path):
    """(method's name, line) for each string constant of a file that is exactly one."""
    tree = ast.parse(path.read_text())
    documents, allowed = docstrings(tree), set()
    for node in tree.body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        figures = any(getattr(t, "id", "") == "FIGURES" for t in targets)
        if path.name == "plots.py" and figures:
            allowed |= set(range(node.lineno, node.end_lineno + 1))
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
            if not inside and node.lineno not in allowed:
                yield node.value, node.lineno


SPEAKING = [p for p in FILES if top(p) != "papers" and p != ROOT / "methods" / "__init__.py"]


@pytest.mark.parametrize("path", SPEAKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_methods_name_outside_its_class(path):
    assert list(names_spoken(path)) == []


def test_a_spoken_name_is_found(tmp_path):
    path = tmp_path / "plots.py"
    path.write_text('"""kd"""\nFIGURES = {"a": ["kd"]}\nx = "okddip"\ny = f("kd, dml", m="one")\n')
    assert list(names_spoken(path)) == [("okddip", 3), ("one", 4)]


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
def test_resolve_twice_is_resolve_once(T):
    """Also where a field is set to the class's default and the preset has another value."""
    run = resolve(preset("okddip_paper", method="kd", T=T))
    assert resolve(run) == run and make(run).T == T
    assert run_id(run) == run_id(preset("okddip_paper", method="kd", T=T))
    plain = preset("lesson", method="kd", T=T)
    assert (run_id(plain) == run_id(preset("lesson", method="kd"))) == (T == 4.0)


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
        return source_digest(space["Helped"])

    before = dict(package.base._REGISTRY)
    try:
        first = digest(HELPED)
        assert first == digest(HELPED.replace("def unused(v):\n    return v", "# nothing"))
        assert first != digest(HELPED.replace("v.square()", "v.abs()"))
        assert first != digest(HELPED.replace("inner(v).mean()", "inner(v).sum()"))
    finally:
        package.base._REGISTRY.clear()
        package.base._REGISTRY.update(before)
