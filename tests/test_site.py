"""The website and the slides, of a walk of two made-up notebooks; the whole walk's is slow."""

import base64
import importlib
import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from IPython.display import Code
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdkit.study import notebooks, project, store

ROOT = Path(__file__).parents[1]
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
DOT_PNG = base64.b64decode(DOT)
README = """# toys

An opening. ![A dot](figures/dot.png)

## Open it

See the [glossary](#glossary).

## What the papers claim, and what the lesson shows

| claim | n |
|---|---|
| dots are round ([numbers](benchmarks/numbers.csv)) | 1 |

## Glossary

### Zirconium

A word.
"""
CARD = """# {title}

**Claim.** {title} is claimed. Another sentence.

| | |
|---|---|
| Reading time | 3 minutes |
| Training time | none |
"""


class Page(HTMLParser):
    """What a page loads (src and the head's href), where it leads, its ids, its pictures' texts."""

    def __init__(self, path):
        super().__init__()
        self.loads, self.links, self.ids, self.alts = [], [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.loads += [attrs[key] for key in ("src", "srcset") if attrs.get(key)]
        (self.loads if tag == "link" else self.links).extend(filter(None, [attrs.get("href")]))
        if tag == "img":
            self.alts.append(attrs.get("alt"))


def dead(folder):
    """Links of a folder of pages that lead nowhere, what they load from elsewhere, pictures without
    a text."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        wrong += [f"{path}: a picture has no text" for alt in page.alts if not (alt or "").strip()]
        for link in page.loads + page.links:
            elsewhere = re.match(r"[a-z]+:|//", link)
            if elsewhere and link in page.loads and not link.startswith("data:"):
                wrong.append(f"{path}: needs {link}")
            if elsewhere:
                continue
            to, _, place = link.partition("#")
            target = (path.parent / to.partition("?")[0]).resolve() if to else path
            if not target.exists():
                wrong.append(f"{path}: {link}")
            elif place and target in pages and place not in pages[target].ids:
                wrong.append(f"{path}: {link}: no such place")
    return wrong


@pytest.fixture(scope="module")
def build():
    """site/build.py."""
    sys.path.insert(0, str(ROOT / "site"))
    yield importlib.import_module("build")
    sys.path.remove(str(ROOT / "site"))


def html_output(html, **more):
    return new_output("display_data", data={"text/html": html, "text/plain": "<HTML>", **more})


def made_up(folder):
    """A project of two executed notebooks; the copies."""
    code = Code("def distil(z):\n    return z", language="python")
    shown = {"text/latex": code._repr_latex_(), "text/plain": repr(code)}
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "W()"}
    first = [
        new_markdown_cell(CARD.format(title="00 · One")),
        new_markdown_cell("[on](01_two.ipynb#By-hand), [word](../README.md#Zirconium), [the map]"),
        new_code_cell("kd.show(distil)", outputs=[html_output(code._repr_html_(), **shown)]),
        new_code_cell("w", outputs=[new_output("display_data", data=widget)]),
    ]
    picture = f'<img alt="a dot, drawn" src="data:image/png;base64,{DOT}">'
    second = [
        new_markdown_cell(CARD.format(title="01 · Two")),
        new_markdown_cell(
            "## By hand\n\nWith $\\mathcal L = \\big(T^2\\big)$:\n\n$$\\sum_i \\dots$$\n\n"
            "What you should see: [dot](../figures/dot.png) and ![dot](../figures/dot.png)\n\n"
            "<details><summary>Answer</summary>\n\nA *quokka*.\n\n</details>"
        ),
        new_code_cell("print('numbat')", outputs=[new_output("stream", text="numbat\n")]),
        new_code_cell("lab.figure('dot')", outputs=[html_output(picture)]),
    ]
    for name, content in {
        "README.md": README,
        "COURSE.md": "# A course\n\nBegin with [Two](notebooks/01_two.ipynb).",
        "benchmarks/numbers.csv": "1\n",
    }.items():
        project.write(folder / name, content.encode())
    project.write(folder / "figures/dot.png", DOT_PNG)
    copies = []
    for name, cells in {"00_one": first, "01_two": second}.items():
        about = {"kdkit": {"preset": "smoke", "seeds": "1"}}
        about["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        nb = new_notebook(cells=cells, metadata=about)
        copies.append(folder / "copies" / f"{name}.ipynb")
        project.write(copies[-1], nbformat.writes(nb).encode())
    return copies


@pytest.fixture(scope="module")
def site(build, tmp_path_factory):
    """The made-up project's website."""
    folder = tmp_path_factory.mktemp("site")
    build.BUILD = folder / "_build"
    return build.build_site(made_up(folder), folder)


def test_every_link_resolves_every_picture_has_a_text_and_nothing_comes_from_elsewhere(site):
    assert dead(site) == []
    second = (site / "notebooks/01_two.html").read_text()
    assert f"base64,{DOT}" in second and 'href="../figures/dot.png"' in second
    first = (site / "notebooks/00_one.html").read_text()
    assert "01_two.html#by-hand" in first and "../glossary.html#zirconium" in first


def test_the_first_page_lists_the_walk_and_what_is_beside_it(site):
    text = re.sub(r"<[^>]+>", "", (site / "index.html").read_text())
    for words in ("An opening.", "00 · One is claimed.", "Reading time: 3 minutes; Training time"):
        assert words in text
    assert "Another sentence" not in text and "preset smoke, seeds 1" in text
    links = Page(site / "index.html").links
    assert {"COURSE.html", "glossary.html", "claims.html", "kit.html"} <= set(links)


def test_it_can_be_searched_and_is_light_and_dark(site):
    index = (site / "searchindex.js").read_text()
    for word in ("quokka", "numbat", "zirconium"):
        assert f'"{word}"' in index or f"{word}:" in index, word
    for page in site.rglob("notebooks/*.html"):
        assert "theme-toggle" in page.read_text() and "viewport" in page.read_text()
    assert 'data-theme="dark"' in (site / "_static/styles/furo.css").read_text().replace(
        "data-theme=dark", 'data-theme="dark"'
    )


def test_formulas_folds_code_and_widgets(site):
    second = (site / "notebooks/01_two.html").read_text()
    assert second.count("<math") == 2 and "ℒ" in second
    assert re.search(r"<details>\s*<summary>Answer</summary>\s*<p>A <em>quokka", second)
    first = (site / "notebooks/00_one.html").read_text()
    assert "output_html" not in first  # else IPython's own colours, made for a white page
    assert re.search(r'highlight-python.*<span class="nf">distil', first, re.S)
    assert "W()" in first and "widget-view" not in first


def test_a_link_to_nowhere_or_a_formula_that_is_none_fails_and_keeps_the_site(
    build, site, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(build, "BUILD", tmp_path / "_build")
    copies = made_up(tmp_path)
    place = build.build_site(copies, tmp_path)
    (tmp_path / "COURSE.md").write_text("# A course\n\n[gone](notebooks/02_gone.ipynb) $\\foo$")
    with pytest.raises(RuntimeError, match="not whole"):
        build.build_site(copies, tmp_path)
    said = capfd.readouterr().err
    assert "02_gone" in said and "COURSE.md" in said and "foo" in said
    assert (place / "index.html").exists()


def slides(build, folder, *kinds, tags=()):
    """The decks of a notebook of which a Markdown cell and then code cells are of these kinds."""
    cells = [new_markdown_cell("# T\n\n[a](b.ipynb) $x^2$ ![dot](../figures/dot.png)")]
    for i in range(len(kinds) - 1):
        output = new_output("stream", text=f"said {i}")
        cells.append(new_code_cell(f"word{i}()", outputs=[output], metadata={"tags": list(tags)}))
    for cell, kind in zip(cells, kinds, strict=True):
        if kind:
            cell.metadata["slideshow"] = {"slide_type": kind}
    project.write(folder / "figures/dot.png", DOT_PNG)
    nbformat.write(new_notebook(cells=cells), folder / "00_deck.ipynb")
    build.BUILD = folder
    return build.build_slides([folder / "00_deck.ipynb"], folder)


def test_slides_are_of_the_marked_cells_and_need_nothing_from_elsewhere(build, tmp_path):
    (deck,) = slides(build, tmp_path, "slide", None, "skip", "-", "fragment", "subslide", "notes")
    text = deck.read_text().partition("<body")[2]
    assert [word for word in range(6) if f"said {word}" in text] == [2, 3, 4, 5]
    assert "word" not in text and "b.ipynb" not in text and "<msup>" in text
    assert text.count("<section") == 3 and text.count('class="fragment"') == 1
    assert "said 5" in text.partition('<aside class="notes">')[2].partition("</aside>")[0]
    assert dead(deck.parent) == []


def test_slides_show_code_where_it_is_asked_for(build, tmp_path):
    (deck,) = slides(build, tmp_path, "slide", "-", tags=["show-input"])
    assert "word0" in deck.read_text()


def test_a_notebook_without_marked_cells_has_no_deck(build, tmp_path):
    assert slides(build, tmp_path, None, None, "skip") == []


@pytest.fixture
def ran(monkeypatch, runs):
    """Names of the notebooks that were executed, one after the other; nothing is."""
    names = []

    def execute(paths, preset, seeds):
        paths = list(paths)
        for path in paths:
            nb = nbformat.read(path, as_version=4)
            nb.metadata["kdkit"] = {"preset": preset, "seeds": seeds}
            project.write(runs / "notebooks" / path.name, nbformat.writes(nb).encode())
        names.extend(path.name for path in paths)
        return {}

    monkeypatch.setattr(notebooks, "execute", execute)
    return names


def test_only_what_is_missing_or_out_of_date_is_executed(build, ran, runs, tmp_path):
    walk = made_up(tmp_path)
    copies = build.executed(walk, "smoke", "1")
    assert copies == [runs / "notebooks" / path.name for path in walk] and len(ran) == 2
    build.executed(walk, "smoke", "1")
    assert len(ran) == 2
    later = copies[1].stat().st_mtime + 5
    os.utime(walk[1], (later, later))
    build.executed(walk, "smoke", "1")
    assert ran[2:] == ["01_two.ipynb"]
    build.executed(walk[:1], "smoke", "2")
    build.executed(walk[:1], "lesson", "2")
    assert ran[3:] == ["00_one.ipynb"] * 2


def test_what_fails_is_told_in_a_line_each(build, monkeypatch, capsys, runs):
    monkeypatch.setattr(notebooks, "execute", lambda *a: {"00.ipynb": "In [2]: E", "01.ipynb": "F"})
    assert build.main([]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["kdkit: failed: 00.ipynb: In [2]: E", "kdkit: failed: 01.ipynb: F"]
    assert build.main(["pages"]) == 2 and "'pages' cannot be built" in capsys.readouterr().err


WALK = notebooks.notebooks()


@pytest.mark.parametrize("path", WALK, ids=lambda path: path.stem)
def test_cards_and_formulas_of_the_walk_can_be_read(build, path):
    nb = nbformat.read(path, as_version=4)
    title, claim, times = build.card(nb)
    assert title.startswith(path.name[:2])
    assert (claim.endswith((".", "?")) and times) or path.stem.endswith("glossary")
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            build.MarkdownWithMath(renderer=build.Slide(escape=False)).render(cell.source)


def test_readme_has_the_sections_that_have_pages(build):
    _, pages, anchors = build.readme_pages((ROOT / "README.md").read_text())
    assert set(pages) == {"kit", *build.PAGES} and anchors["glossary"] == "glossary"


@pytest.mark.slow
def test_the_whole_walk_on_smoke(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "BUILD", tmp_path / "_build")
    monkeypatch.setenv("KDKIT_SEEDS", "reference")
    assert build.main([]) == 0
    place = tmp_path / "_build/html"
    assert str(place) in capsys.readouterr().out and dead(place) == []
    assert len(list(place.glob("notebooks/*.html"))) == len(WALK)
    for path in WALK:
        copy = nbformat.read(store.root() / "notebooks" / path.name, as_version=4)
        pictures = json.dumps(copy.cells).count("data:image/png;base64,")
        assert (place / f"notebooks/{path.stem}.html").read_text().count("base64,") >= pictures
    assert build.main(["slides"]) == 0
