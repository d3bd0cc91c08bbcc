"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """Returns a table as HTML, with lines of text below it.

    >>> html_table(["a"], [["<b>"]], ["note"])
    '<table><tr><th>a</th></tr><tr><td>&lt;b&gt;</td></tr></table><p>note</p>'
    """
    lines = [_row(header, "th"), *(_row(row, "td") for row in rows)]
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table>{''.join(lines)}</table>{below}"


def _row(cells: Sequence[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"
