"""Guesses before answers, training before figures, and a cell that is stopped."""

import json
import os
import signal

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import kdkit as kd
from kdkit.study import figures, notebooks, store, teach
from kdkit.study import guess as guesses
from kdkit.study.callbacks import Interrupted

SHORT = {"n_train": 100, "epochs": 1}
ASK = "How much better is KD?"


@pytest.fixture
def asked(runs, monkeypatch, capsys):
    """asked(...): a guess as a person at a notebook is asked for it, in an empty store."""
    monkeypatch.delenv("KDKIT_BATCH")
    monkeypatch.setattr(guesses, "_asked", {})
    return lambda *args, **bounds: kd.predict(ASK, *args, **bounds)


@pytest.fixture
def displayed(monkeypatch):
    """What was displayed, in order."""
    seen = []
    monkeypatch.setattr(guesses, "display", seen.append)
    return seen


def enter(guess, text, key=False):
    guess.box.value = text
    if key:  # what the browser sends for the Enter key
        guess.box._handle_custom_msg({"event": "submit"}, [])
    else:
        guess.button.click()


def test_nothing_is_predicted_until_somebody_does(asked, displayed, runs):
    guess = asked()
    assert displayed == [guess.panel] and guess.box.value == "" and guess.value is None
    assert guess.note.value == "" and not (runs / "guesses.json").exists()
    enter(guess, "1.24")
    assert guess.value == 1.2 and guess.box.value == ""  # in steps of .1
    assert guess.note.value.startswith("you said +1.20 points on ")
    kept = json.loads((runs / "guesses.json").read_text())
    assert kept[ASK]["said"] == 1.2 and kept[ASK]["unit"] == "points" and kept[ASK]["time"] > 1e9


@pytest.mark.parametrize(
    "text, value",
    [("2", 2.0), (" -0,5 ", -0.5), ("−3.14", -3.1), ("4 points", 4.0), ("0", 0.0), ("1e1", 10.0)],
)
def test_a_guess_may_be_typed_in_several_ways(asked, text, value):
    guess = asked()
    enter(guess, text, key=True)
    assert guess.value == value


@pytest.mark.parametrize(
    "text, seen", [("", "nothing"), ("ten", "ten"), ("11", "11"), ("nan", "nan"), ("<b>", "&lt;b")]
)
def test_what_is_no_guess_is_told_and_not_stored(asked, runs, text, seen):
    guess = asked()
    enter(guess, text)
    assert guess.value is None and not (runs / "guesses.json").exists()
    assert "a number from -10 to 10 is expected" in guess.note.value and seen in guess.note.value


def test_a_guess_outlives_the_kernel_and_can_be_replaced(asked, monkeypatch):
    enter(asked(), "1.5")
    monkeypatch.setattr(guesses, "_asked", {})  # a new kernel
    again = asked()
    assert again.value == 1.5 and again.note.value.startswith("you said +1.50 points on ")
    assert again.box.value == ""
    enter(again, "-2")
    monkeypatch.setattr(guesses, "_asked", {})
    assert asked().value == -2.0
    assert asked("%").value is None  # another unit is another question


@pytest.mark.parametrize("text", ["", "[]", "{", '{"How much better is KD?": 3}', "\x00"])
def test_a_damaged_file_of_guesses_is_an_empty_one(asked, runs, text):
    runs.mkdir()
    (runs / "guesses.json").write_text(text)
    guess = asked()
    assert guess.value is None
    enter(guess, "1")
    assert json.loads((runs / "guesses.json").read_text())[ASK]["said"] == 1.0


def test_a_number_that_nobody_entered_is_no_guess(asked, runs):
    """An earlier version stored the default of a parameter under the question."""
    runs.mkdir()
    old = {ASK: {"guess": 1.0, "unit": "points", "time": 1}, "other": {"guess": 2.0}}
    (runs / "guesses.json").write_text(json.dumps(old))
    guess = asked()
    assert guess.value is None
    enter(guess, "3")
    assert json.loads((runs / "guesses.json").read_text())["other"] == {"guess": 2.0}


def test_a_read_only_store_keeps_a_guess_for_the_session(asked, monkeypatch):
    def closed(path, data):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(store, "write", closed)
    guess = asked()
    enter(guess, "2")
    assert guess.value == 2.0 and "kept for this session alone: " in guess.note.value


def test_the_answer_is_hidden_until_there_is_a_guess(asked, displayed):
    guess = asked()
    displayed.clear()
    for _ in range(2):  # the cell may be run twice
        with guess:
            assert guesses.hiding()
            guess.compare(1.5)
    assert not guesses.hiding()
    block, line = displayed[2:]
    place, output = block.children
    assert place.value == "Enter your guess above: the answer appears here."
    assert output.layout.display == "none" and place.layout.display is None
    assert "it is +1.50 points; nobody guessed" in line.value
    enter(guess, "2")
    for each in (displayed[0], block):
        assert each.children[0].layout.display == "none"
        assert each.children[1].layout.display is None
    assert "you said +2.00 points, it is +1.50 points: 0.50 points apart, in the same" in line.value
    enter(guess, "-1")
    assert "you said -1.00 points" in line.value and "in the other direction" in line.value


