"""Messages for people: columns, names that are alike, and warnings at the caller's code."""

from __future__ import annotations

import difflib
import html
import inspect
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent
_SHOWN = 20


class Readable:
    """A result that shows its text at a prompt and in a notebook, and not the numbers behind it."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines whose columns are aligned, two spaces apart.

    >>> print(columns([("loaded", "2 leaves"), ("kept", "a/b")]))
    loaded  2 leaves
    kept    a/b
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def describe_unknown(names: Iterable[str], known: Sequence[str]) -> str:
    """Lists unknown names, each with the nearest known one if there is a near one.

    >>> describe_unknown(["wip", "fly"], ["pour", "wipe"])
    "'wip' (did you mean 'wipe'?), 'fly'"
    """
    found = []
    for name in names:
        nearest = difflib.get_close_matches(name, known, n=1)
        found.append(f"{name!r} (did you mean {nearest[0]!r}?)" if nearest else repr(name))
    return ", ".join(found)


def shorten(names: Sequence[str]) -> str:
    """Lists names, and counts those after the first twenty instead of listing them.

    >>> shorten(["a", "b"])
    "['a', 'b']"
    """
    more = len(names) - _SHOWN
    return str(list(names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def warn(message: str) -> None:
    """Warns at the line outside of this package that called into it."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)
