"""Regular expressions that select and rename paths; each must match a whole path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

Patterns = str | Sequence[str]


def as_tuple(patterns: Patterns) -> tuple[str, ...]:
    """Returns one pattern or several as a tuple."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


class PathFilter:
    """Tells which paths any of several patterns matches.

    Raises:
        ValueError: A pattern is not a regular expression.

    >>> "task_embeddings/embedding" in PathFilter("task_embeddings/.*")
    True
    """

    def __init__(self, patterns: Patterns):
        self._patterns = [_compile(pattern) for pattern in as_tuple(patterns)]

    def __contains__(self, path: str) -> bool:
        return any(pattern.fullmatch(path) for pattern in self._patterns)

    def unused(self, paths: Iterable[str]) -> list[str]:
        """Returns the patterns that match none of the paths."""
        return _unused(self._patterns, list(paths))


class Renaming:
    r"""Gives source paths new names; the first pattern that matches a path renames it.

    Args:
        rules: `{pattern: new path}`; `\1` in a new path is the first group.

    Raises:
        ValueError: A pattern is not a regular expression.

    >>> Renaming({"old/(.*)": r"new/\1"}).apply(["old/a", "b"])
    {'new/a': 'old/a', 'b': 'b'}
    """

    def __init__(self, rules: Mapping[str, str]):
        self._rules = [(_compile(pattern), new) for pattern, new in rules.items()]

    def apply(self, paths: Iterable[str]) -> dict[str, str]:
        """Returns `{new path: old path}`.

        Raises:
            ValueError: Two paths get the same new path, or a new path refers to a missing group.
        """
        old_path: dict[str, str] = {}
        for path in paths:
            new = self._rename(path)
            if new in old_path:
                raise ValueError(
                    f"rename gives {old_path[new]!r} and {path!r} the same path {new!r}"
                )
            old_path[new] = path
        return old_path

    def unused(self, paths: Iterable[str]) -> list[str]:
        """Returns the patterns that match none of the paths."""
        return _unused([pattern for pattern, _ in self._rules], list(paths))

    def _rename(self, path: str) -> str:
        for pattern, new in self._rules:
            if match := pattern.fullmatch(path):
                try:
                    return match.expand(new)
                except (re.error, IndexError) as error:
                    raise ValueError(
                        f"rename to {new!r} does not fit {pattern.pattern!r}: {error}"
                    ) from error
        return path


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


def _unused(patterns: Iterable[re.Pattern[str]], paths: Sequence[str]) -> list[str]:
    return [p.pattern for p in patterns if not any(p.fullmatch(path) for path in paths)]
