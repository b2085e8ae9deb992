"""Both papers' tables, cell by cell."""

import html

import ipywidgets as W
import pandas as pd
from IPython.display import HTML, display

from .. import store
from ..papers import runs
from .controls import choice


def paper_tables(which: str = "okddip:2", **changes) -> None:
    """Both papers' tables, cell by cell: published, ours, difference, values behind ours, notes.

    which: "paper:table" to start with; changes: fields of another recipe than the paper's. Runs
    that finish later are seen when it is called again (`papers.runs.compare`).
    """
    told, (first, start) = {}, which.split(":")
    for c in runs.compare(which if store.quiet() else None, **changes):
        told.setdefault(c["paper"], {}).setdefault(c["table"], []).append(c)
    paper, table = choice("paper", list(told), first), choice("table", list(told[first]), start)
    page = W.HTML().add_class("jp-RenderedHTMLCommon")

    def redraw(change=None):
        if change and change["owner"] is paper:
            table.options = list(told[paper.value])
        page.value = _cells(told[paper.value][table.value], **changes)

    redraw()
    for knob in (paper, table):
        knob.add_class(f"kd-tables-{knob.description}").observe(redraw, "value")
    box = W.VBox([paper, table, page.add_class("kd-tables-page")])
    display(HTML(page.value) if store.quiet() else box)


def _cells(told: list[dict], **changes) -> str:
    """One table's cells (of `runs.compare`) as HTML; grey where no run stands behind one."""
    rows, notes = runs.table_rows(told, **changes)
    table = pd.DataFrame(rows, columns=runs.TABLE_COLUMNS).set_index(["row", "column"])
    text = table.rename_axis([None] * 2).to_html(border=0)
    text = text.replace("<td>not run", '<td style="opacity:.6">not run')
    return (
        f'<p>{html.escape(runs.heading(told, **changes))}</p><div tabindex="0" '
        f'style="max-height:36em; overflow:auto">{text}</div>'
        f"<ol>{''.join(f'<li>{html.escape(n)}</li>' for n in notes)}</ol>"
    )
