"""The website's settings, for Sphinx. `make site` builds it: see build.py beside this file."""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util.logging import getLogger

project = html_title = "kdkit"
language = "en"
root_doc = "index"
extensions = ["myst_nb"]

nb_execution_mode = "off"  # build.py hands over executed copies
nb_merge_streams = True
nb_ipywidgets_js = {}  # no widget is alive here, and its scripts would come from the internet
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_dmath_double_inline = True
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may leave out a level of headings

html_theme = "furo"  # light, dark or as the reader's system, and laid out for phones
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_copy_source = False
html_use_index = False
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

CONVERTER = LatexToMathML(fancy_error=False)


def formula(tex: str, block: bool = False) -> str:
    """The formula as MathML, which browsers draw themselves: no script, nothing from the internet.

    ValueError, in one line, for LaTeX that it cannot be made of.
    """
    try:
        return CONVERTER.convert_with_local_state(tex, displaystyle=block)
    except LatexError as e:
        raise ValueError(f"formula {tex!r}: {e.args[0]}") from e


def setup(app) -> None:
    """Formulas are written by `formula`; one that fails is a warning, which fails the build."""

    def write(block: bool):
        def visit(translator, node: nodes.Node) -> None:
            try:
                text = formula(node.astext(), block)
            except ValueError as e:
                getLogger(__name__).warning(str(e), location=node)
                text = translator.encode(node.astext())
            translator.body.append(f'<div class="math">{text}</div>\n' if block else text)
            raise nodes.SkipNode

        return visit, None

    app.add_html_math_renderer("mathml", write(block=False), write(block=True))
