"""Trees that differ only in how deep they lie: the rename that makes one fit the other."""

from __future__ import annotations

import re
from collections.abc import Iterable


def find_rename(found: Iterable[str], wanted: Iterable[str]) -> tuple[str, str] | None:
    r"""Returns a pattern and a new path that give most of the wanted paths to the found ones.

    Args:
        found: Paths that nothing asks for.
        wanted: Paths that nothing fits.

    Returns:
        An entry of `rename`, which adds or takes away a beginning; `None` if that is not all.

    >>> find_rename(["net/a", "net/b/c"], ["a", "b/c", "table"])
    ('net/(.*)', '\\1')
    >>> find_rename(["a", "b/c"], ["net/a", "net/b/c"])
    ('((?:a|b)(?:/.*)?)', 'net/\\1')
    """
    found, wanted = set(found), set(wanted)
    best, most = None, 0
    for before in _beginnings(found):
        for after in _beginnings(wanted):
            below = {path for path in found if path.startswith(before)}
            fitting = len({after + path.removeprefix(before) for path in below} & wanted)
            # A single shared name, such as `bias`, is no sign of the same tree.
            if fitting > most and 2 * fitting > len(wanted):
                best, most = (before, after), fitting
    if best is None:
        return None
    before, after = best
    new = after.replace("\\", r"\\") + r"\1"
    if before:
        return f"{re.escape(before)}(.*)", new
    tops = sorted({re.escape(path.split("/")[0]) for path in found})
    return f"((?:{'|'.join(tops)})(?:/.*)?)", new


def _beginnings(paths: set[str]) -> list[str]:
    """Returns what a path may begin with, the shortest first."""
    keys = [path.split("/")[:-1] for path in paths]
    found = {"/".join((*key[:n], "")) for key in keys for n in range(1, min(len(key), 3) + 1)}
    return sorted({"", *found}, key=lambda x: (len(x), x))
