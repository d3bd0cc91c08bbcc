"""Task tables: which leaves they are, and how their rows are remapped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from taskcond.ids import NULL_TASK

TASK_TABLES = (r"(.*/)?task_embeddings/embedding",)
"""Patterns for the paths of the leaves that have one row per task."""

Rows = Sequence[int] | np.ndarray
"""For each new row the number of an old row, or `NULL_TASK` for a row without one."""

Start = str | int
"""What a new row starts from: `"target"`, `"zeros"`, `"mean"`, or the number of an old row."""

NewRows = Start | Mapping[int, Start]
"""One start for all new rows, or one for the number of each."""


def is_table(path: str) -> bool:
    """Returns whether a path is that of a task table."""
    return any(re.fullmatch(pattern, path) for pattern in TASK_TABLES)


def check_rows(rows: Rows, new_rows: NewRows, old: Any, new: Any) -> tuple[int, ...]:
    """Returns `rows` as ints.

    Args:
        rows: See `Rows`.
        new_rows: See `NewRows`.
        old: The old table, or anything with its shape.
        new: The new table, or anything with its shape.

    Raises:
        ValueError: `rows` or `new_rows` does not fit the tables.
    """
    result, height = tuple(int(row) for row in rows), old.shape[0]
    bad = sorted({row for row in result if not NULL_TASK <= row < height})
    starts = new_rows.values() if isinstance(new_rows, Mapping) else [new_rows]
    problem = None
    if new.shape[1:] != old.shape[1:]:
        problem = f"rows have the shape {old.shape[1:]}, those of the model {new.shape[1:]}"
    elif len(result) != new.shape[0]:
        problem = f"task_rows has {len(result)} entries; the model has num_tasks={new.shape[0]}"
    elif bad:
        problem = f"task_rows {bad} out of range: old rows are 0 to {height - 1}, -1 is a new one"
    elif unknown := [s for s in starts if not _is_start(s, height)]:
        problem = (
            f"new_rows must be 'target', 'zeros', 'mean' or an old row from 0 to {height - 1}, "
            f"got {unknown[0]!r}"
        )
    elif "target" in starts and NULL_TASK in result and isinstance(new, jax.ShapeDtypeStruct):
        problem = "new_rows='target' needs the model's values, not shapes; use 'zeros' or 'mean'"
    if problem:
        raise ValueError(problem)
    return result


def take_rows(old: Any, rows: Rows, new_rows: NewRows, new: Any) -> Shaped[np.ndarray, "tasks ..."]:
    """Returns the table whose row `i` is `old[rows[i]]`, or a new row for `NULL_TASK`.

    Args:
        old: The old table.
        rows: See `Rows`.
        new_rows: See `NewRows`.
        new: The new model's own table, from which `"target"` takes rows.

    >>> take_rows(np.array([[1.0], [3.0]]), [1, -1], "mean", None).tolist()
    [[3.0], [2.0]]
    """
    old, index = np.asarray(old), np.asarray(rows, np.int64)
    result = old[np.where(index == NULL_TASK, 0, index)]
    starts = _starts(index, new_rows)
    if "target" in starts.values():
        result = result.astype(new.dtype)  # keeps the target's own values exact
    for start in set(starts.values()):
        started = [row for row, other in starts.items() if other == start]
        result[started] = _new_rows(old, start, new, started)
    return result


def describe_rows(
    rows: Sequence[int], height: int, new_rows: NewRows, names: Sequence[str] | None
) -> str:
    """Describes in words what becomes of the rows of a table that has `height` rows.

    Args:
        rows: See `Rows`.
        height: The number of old rows.
        new_rows: See `NewRows`.
        names: Names of the old tasks, if they are known.
    """
    new, unused = rows.count(NULL_TASK), sorted(set(range(height)) - set(rows))
    text = f"{height} -> {len(rows)} rows, {len(rows) - new} from the checkpoint"
    if new:
        starts = dict.fromkeys(_starts(rows, new_rows).values())
        kinds = ", ".join(_describe_start(start, names) for start in starts)
        text += f", {new} new ({kinds})"
    return text + (f", old rows {unused} left out" if unused else "")


def _starts(rows: Rows, new_rows: NewRows) -> dict[int, Start]:
    """Returns the start of each new row."""
    new = [i for i, row in enumerate(rows) if row == NULL_TASK]
    return {i: new_rows[i] if isinstance(new_rows, Mapping) else new_rows for i in new}


def _is_start(start: Start, height: int) -> bool:
    if isinstance(start, str):
        return start in ("target", "zeros", "mean")
    return 0 <= start < height


def _new_rows(old: np.ndarray, start: Start, new: Any, rows: list[int]) -> np.ndarray:
    if start == "zeros":
        return np.zeros_like(old[0])
    if start == "mean":
        return old.astype(np.float64).mean(0).astype(old.dtype)
    if start == "target":
        return np.asarray(new)[rows]
    return old[int(start)]


def _describe_start(start: Start, names: Sequence[str] | None) -> str:
    if isinstance(start, str):
        return start
    return f"row {start}" if names is None else f"as {names[start]}"