def test_with_a_guess_nothing_is_hidden(asked, displayed, capsys):
    guess = asked()
    enter(guess, "2")
    displayed.clear()
    with guess:
        assert not guesses.hiding()
        print("here")
    assert displayed == [] and capsys.readouterr().out == "here\n"


def test_the_cell_that_asks_may_be_run_again(asked, displayed):
    """The same question is the same guess: what waits for it below is shown."""
    first = asked()
    with first:
        pass
    enter(asked(), "1")
    assert first.value == 1.0 and displayed[1].children[0].layout.display == "none"


def test_an_error_in_the_block_is_an_error_of_the_cell(asked):
    guess = asked()
    with pytest.raises(ZeroDivisionError), guess:
        raise ZeroDivisionError
    assert not guesses.hiding() and not guess.blocks
    with guess:
        pass


def test_in_batch_nobody_is_asked_and_nothing_is_hidden(runs, displayed, capsys):
    guess = kd.predict(ASK, "%", 0, 100)
    with guess:
        print("here")
        guess.compare(61.234)
    assert displayed == [] and guess.panel is None and guess.value is None
    assert capsys.readouterr().out.splitlines() == [
        f"{ASK}: nobody guessed, for KDKIT_BATCH=1 asks nobody",
        "here",
        ASK,
        "  it is 61.23 %; nobody guessed",
    ]


def test_outcomes_have_signs_where_they_may_have_either(asked):
    guess = asked("%", 0, 100, 1)
    enter(guess, "30.4 %")
    assert guess.outcome(61.2) == f"{ASK}\n  you said 30.00 %, it is 61.20 %: 31.20 % apart"
    guess = asked()
    enter(guess, "0")
    assert guess.outcome(-0.3).endswith("0.30 points apart")  # 0 has no direction


@pytest.mark.parametrize("bounds", [{"low": 1, "high": 1}, {"low": 5, "high": -5}, {"step": 0}])
def test_bounds_hold_a_number(asked, bounds):
    with pytest.raises(ValueError, match="low < high and step > 0"):
        asked(**bounds)


def test_the_strict_runner_hears_an_error_in_a_block(tmp_path):
    cells = [
        "A: int = 1  # one",
        "import kdkit as kd\nguess = kd.predict('How much?')\nwith guess:\n    guess.compare(1.0)",
        "with guess:\n    1 / 0",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nb.cells[0].metadata["tags"] = ["parameters"]
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(nb, tmp_path / "guess.ipynb")
    with pytest.raises(RuntimeError, match=r"In \[3\]: ZeroDivisionError"):
        notebooks.run_notebook(tmp_path / "guess.ipynb", tmp_path / "copy.ipynb")
    executed = nbformat.read(tmp_path / "copy.ipynb", 4).cells
    ((out,),) = [cell.outputs for cell in executed if "compare" in cell.source]
    assert out.text.endswith("How much?\n  it is +1.00 points; nobody guessed\n")


@pytest.fixture
def only_here():
    kd.figure("only_here", runs=[{"method": "baseline"}, {"method": "baseline", "lr": 0.05}])
    yield "only_here"
    figures.FIGURES.pop("only_here")


def test_train_trains_what_a_figure_lacks_and_draws_nothing(runs, only_here, capsys, monkeypatch):
    monkeypatch.setattr(teach, "display", lambda *args: pytest.fail("something was drawn"))
    lab = teach.lab("smoke", seeds=1, **SHORT)
    lab.get(method="baseline")
    assert lab.train(only_here, only_here) is None
    assert lab.train(only_here) is None
    assert capsys.readouterr().out.splitlines() == [
        "2 run(s) are ready, 1 of them trained now",
        "2 run(s) are ready, 0 of them trained now",
    ]
    assert store.find(lab.run(method="baseline", lr=0.05))


def test_train_knows_its_figures_first(runs):
    with pytest.raises(ValueError, match="unknown figure 'kd_acuracy': did you mean kd_accuracy"):
        teach.lab("smoke").train("kd_accuracy", "kd_acuracy")
    assert not runs.exists()


def test_no_live_picture_where_nobody_sees_it(asked, displayed, monkeypatch):
    monkeypatch.setattr(teach, "_LivePicture", lambda planned: pytest.fail("a live picture"))
    with asked():
        teach.lab("smoke", seeds=1, **SHORT).get()


def test_a_stopped_cell_shows_one_line(runs, capsys, monkeypatch, tmp_path):
    """As IPython shows it: no frames; and the cell has failed all the same."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    lab = teach.lab("smoke", seeds=1, n_train=100, epochs=2)
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.push({"lab": lab, "stop": lambda state: os.kill(os.getpid(), signal.SIGINT)})
    try:
        result = shell.run_cell("lab.get(on_epoch=stop)")
    finally:
        InteractiveShell.clear_instance()
    assert isinstance(result.error_in_exec, Interrupted)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 1 and shown[0].startswith("kdkit: stopped at epoch ")
    assert shown[0].endswith("and saved: run the same again and it goes on from there")


def test_a_stopped_script_has_its_exception(runs):
    with pytest.raises(Interrupted):
        teach.lab("smoke", seeds=1, n_train=100, epochs=2).get(
            on_epoch=lambda state: os.kill(os.getpid(), signal.SIGINT)
        )
