"""Task ids become rows of a table; a bad id never becomes the row of another task."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int, Integer

from taskcond.ids import NULL_TASK, TaskIds, check_ids


class Rows(NamedTuple):
    """The rows of a table that a batch of task ids selects.

    Attributes:
        values: `[*b, width]`, NaN where the id is bad.
        is_null: `[*b]`, true where the id is `NULL_TASK`; `values` means nothing there.
        is_bad: `[*b]`, true where a traced id is neither `NULL_TASK` nor a task.
    """

    values: Float[Array, "*b width"]
    is_null: Bool[Array, "*b"]
    is_bad: Bool[Array, "*b"]


def look_up(
    table: Float[Array, "tasks width"],
    task_id: TaskIds,
    shape: tuple[int, ...],
    report: bool,
) -> Rows:
    """Returns the rows of `table` for ids of `shape`.

    Args:
        table: One row per task, at least one.
        task_id: `NULL_TASK` or in `[0, tasks)`.
        shape: The shape that the ids must have.
        report: Whether `checkify`'s user checks report bad traced ids.

    Raises:
        ValueError: Concrete ids are out of range, or the ids have another shape.
        TypeError: The ids are not integers.
    """
    row, is_null, is_bad = _resolve(task_id, table.shape[0], shape, report)
    # "fill" gives NaN for the row of a bad id, which the table does not have.
    return Rows(jnp.take(table, row, axis=0, mode="fill"), is_null, is_bad)


def require_task_id(task_id: TaskIds | None) -> TaskIds:
    """Returns `task_id`; raises `ValueError` if it is `None`."""
    if task_id is None:
        raise ValueError(
            "task_id not found in batch: this model has num_tasks > 0. Add "
            "taskcond.ExtractTaskID() to the data transforms and pass its task_id on, or pass "
            "taskcond.NULL_TASK ids to act without a task"
        )
    return task_id


def _resolve(
    task_id: TaskIds, num_tasks: int, shape: tuple[int, ...], report: bool
) -> tuple[Int[Array, "*b"], Bool[Array, "*b"], Bool[Array, "*b"]]:
    """Returns `(row, is_null, is_bad)`, where the row of a bad id is `num_tasks`."""
    traced = isinstance(task_id, Tracer)
    ids: Any = task_id if traced else np.asarray(task_id)
    if ids.shape != shape:
        raise ValueError(
            f"task_id has shape {ids.shape}, but the leading axes of time_emb are {shape}: "
            "one id for each embedding is needed. Reshape the ids, or use "
            f"jnp.broadcast_to(task_id, {shape}) if that is what you mean"
        )
    if not traced:
        check_ids(ids, num_tasks)
        ids = jnp.asarray(ids.astype(np.int32))
    elif not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"task_id must be an integer, got a traced array of dtype {ids.dtype}")
    ids, too_large = _to_signed(ids)
    is_null = (ids == NULL_TASK) & ~too_large
    is_bad = (ids < NULL_TASK) | (ids >= num_tasks) | too_large
    if traced and report:
        # This does nothing unless the caller transforms the function with checkify.
        checkify.debug_check(
            ~jnp.any(is_bad),
            "task_id out of range: got {lowest} to {highest}; allowed is -1 (no task) to {last}",
            lowest=jnp.min(ids, initial=NULL_TASK),
            highest=jnp.max(ids, initial=NULL_TASK),
            last=jnp.int32(num_tasks - 1),
        )
    # Reading row `num_tasks` is also what checkify's index checks report.
    row = jnp.where(is_null, 0, jnp.where(is_bad, num_tasks, ids)).astype(jnp.int32)
    return row, is_null, is_bad


def _to_signed(ids: Integer[Array, "*b"]) -> tuple[Int[Array, "*b"], Bool[Array, "*b"]]:
    """Returns the ids in a signed dtype of at least 32 bits, and which of them did not fit."""
    bits = jnp.iinfo(ids.dtype).bits
    if jnp.issubdtype(ids.dtype, jnp.unsignedinteger):
        signed = ids.astype(jnp.int32 if bits <= 32 else jnp.int64)
        return signed, signed < 0  # only a value beyond the signed range wraps below zero
    return ids.astype(jnp.int32) if bits < 32 else ids, jnp.zeros(ids.shape, bool)
