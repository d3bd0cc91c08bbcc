"""Messages for people: aligned columns, and warnings that point at the caller's code."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent


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


def warn(message: str) -> None:
    """Warns at the line outside of this package that called into it."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level + 1)
