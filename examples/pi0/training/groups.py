"""Which parameters are trained, and which are frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from examples.pi0.training.configs import nearest

TASK = "task_"
"""The beginning of the paths of all that task conditioning adds."""


def _in_expert(path: str) -> bool:
    return any(part.endswith("_1") for part in path.split("/"))


def _is_language(path: str) -> bool:
    return path.startswith("PaliGemma/llm/") and not _in_expert(path)


def _is_vision(path: str) -> bool:
    return path.startswith("PaliGemma/img/")


def _is_lora(path: str) -> bool:
    return path.endswith(("lora_a", "lora_b"))


FREEZE: Mapping[str, Callable[[str], bool]] = {
    "vlm": lambda path: _is_language(path) or _is_vision(path),
    "vision": _is_vision,
    "language": _is_language,
    "lora": lambda path: _is_language(path) and not _is_lora(path),
    "action_lora": lambda path: (
        path.startswith("PaliGemma/llm/")
        and _in_expert(path)
        and not _is_lora(path)
        and "norm" not in path
    ),
    "all_but_table": lambda path: not path.startswith(TASK),
}
"""The names that `freeze` knows."""


def frozen_paths(paths: Iterable[str], freeze: Sequence[str]) -> frozenset[str]:
    """Returns the paths that are not trained.

    Args:
        paths: The paths of all parameters.
        freeze: Names of `FREEZE`, or regular expressions of whole paths.

    Raises:
        ValueError: An entry freezes nothing, or nothing is left to train.

    >>> sorted(frozen_paths(["PaliGemma/img/w", "task_embeddings/embedding"], ["vision"]))
    ['PaliGemma/img/w']
    """
    known, frozen = list(paths), set[str]()
    for entry in freeze:
        matches = FREEZE.get(entry) or _pattern(entry)
        found = {path for path in known if matches(path)}
        if not found:
            raise ValueError(
                f"freeze: {entry!r} matches no parameter. It is one of {list(FREEZE)}, or a "
                f"regular expression of a whole path such as 'PaliGemma/img/.*'. "
                f"{nearest(entry, list(FREEZE))}"
            )
        frozen |= found
    if len(frozen) == len(known):
        raise ValueError(f"freeze={list(freeze)} leaves nothing to train; remove one of them")
    return frozenset(frozen)


def part_of(path: str) -> str:
    """Returns the part of the model that a parameter belongs to, for people to read.

    >>> part_of("PaliGemma/llm/layers/mlp_1/linear")
    'action expert'
    """
    if path.startswith(TASK):
        return "task table" if path.startswith("task_embeddings/") else "other task parameters"
    if _is_lora(path):
        return "low-rank updates"
    if _is_vision(path):
        return "vision"
    if path.startswith("PaliGemma/llm/"):
        return "action expert" if _in_expert(path) else "language"
    return "projections"


def has_frozen_prefix(paths: Iterable[str], frozen: frozenset[str]) -> bool:
    """Returns whether nothing that encodes images and prompt is trained."""
    prefix = (
        path
        for path in paths
        if _is_vision(path) or _is_language(path) or path.startswith("task_tokens/")
    )
    return frozen.issuperset(prefix)


def count_parts(shapes: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of parameters in each part, of arrays or shapes by path."""
    counts: dict[str, int] = {}
    for path, leaf in shapes.items():
        counts[part_of(path)] = counts.get(part_of(path), 0) + leaf.size
    return counts


def _pattern(entry: str) -> Callable[[str], bool]:
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise ValueError(f"freeze: {entry!r} is not a regular expression: {error}") from error
    return lambda path: pattern.fullmatch(path) is not None
