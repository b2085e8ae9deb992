"""The executed walk as a website, and its marked cells as slides.

    python site/build.py           the website, in site/_build/html
    python site/build.py slides    a deck for each notebook with marked cells, in site/_build/slides

Notebooks are executed strictly, with $KDKIT_PRESET and $KDKIT_SEEDS (by default the lesson and the
project's reference); copies that are newer than what they are made of are taken as they are. All
texts are those of the notebooks, README.md and COURSE.md: nothing is written here but the list.
"""

import os
import posixpath
import re
import shutil
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

import nbformat
from conf import formula
from nbconvert.exporters import SlidesExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from sphinx.cmd.build import main as sphinx

from kdkit.study import notebooks, project, store
from kdkit.study.callbacks import Interrupted

HERE = Path(__file__).resolve().parent
BUILD = HERE / "_build"
# README's sections that have a page of their own; the others share one.
PAGES = {"glossary": "Glossary", "claims": "What the papers claim, and what the lesson shows"}
KIT = "kit", "The kit: install it, use it, add to it"
SHOWN = (
    "What can be moved in JupyterLab is a still picture here: the notebooks are shown as they were "
    "executed"
)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<to>[^)\s]+)\)")
ATTRIBUTE = re.compile(r'(?P<name>src|href)="(?P<to>[^"]+)"')
REVEAL, THEME = ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js"), "kdkit"
WIDGET = "application/vnd.jupyter.widget-view+json"


def executed(walk: Iterable[Path], preset: str, seeds: str) -> list[Path]:
    """Executed copies of the notebooks; those that are missing or out of date are executed now.

    A copy is out of date where the notebook, the package or the reference is newer, or where it was
    made with another preset or other seeds. RuntimeError, a line each, for notebooks that fail.
    """
    made_of = [
        *(project.home() / "kdkit").rglob("*.py"),
        *(project.home() / "benchmarks").glob("reference*.csv"),
    ]
    newest = max(path.stat().st_mtime for path in made_of)
    copies = {path: store.root() / "notebooks" / path.name for path in walk}

    def out_of_date(path: Path) -> bool:
        copy = copies[path]
        if not copy.exists() or copy.stat().st_mtime < max(newest, path.stat().st_mtime):
            return True
        made_with = nbformat.read(copy, as_version=4).metadata.get("kdkit")
        return made_with != {"preset": preset, "seeds": seeds}

    failed = notebooks.execute([path for path in copies if out_of_date(path)], preset, seeds)
    if failed:
        raise RuntimeError("\n".join(f"failed: {name}: {why}" for name, why in failed.items()))
    return list(copies.values())


