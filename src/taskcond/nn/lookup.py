"""Task ids become rows of a table; a bad id never becomes the row of another task."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Integer

from taskcond.ids import NULL_TASK, TaskIds, check_ids
from taskcond.nn.sharding import put, take_rows


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
    *,
    report: bool,
    sharding: NamedSharding | None = None,
    of: str = "time_emb",
) -> Rows:
    """Returns the rows of `table` for ids of `shape`.

    Args:
        table: One row per task, at least one.
        task_id: `NULL_TASK` or in `[0, tasks)`.
        shape: The shape that the ids must have.
        report: Whether `checkify`'s user checks report bad traced ids.
        sharding: The explicit sharding of the ids, if there is one.
        of: The name of the array that `shape` comes from, for errors.

    Raises:
        ValueError: Concrete ids are out of range, or the ids have another shape.
        TypeError: The ids are not integers.
    """
    ids = put(_check(task_id, table.shape[0], shape, of), sharding)
    row, is_null, is_bad = _resolve(ids, table.shape[0])
    if report and isinstance(task_id, Tracer):
        _report(ids, is_bad, table.shape[0])
    of_rows = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, None))
    return Rows(take_rows(table, row, of_rows), is_null, is_bad)


def require_task_id(task_id: TaskIds | None) -> TaskIds:
    """Returns `task_id`; raises `ValueError` if it is `None`."""
    if task_id is None:
        raise ValueError(
            "task_id not found in batch: this model has num_tasks > 0. Add "
            "taskcond.ExtractTaskID() to the data transforms and pass its task_id on, or pass "
            "taskcond.NULL_TASK ids to act without a task"
        )
    return task_id


def signed_ids(task_id: TaskIds | None) -> Int[Array, "*b"]:
    """Returns ids in a signed dtype, so that `NULL_TASK` can stand among them.

    A traced id that is too large for it becomes the largest number, which is no task.

    Raises:
        ValueError: Ids are missing, or a concrete one is no int32 of -1 or more.
        TypeError: Concrete ids are not integers.
    """
    ids = as_ids(require_task_id(task_id))
    if not isinstance(ids, Tracer):
        check_ids(ids, None)
        return jnp.asarray(ids.astype(np.int32))
    signed, too_large = _to_signed(ids)
    return jnp.where(too_large, jnp.iinfo(signed.dtype).max, signed)


def as_ids(task_id: TaskIds) -> Any:
    """Returns task ids as an array: a traced one as it is, all others as NumPy.

    Raises:
        TypeError: The ids are masked, or lists of different lengths.
    """
    if isinstance(task_id, Tracer):
        return task_id
    if isinstance(task_id, np.ma.MaskedArray):
        raise TypeError(
            "task_id is a masked array; fill it with task_id.filled(taskcond.NULL_TASK)"
        )
    try:
        ids = np.asarray(task_id)
    except ValueError as error:
        raise TypeError(
            f"task_id must be an integer or an array of integers, got {task_id!r}, whose parts "
            "have different lengths; pad them with taskcond.NULL_TASK"
        ) from error
    # NumPy makes floats of an empty list.
    return ids.astype(np.int32) if not ids.size and isinstance(task_id, (list, tuple)) else ids


def _check(
    task_id: TaskIds, num_tasks: int, shape: tuple[int, ...], of: str
) -> Integer[Array, "*b"]:
    """Returns the ids as a JAX array; raises if they have another shape, or are bad."""
    ids = as_ids(task_id)
    if ids.shape != shape:
        raise ValueError(
            f"task_id has shape {ids.shape}, but the leading axes of {of} are {shape}: "
            f"one id for each of them is needed. {_reshaping(ids.shape, shape)}"
        )
    if not isinstance(ids, Tracer):
        check_ids(ids, num_tasks)
        return jnp.asarray(ids.astype(np.int32))
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"task_id must be an integer, got a traced array of dtype {ids.dtype}")
    return ids


def _reshaping(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Returns the advice that gives ids the wanted shape."""
    if math.prod(found) == math.prod(wanted):
        return f"Use task_id.reshape({wanted})"
    # Each id is meant for all entries of its row: new axes go to the end.
    if found == wanted[: len(found)]:
        index = ", ".join([":"] * len(found) + ["None"] * (len(wanted) - len(found)))
        return (
            f"Use jnp.broadcast_to(task_id[{index}], {wanted}) if each id is meant for all "
            "entries of its row"
        )
    return "Make one id for each entry"


def _resolve(
    ids: Integer[Array, "*b"], num_tasks: int
) -> tuple[Int[Array, "*b"], Bool[Array, "*b"], Bool[Array, "*b"]]:
    """Returns `(row, is_null, is_bad)`, where the row of a bad id is `num_tasks`."""
    ids, too_large = _to_signed(ids)
    is_null = (ids == NULL_TASK) & ~too_large
    is_bad = (ids < NULL_TASK) | (ids >= num_tasks) | too_large
    # The table has no row `num_tasks`: reading it is what checkify's index checks report.
    row = jnp.where(is_null, 0, jnp.where(is_bad, num_tasks, ids)).astype(jnp.int32)
    return row, is_null, is_bad


def _report(ids: Integer[Array, "*b"], is_bad: Bool[Array, "*b"], num_tasks: int) -> None:
    """Tells checkify of bad ids; does nothing unless the caller transforms with checkify."""
    lowest = int(jnp.iinfo(ids.dtype).min)
    checkify.debug_check(
        ~jnp.any(is_bad),
        "task_id out of range: got {bad}; allowed is -1 (no task) to {last}",
        bad=jnp.max(jnp.where(is_bad, ids, lowest), initial=lowest),
        last=jnp.int32(num_tasks - 1),
    )


def _to_signed(ids: Integer[Array, "*b"]) -> tuple[Int[Array, "*b"], Bool[Array, "*b"]]:
    """Returns the ids in a signed dtype of at least 32 bits, and which of them did not fit."""
    bits = jnp.iinfo(ids.dtype).bits
    if jnp.issubdtype(ids.dtype, jnp.unsignedinteger):
        signed = ids.astype(jnp.int32 if bits <= 32 else jnp.int64)
        return signed, signed < 0  # only a value beyond the signed range wraps below zero
    return ids.astype(jnp.int32) if bits < 32 else ids, jnp.zeros(ids.shape, bool)
