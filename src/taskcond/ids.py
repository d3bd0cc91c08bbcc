"""Task ids: what is valid, and what to say about what is not."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify
from jaxtyping import Array, Bool, Int, Integer, Shaped

NULL_TASK = -1
"""The id that means "no task": it adds nothing, exactly."""

_SHOWN = 8  # ids listed in an error message


def check_integer(name: str, value: object, low: int) -> int:
    """Returns an integer that is at least `low`, as a Python int.

    Args:
        name: What the value is called in an error.
        value: An integer of Python or NumPy. Bools are refused.
        low: The smallest value that is allowed.

    Raises:
        TypeError: The value is not an integer.
        ValueError: The value is below `low`.

    >>> check_integer("features", 64, 1)
    64
    >>> check_integer("features", 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: features must be at least 1, got 0
    """
    try:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, SupportsIndex):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}")
    return number


def check_num_tasks(num_tasks: Any) -> int:
    """Returns `num_tasks` as an int; raises where it cannot be the height of a table.

    >>> check_num_tasks(50)
    50
    """
    if isinstance(num_tasks, (bool, np.bool_)):
        raise TypeError(f"num_tasks must be an integer, got {num_tasks!r}; 0 switches tasks off")
    try:
        count = operator.index(num_tasks)
    except TypeError:
        raise TypeError(
            f"num_tasks must be an integer, got {num_tasks!r} ({type(num_tasks).__name__})"
        ) from None
    if count < 0:
        raise ValueError(f"num_tasks must be >= 0, got {count}; 0 switches tasks off")
    return count


def out_of_range(bad: Shaped[np.ndarray, "*b"], num_tasks: int | None) -> ValueError:
    """The error for the ids `bad`, which no table of `num_tasks` rows has."""
    values = sorted({int(value) for value in bad.ravel()})
    shown = ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
    if num_tasks is None:
        allowed = f"{NULL_TASK} (no task) or more, and below 2**31"
    elif num_tasks == 0:
        allowed = f"{NULL_TASK} (no task) alone, as num_tasks=0"
    else:
        allowed = f"{NULL_TASK} (no task) to {num_tasks - 1}, as num_tasks={num_tasks}"
    fix = "a negative id is never a task"
    if values[0] >= NULL_TASK and num_tasks is not None:
        fix = f"num_tasks={values[-1] + 1} would do"
    return ValueError(f"task_id out of range: got [{shown}]; allowed is {allowed}; {fix}")


def check_ids(ids: np.ndarray, num_tasks: int | None, name: str = "task_id") -> None:
    """Raises unless every entry is `NULL_TASK` or in `[0, num_tasks)`.

    Args:
        ids: Integers of any shape and integer dtype; may be empty.
        num_tasks: Height of the table; `None` where it is unknown, then int32 is the limit.
        name: What the ids are called in an error.

    Raises:
        TypeError: Not integers. Floats and bools are refused even where they are whole.
        ValueError: Out of range.

    >>> check_ids(np.array([0, 4, -1]), 5)
    >>> check_ids(np.array([5]), 5)
    Traceback (most recent call last):
    ...
    ValueError: task_id out of range: got [5]; allowed is -1 (no task) to 4, ...
    """
    if ids.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be an integer, got dtype {ids.dtype} with value {_short(ids)}; "
            "cast it where it is made, so that nothing is rounded in silence"
        )
    limit = np.iinfo(np.int32).max + 1 if num_tasks is None else num_tasks
    # A signed -1 equals NULL_TASK; an unsigned 255 or 2**64 - 1 does not.
    bad = (ids >= limit) | (ids < NULL_TASK)
    if bad.any():
        raise out_of_range(ids[bad], num_tasks)


def resolve_ids(
    task_id: Any, num_tasks: int, shape: tuple[int, ...], report: bool = True
) -> tuple[Int[Array, "*b"], Bool[Array, "*b"], Bool[Array, "*b"]]:
    """Checks ids and turns them into safe rows of a table: `(row, is_null, is_bad)`.

    Args:
        task_id: Integers of `shape`: a Python int, NumPy, JAX, or a traced array.
        num_tasks: Height of the table, at least 1.
        shape: The leading axes that the ids must have.
        report: Whether `checkify`'s user checks report bad traced ids.

    Returns:
        row: int32, in `[0, num_tasks)`, or `num_tasks` where the id is bad: reading that row with
            `mode="fill"` gives NaN, and is what `checkify`'s index checks report.
        is_null: Where the id is `NULL_TASK`.
        is_bad: Where a traced id is neither `NULL_TASK` nor a task. Concrete ids raise instead.
    """
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
        # A no-op unless the caller functionalizes with checkify: then this is what it reports.
        checkify.debug_check(
            ~jnp.any(is_bad),
            "task_id out of range: got {lowest} to {highest}; allowed is -1 (no task) to {last}",
            lowest=jnp.min(ids, initial=NULL_TASK),
            highest=jnp.max(ids, initial=NULL_TASK),
            last=jnp.int32(num_tasks - 1),
        )
    row = jnp.where(is_null, 0, jnp.where(is_bad, num_tasks, ids)).astype(jnp.int32)
    return row, is_null, is_bad


def _to_signed(ids: Integer[Array, "*b"]) -> tuple[Int[Array, "*b"], Bool[Array, "*b"]]:
    """A signed dtype of at least 32 bits, and where the value did not fit into it."""
    bits = jnp.iinfo(ids.dtype).bits
    if jnp.issubdtype(ids.dtype, jnp.unsignedinteger):
        signed = ids.astype(jnp.int32 if bits <= 32 else jnp.int64)
        return signed, signed < 0  # only a value past the signed range wraps below zero
    return ids.astype(jnp.int32) if bits < 32 else ids, jnp.zeros(ids.shape, bool)


def _short(ids: np.ndarray) -> str:
    return np.array2string(ids, threshold=_SHOWN, edgeitems=3)