def prepare(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook for a page without a kernel: widgets as their static picture, and source code
    that was shown as code, which then has the colours of the page."""
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop(WIDGET, None)
            if "text/latex" in data and data.get("text/html", "").startswith("<style>"):
                output["data"] = {"text/markdown": f"~~~~python\n{data['text/plain']}\n~~~~"}
    return nb


def card(nb: nbformat.NotebookNode) -> tuple[str, str, list[str]]:
    """Of a notebook's title card: its title, the first sentence of its claim, its rows on time."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    title = re.search(r"^# (.+)", text, re.M)
    claim = re.search(r"\*\*(?:Claim|Question)\.?\*\*\s+(.+?[.?!])(?=\s)", f"{text}\n", re.S)
    rows = re.findall(r"^\|([^|\n]+)\|([^\n]+)\|[ ]*$", text, re.M)
    times = [row for row in rows if re.search(r"\b(time|reading|training)\b", row[0], re.I)]
    return (
        title[1] if title else "",
        claim[1] if claim else "",
        [f"{name.strip()}: {value.strip()}" for name, value in times],
    )


def readme_pages(text: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """README's opening; its other sections as pages, name -> text; anchor -> the page it is on."""
    opening, *sections = re.split(r"^## ", text, flags=re.M)
    pages, anchors = {KIT[0]: f"# {KIT[1]}\n"}, {}
    for section in sections:
        title, _, body = section.partition("\n")
        own = next((name for name, of in PAGES.items() if of == title), None)
        if own:  # its headings move up by one level
            pages[own] = f"# {title}\n" + re.sub(r"^##(#+ )", r"#\1", body, flags=re.M)
        else:
            pages[KIT[0]] += f"\n## {section}"
        for heading in re.findall(r"^#+ (.+)", f"## {section}", re.M):
            anchors[anchor(heading)] = own or KIT[0]
    return opening, pages, anchors


def anchor(heading: str) -> str:
    """The anchor of a heading, whether it is written as JupyterLab does or as the site does."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class Pages:
    """The site's source folder: texts go in by `add`, their relative links mended.

    root: the project. names: the pages, as places in it. anchors: the page that each of README's
    headings is on. What a text links to that is no page is copied into the site, to the same place.
    """

    def __init__(self, root: Path, names: Iterable[str], anchors: dict[str, str]):
        self.root, self.names, self.anchors = root, set(names), anchors
        self.of_readme = {"index.md", *(f"{name}.md" for name in anchors.values())}
        self.source, self.html = BUILD / "source", BUILD / "html.part"
        for folder in (self.source, self.html):
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, name: str, text: str) -> None:
        """Write the page `name`: a text, or a notebook's JSON."""
        if name.endswith(".ipynb"):
            nb = prepare(nbformat.reads(text, as_version=4))
            for cell in nb.cells:
                if cell.cell_type == "markdown":
                    cell.source = self.mend(name, cell.source)
            text = nbformat.writes(nb)
        else:
            text = self.mend(name, text)
        project.write(self.source / name, text.encode())

    def mend(self, page: str, text: str) -> str:
        """The text with its relative links as they must be on the site; code stays as it is."""

        def link(found: re.Match) -> str:
            to, is_page = self.target(page, found["to"])
            if found["image"] or is_page:
                return f"{found['image']}[{found['text']}]({to})"
            how = " download" if to.endswith(".ipynb") else ""
            return f'<a href="{to}"{how}>{found["text"]}</a>'

        def attribute(found: re.Match) -> str:
            to, is_page = self.target(page, found["to"])
            to = re.sub(r"\.(md|ipynb)(?=#|$)", ".html", to) if is_page else to
            return f'{found["name"]}="{to}"'

        parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
        parts[::2] = [LINK.sub(link, ATTRIBUTE.sub(attribute, part)) for part in parts[::2]]
        return "".join(parts)

    def target(self, page: str, to: str) -> tuple[str, bool]:
        """Where a link of a page must go, and whether that is a page rather than a file."""
        if ":" in to:  # not of this project
            return to, False
        path, _, place = unquote(to).partition("#")
        folder, place = posixpath.dirname(page), anchor(place)
        at = posixpath.normpath(posixpath.join(folder, path)) if path else page
        if at in {"README.md", *self.of_readme}:
            at = f"{self.anchors.get(place, 'index')}.md"
        if at in self.names:
            return posixpath.relpath(at, folder or ".") + (f"#{place}" if place else ""), True
        if (self.root / at).is_file():
            for folder in (self.source, self.html):  # pictures are taken from the first
                (folder / at).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.root / at, folder / at)
            return to, False
        return to, True  # Sphinx tells of it


def build_site(walk: list[Path], root: Path) -> Path:
    """Write the site of the executed notebooks and the texts of the project `root`; its folder.

    RuntimeError where Sphinx has a warning, such as of a link that leads nowhere.
    """
    opening, texts, anchors = readme_pages((root / "README.md").read_text(encoding="utf-8"))
    course = root / "COURSE.md"
    if course.exists():
        texts = {"COURSE": course.read_text(encoding="utf-8"), **texts}
    names = {f"notebooks/{path.name}": path.read_text(encoding="utf-8") for path in walk}
    pages = {f"{name}.md": text for name, text in texts.items()}
    site = Pages(root, ["index.md", *names, *pages], anchors)
    for name, text in {**names, **pages}.items():
        site.add(name, text)
    site.add("index.md", opening + index(names, pages))
    done = sphinx(
        ["-q", "-E", "-W", "--keep-going", "-c", str(HERE), "-d", str(BUILD / "doctrees")]
        + [str(site.source), str(site.html)]
    )
    if done:
        raise RuntimeError("the site is not whole: see the warnings above")
    return publish(site.html)


def publish(part: Path) -> Path:
    """Put a whole folder NAME.part in the place of the folder NAME; the latter."""
    place = part.with_suffix("")
    shutil.rmtree(place, ignore_errors=True)
    return part.rename(place)


def index(walk: dict[str, str], pages: dict[str, str]) -> str:
    """The first page's lists: the notebooks, as place -> JSON, and the pages, as place -> text."""
    lines, made_with = ["## The walk", ""], {}
    for name, text in walk.items():
        nb = nbformat.reads(text, as_version=4)
        title, claim, times = card(nb)
        made_with = nb.metadata.get("kdkit", made_with)
        lines.append(f"- [**{title}**]({name})\\\n  {claim}\\\n  *{'; '.join(times)}*")
    how = ", ".join(f"{key} `{value}`" for key, value in made_with.items())
    lines += ["", f"{SHOWN} ({how}).", "", "## Beside it", ""]
    for name, text in pages.items():
        lines.append(f"- [{text.partition('# ')[2].partition(chr(10))[0]}]({name})")
    for caption, names in {"The walk": walk, "Beside it": pages}.items():
        lines += ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]
    return "\n".join(lines)


