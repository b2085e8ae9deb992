"""Notebooks: the template's limits, each executed once on smoke, and the runner's strictness."""

import ast
import asyncio
import io
import time
import tokenize

import nbformat
import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session

from kdkit.study import cli, figures, notebooks, store

*WALK, GLOSSARY = notebooks.notebooks()
TITLES = [path.stem for path in WALK]
W = "import ipywidgets as w\n"


def code_lines(source):
    """Lines that hold code: no comments, no blank lines."""
    skip = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({n for t in tokens if t.type not in skip for n in range(t.start[0], t.end[0] + 1)})


def counts(cell):
    """Is it none of the cells that come on top: folds, diagrams and predictions?"""
    extra = ("<details>",) if cell.cell_type == "markdown" else ("diagram_", "predict(", "guess:")
    text = cell.source if cell.cell_type == "code" else cell.source[:9]
    return not any(word in text for word in extra)


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_the_template(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert nb.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in nb.cells]
    assert len(set(ids)) == len(ids) and 25 <= len([c for c in nb.cells if counts(c)]) <= 60
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert max(code_lines(cell.source) for cell in code) <= 20
    assert sum(code_lines(cell.source) for cell in code) <= 160
    sections, before = 0, 0  # what must be read before the subject begins: the second section
    for cell in nb.cells:
        sections += cell.cell_type == "markdown" and cell.source.startswith("## ")
        before += code_lines(cell.source) if cell.cell_type == "code" and sections < 2 else 0
    assert sections >= 2 and before <= 14


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_the_parameters_cell(path):
    nb = nbformat.read(path, as_version=4)
    (cell,) = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    statements = ast.parse(cell.source).body
    assert 1 <= len(statements) <= 10
    for node, line in zip(statements, cell.source.splitlines(), strict=True):
        assert isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name), line
        assert type(ast.literal_eval(node.value)).__name__ == node.annotation.id, line
        assert "  # " in line
    assert 'PRESET: str = "auto"' in cell.source


@pytest.fixture(scope="module")
def walked():
    """What of the walk failed, when the batch executed it on smoke, one seed, one shared store."""
    return notebooks.figures(None, "smoke", 1)


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_executes_on_smoke_and_draws_its_figures(path, walked):
    assert walked.get(path.name) is None
    copy = nbformat.read(store.root() / "notebooks" / path.name, as_version=4)
    assert all(c.execution_count for c in copy.cells if c.cell_type == "code" and c.source)
    for name, spec in figures.FIGURES.items():
        if spec.notebook == path.name[:2]:
            for kind in ("png", "svg", "csv", "json"):
                assert (figures.figures_root() / f"{name}.{kind}").stat().st_size > 0, name


def test_every_figure_belongs_to_a_notebook(walked):
    assert {spec.notebook for spec in figures.FIGURES.values()} <= {t[:2] for t in TITLES}
    assert walked == {}


def test_one_figure_is_drawn_without_its_notebook(walked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDKIT_FIGURES", str(tmp_path))
    name = next(n for n, spec in figures.FIGURES.items() if spec.runs)
    assert cli.main(["figures", "--only", name]) == 0 and str(tmp_path) in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.{kind}" for kind in ("csv", "json", "png", "svg")
    ]


def made(folder, *cells):
    first = nbformat.v4.new_code_cell(
        "A: float = 1.0  # a number", metadata={"tags": ["parameters"]}
    )
    nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(nb, folder / "trap.ipynb")
    return folder / "trap.ipynb"


def test_the_runner_passes_a_sound_notebook_and_its_parameters(tmp_path):
    src = made(
        tmp_path,
        "import os\nassert A == 3 and os.environ['KDKIT_BATCH'] == '1'",
        W + "o = w.Output()\nwith o:\n    print('heard')\no",
    )
    notebooks.run_notebook(src, tmp_path / "copy.ipynb", {"A": 3.0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.ipynb", "trap.ipynb"]
    assert "heard" in (tmp_path / "copy.ipynb").read_text()
    copy = nbformat.read(tmp_path / "copy.ipynb", as_version=4)
    assert copy.metadata.kdkit == {"preset": "smoke", "seeds": "1"}


@pytest.mark.parametrize(
    "cells, says",
    [
        (["1 / 0"], "In [2]: ZeroDivisionError"),
        ([W + "o = w.Output()\nwith o:\n    1 / 0\no"], "Output widget: ZeroDivisionError"),
        ([W + "w.interact(lambda x: 1 / x, x=0);"], "Output widget: ZeroDivisionError"),
        (
            [W + "s = w.IntSlider()\ns.observe(lambda c: 1 / 0, 'value')\ns.value = 3"],
            "ZeroDivision",
        ),
        (
            [
                "import threading, time\n"
                "def dies():\n    time.sleep(0.5)\n    raise KeyError('lost')\n"
                "threading.Thread(target=dies).start()",
                "time.sleep(1.5)",
            ],
            "KeyError: 'lost'",
        ),
    ],
    ids=["cell", "output", "interact", "observe", "thread"],
)
def test_the_runner_fails_what_papermill_lets_pass(cells, says, tmp_path):
    with pytest.raises(RuntimeError) as e:
        notebooks.run_notebook(made(tmp_path, *cells), tmp_path / "copy.ipynb")
    assert says in str(e.value) and "trap.ipynb" in str(e.value)
    assert (tmp_path / "copy.ipynb").exists()


def test_the_runner_names_the_notebook_whose_kernel_died(tmp_path):
    with pytest.raises(RuntimeError, match="trap.ipynb: its kernel died"):
        notebooks.run_notebook(made(tmp_path, "import os\nos._exit(3)"), tmp_path / "copy.ipynb")


def test_the_runner_refuses_an_unknown_parameter(tmp_path):
    with pytest.raises(ValueError, match="unknown parameter of trap.ipynb 'AA': did you mean A"):
        notebooks.run_notebook(made(tmp_path), tmp_path / "copy.ipynb", {"AA": 1})


def test_an_answer_that_comes_while_the_runner_sends_is_heard(tmp_path):
    made = notebooks._KernelManager().client().shell_channel_class
    address, session = f"ipc://{tmp_path}/shell", Session(key=b"key")

    async def ask():
        with zmq.Context() as there, zmq.asyncio.Context() as here:
            kernel, socket = there.socket(zmq.ROUTER), here.socket(zmq.DEALER)
            with kernel, socket:
                kernel.bind(address)
                socket.connect(address)
                channel = made(socket, session)
                channel.send(session.msg("execute_request"))
                sender = kernel.recv_multipart()[0]
                answer = asyncio.ensure_future(channel.get_msg())
                for _ in range(5):
                    await asyncio.sleep(0.01)  # it waits for the answer now
                session.send(kernel, session.msg("execute_reply"), ident=sender)
                time.sleep(0.3)  # the answer is here, and this thread has not seen it
                channel.send(session.msg("comm_msg"))
                return await asyncio.wait_for(answer, 10)

    assert asyncio.run(ask())["msg_type"] == "execute_reply"


def doubled(path, folder):
    """The notebook with each of its cells twice in a row, as somebody runs them who tries again."""
    nb = nbformat.read(path, as_version=4)
    cells = []
    for cell in nb.cells:
        cells.append(cell)
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            cells.append(nbformat.v4.new_code_cell(cell.source))
    nb.cells = cells
    nbformat.write(nb, folder / path.name)
    return folder / path.name


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_every_cell_may_be_run_twice(path, walked, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    notebooks.run_notebook(doubled(path, tmp_path), tmp_path / "copy.ipynb")
