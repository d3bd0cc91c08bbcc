"""Task ids: which integers are valid, and what to say about the others."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Integer, Shaped

NULL_TASK = -1
"""The id that means "no task": it adds nothing, exactly."""

TaskIds = (
    int
    | np.integer[Any]
    | Integer[np.ndarray, "..."]
    | Integer[Array, "..."]
    | Sequence[int]
    | Sequence[Sequence[int]]
)
"""Integers of any shape: Python ints, lists of them, a NumPy array, or a JAX array."""

_INT32_LIMIT = 2**31
_SHOWN = 8  # ids listed in an error message


def check_integer(name: str, value: object, low: int) -> int:
    """Returns `value` as an int.

    Raises:
        TypeError: It is not an integer; a bool is not one.
        ValueError: It is below `low`.

    >>> check_integer("num_tasks", np.int64(50), 0)
    50
    """
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {value!r} ({type(value).__name__})"
        ) from None
    if number < low:
        raise ValueError(f"{name} must be at least {low}, got {number}")
    return number


def out_of_range(
    bad: Shaped[np.ndarray, "*b"], num_tasks: int | None, name: str = "task_id"
) -> ValueError:
    """Returns the error for the ids `bad`, which a table of `num_tasks` rows does not have."""
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
    return ValueError(f"{name} out of range: got [{shown}]; allowed is {allowed}; {fix}")


def check_ids(ids: np.ndarray, num_tasks: int | None, name: str = "task_id") -> None:
    """Raises unless every entry is `NULL_TASK` or in `[0, num_tasks)`.

    Args:
        ids: Integers of any shape and integer dtype; may be empty.
        num_tasks: Height of the table; `None` if it is unknown, then int32 is the limit.
        name: The name of the ids in an error.

    Raises:
        TypeError: The ids are not integers. Floats and bools are refused even if they are whole.
        ValueError: An id is out of range.

    >>> check_ids(np.array([0, 4, -1]), 5)
    >>> check_ids(np.array([5]), 5)
    Traceback (most recent call last):
    ...
    ValueError: task_id out of range: got [5]; allowed is -1 (no task) to 4, ...
    """
    if ids.dtype.kind not in "iu":
        raise TypeError(
            f"{name} must be an integer, got dtype {ids.dtype} with value {_short(ids)}; "
            "convert it to an integer where it is created, so that no value is rounded unnoticed"
        )
    limit = _INT32_LIMIT if num_tasks is None else num_tasks
    # A signed -1 equals NULL_TASK; an unsigned 255 or 2**64 - 1 does not.
    bad = (ids >= limit) | (ids < NULL_TASK)
    if bad.any():
        raise out_of_range(ids[bad], num_tasks, name)


def _short(ids: np.ndarray) -> str:
    return np.array2string(ids, threshold=_SHOWN, edgeitems=3)