class Slide(IPythonRenderer):
    """Markdown of a slide, with its formulas as MathML."""

    def block_math(self, body: str) -> str:
        return formula(body, block=True)

    def inline_math(self, body: str) -> str:
        return formula(body)


def marked(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that are on slides: those with a slide type other than "skip"."""
    kinds = ("slide", "subslide", "fragment", "-", "notes")
    return [c for c in nb.cells if c.metadata.get("slideshow", {}).get("slide_type") in kinds]


def build_slides(walk: list[Path], root: Path) -> list[Path]:
    """Write a deck for each of the executed notebooks that has marked cells, and the reveal.js that
    they need; the decks.

    Outputs are shown; code only in cells with the tag "show-input". Links lead nowhere from a
    slide, and are text there.
    """
    out, decks = BUILD / "slides.part", []
    shutil.rmtree(out, ignore_errors=True)
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(HERE)],
        reveal_url_prefix="reveal.js",
        reveal_theme=THEME,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    paths = {"embed_images": True, "path": str(root / "notebooks")}
    render = MarkdownWithMath(renderer=Slide(escape=False, **paths)).render
    exporter.register_filter("markdown2html", render)
    for path in walk:
        nb = prepare(nbformat.read(path, as_version=4))
        nb.cells = marked(nb)
        for cell in nb.cells:
            if cell.cell_type == "code" and "show-input" not in cell.metadata.get("tags", []):
                cell.metadata["transient"] = {"remove_source": True}
            elif cell.cell_type == "markdown":
                cell.source = LINK.sub(
                    lambda found: found[0] if found["image"] else found["text"], cell.source
                )
        if nb.cells:
            nb.metadata["title"] = card(nbformat.read(path, as_version=4))[0]
            html, _ = exporter.from_notebook_node(nb)
            decks.append(f"{path.stem}.html")
            project.write(out / decks[-1], html.encode())
    reveal, theme = files("sphinx_revealjs") / "_static/revealjs", HERE / "slides/slides.css"
    copies = {name: reveal / name for name in REVEAL} | {f"dist/theme/{THEME}.css": theme}
    for name, of in copies.items():
        project.write(out / "reveal.js" / name, of.read_bytes())
    place = publish(out)
    return [place / deck for deck in decks]


def main(argv: list[str]) -> int:
    """Build what is asked for; returns the exit code."""
    root, preset = project.home(), os.environ.get("KDKIT_PRESET") or "lesson"
    seeds = os.environ.get("KDKIT_SEEDS") or "reference"
    try:
        walk = notebooks.notebooks()
        if argv == ["slides"]:
            walk = [path for path in walk if marked(nbformat.read(path, as_version=4))]
            decks = build_slides(executed(walk, preset, seeds), root)
            print(*(decks or ["no cell is marked as a slide"]), sep="\n")
        elif argv:
            raise ValueError(f"{' '.join(argv)!r} cannot be built: give nothing, or slides")
        else:
            place = build_site(executed(walk, preset, seeds), root)
            print(f"the site is in {place}: open index.html there, or serve it to others with")
            print(f"  python3 -m http.server --directory {place}")
    except (RuntimeError, OSError, ValueError, KeyboardInterrupt) as e:
        for line in (str(e) or "stopped").splitlines():
            store.say(line)
        return {ValueError: 2, KeyboardInterrupt: 130, Interrupted: 130}.get(type(e), 1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
