"""What makes the notebooks a course: title cards, folds, exercises with solutions, links."""

import re
from pathlib import Path

import nbformat
import pytest

from kdkit.study import notebooks
from kdkit.study.project import home

*WALK, GLOSSARY = notebooks.notebooks()
TITLES = [path.stem for path in WALK]
SOLUTIONS = home() / "notebooks" / "solutions"
SUMMARIES = {"Answer", "Answers", "Hint", "Solution", "Why"}
KINDS = ("Check (5 minutes)", "Change (15 minutes)", "Extend (45 minutes)")
CHECKS = ("kd.check(", "kd.check_run(", "kd.check_value(")
FOLD = re.compile(r"<details><summary>(.*?)</summary>\n\n(.*?)\n\n</details>", re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def read(path):
    return nbformat.read(path, as_version=4)


def prose(path):
    """A notebook's or a page's text."""
    if path.suffix == ".ipynb":
        return "\n\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    return path.read_text()


def exercises(path):
    """For each exercise its kind, its text with folds, and the code cell that follows it."""
    nb, found = read(path), []
    for cell, after in zip(nb.cells, nb.cells[1:], strict=False):
        if cell.cell_type == "markdown":
            found += [(kind, cell.source, after) for kind in KINDS if f"**{kind}.**" in cell.source]
    return found


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_the_title_card(path):
    card, nb = read(path).cells[0].source, read(path)
    assert card.startswith(f"# {path.stem[:2]} · ")
    assert re.search(r"^\*\*(Claim|Question)\.\*\* .", card, re.M)
    reading, training = (
        re.search(rf"^\| {row} \| (.+?) \|$", card, re.M) for row in ("Reading", "Training")
    )
    assert training and "stored" in training[1]
    words = sum(len(c.source.split()) for c in nb.cells if c.cell_type == "markdown")
    lines = sum(c.source.count("\n") + 1 for c in nb.cells if c.cell_type == "code")
    minutes = words / 110 + lines / 10  # read slowly, with a pencil
    said = float(re.search(r"about (\d+) minutes", reading[1])[1])
    assert abs(said - minutes) <= max(5, 0.25 * minutes), f"about {minutes:.0f} minutes"


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_folds_are_whole(path):
    text = prose(path)
    folds = FOLD.findall(text)
    assert len(folds) == text.count("<details") == text.count("</details>")
    assert {summary for summary, _ in folds} <= SUMMARIES
    assert all(body.strip() for _, body in folds)


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_numbered_questions_are_answered_in_a_fold(path):
    """A list of questions is followed by a fold with as many answers, before the next heading."""
    for part in re.split(r"^#+ ", prose(path), flags=re.M):
        outside = FOLD.sub("", part)
        asked = [n for n, text in re.findall(r"^(\d+)\. (.+)$", outside, re.M) if "?" in text]
        answers = [body for summary, body in FOLD.findall(part) if summary == "Answers"]
        answered = [n for body in answers for n in re.findall(r"^(\d+)\. ", body, re.M)]
        assert set(asked) <= set(answered), part[:60]


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_three_exercises_with_hint_solution_and_check(path):
    found = exercises(path)
    assert [kind for kind, *_ in found] == list(KINDS)
    for kind, text, code in found:
        own = text.split(f"**{kind}.**")[1]
        assert [summary for summary, _ in FOLD.findall(own)][:2] == ["Hint", "Solution"], kind
        assert code.cell_type == "code" and any(name in code.source for name in CHECKS), kind
        assert "..." in code.source and "# your code" in code.source, kind


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_the_solution_in_the_fold_is_the_teachers(path):
    solved = [c.source for c in read(SOLUTIONS / f"{path.stem[:2]}.ipynb").cells]
    for kind, text, _ in exercises(path):
        solution = FOLD.findall(text.split(f"**{kind}.**")[1])[1][1]
        (code,) = re.findall(r"```python\n(.*?)\n```", solution, re.S)
        assert any(code in source for source in solved), kind


@pytest.mark.parametrize("path", WALK, ids=TITLES)
@pytest.mark.slow
def test_solutions_pass_the_checks(path, tmp_path):
    number = path.stem[:2]
    notebooks.run_notebook(SOLUTIONS / f"{number}.ipynb", tmp_path / "copy.ipynb")
    said = printed(tmp_path / "copy.ipynb")
    checks = sum(c.source.count(name) for c in read(SOLUTIONS / f"{number}.ipynb").cells
                 for name in CHECKS)  # fmt: skip
    assert said.count("right: ") == checks >= 3 and "not done yet" not in said


def printed(path):
    """All that an executed notebook printed."""
    return "".join(
        output.get("text", "")
        for cell in read(path).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.mark.parametrize("path", WALK, ids=TITLES)
def test_slides_are_marked(path):
    kinds = [c.metadata.get("slideshow", {}).get("slide_type") for c in read(path).cells]
    marked = [kind for kind in kinds if kind]
    assert path.stem.startswith("90") or (len(marked) >= 8 and marked[0] == "slide")


@pytest.mark.parametrize(
    "path",
    [*WALK, GLOSSARY, *sorted(SOLUTIONS.glob("*.ipynb")), home() / "COURSE.md"],
    ids=lambda path: path.stem,
)
def test_relative_links_lead_somewhere(path):
    words = re.findall(r"^### (\S+)$", prose(GLOSSARY), re.M)
    for link in LINK.findall(prose(path)):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        if target == GLOSSARY and anchor:
            assert anchor in words, link


def test_the_glossary_is_in_order_and_used():
    words = re.findall(r"^### (\S+)$", prose(GLOSSARY), re.M)
    assert words == sorted(words, key=str.lower) and len(set(words)) == len(words)
    linked = {word for path in WALK for word in re.findall(r"91_glossary\.ipynb#([\w-]+)",
                                                           prose(path))}  # fmt: skip
    assert {"control", "paired", "interval", "record", "probe"} <= linked


def test_the_course_names_what_there_is():
    course = Path(home() / "COURSE.md").read_text()
    assert course.count("<details><summary>Answer</summary>") == 20
    assert course.count("<details") == course.count("</details>") == 20
    from kdkit.study import figures

    named = set(re.findall(r"`(\w+)`", course))
    known = set(figures.list_figures())
    assert {"noise", "never_seen", "okddip_own_share", "teacher_size"} <= named & known
