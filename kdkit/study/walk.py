"""Which files of the project are the walk: its notebooks, all that they link to, the reference.

It needs nothing but Python, because setup.py asks it before anything is installed.
"""

import json
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

STARTS = (
    "notebooks/[0-9][0-9]_*.ipynb",
    "notebooks/solutions/*.ipynb",
    "benchmarks/reference*.csv",
    "COURSE.md",
)
LINK = re.compile(r"""\]\(<?([^()\s<>#?]+)|\b(?:src|href)=["']([^"'#?]+)""")  # Markdown, HTML
# Where a link may lead: not to code, nor to what was drawn on one machine.
LINKED = re.compile(
    r"(notebooks|figures|benchmarks)/(?!local/).+\.(ipynb|png|svg|csv|md)|[A-Z]+\.md"
)


def files(project: Path) -> list[str]:
    """The walk's files, as paths from the folder that holds `notebooks`: what `STARTS` names, and
    what these or their linked pages link to."""
    found = [path.relative_to(project).as_posix() for s in STARTS for path in project.glob(s)]
    for name in found:  # it grows meanwhile: pages that are linked have links, too
        for target in links(project / name):
            linked = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            if linked not in found and LINKED.fullmatch(linked) and (project / linked).is_file():
                found.append(linked)
    return sorted(found)


def links(page: Path) -> list[str]:
    """What a notebook's or page's text links to, without anchors; other files link to nothing."""
    if page.suffix not in (".ipynb", ".md"):
        return []
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return [unquote(markdown or html) for markdown, html in LINK.findall(text)]
