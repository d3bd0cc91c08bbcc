"""Selects what each example's task has of its own, from parameters with a first axis of tasks."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Shaped

from taskcond.ids import TaskIds
from taskcond.nn.lookup import as_ids, look_up, require_task_id
from taskcond.nn.sharding import explicit_sharding, put


def select(
    params: Sequence[Shaped[Array, "tasks ..."]],
    task_id: TaskIds | None,
    x: Shaped[Array, "..."],
    axes: int | None = None,
) -> tuple[list[Shaped[Array, "..."]], Bool[Array, "*b"]]:
    """Returns the part of each task in each parameter, and which ids are `NULL_TASK`.

    Args:
        params: `[num_tasks, ...]` each, at least one.
        task_id: `[*b]`: `NULL_TASK` or in `[0, num_tasks)`.
        x: An array `[*b, ...]`, whose sharding the result gets.
        axes: The number of axes that the ids must have; `None` lets the ids say it.

    Returns:
        `[*b, ...]` each, and `[*b]`. The part of `NULL_TASK` is zero, and that of a bad traced id
        is NaN.

    Raises:
        ValueError: Ids are missing or out of range, or `*b` does not begin the shape of `x`.
        TypeError: The ids are not integers.
    """
    ids = require_task_id(task_id)
    axes = len(as_ids(ids).shape) if axes is None else axes
    shape, sharding = x.shape[:axes], explicit_sharding(x)
    if sharding is not None:
        spec = (*sharding.spec, *[None] * x.ndim)[:axes]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
        # The rows of a table are looked up whole, and an axis that is split cannot be merged.
        params = [put(param, NamedSharding(sharding.mesh, PartitionSpec())) for param in params]
    tables = [param.reshape(param.shape[0], -1) for param in params]
    found = [
        look_up(table, ids, shape, report=False, sharding=sharding, of="the input")
        for table in tables
    ]
    is_null = found[0].is_null
    parts = [
        jnp.where(is_null[..., None], 0, rows.values).reshape(*shape, *param.shape[1:])
        for rows, param in zip(found, params, strict=True)
    ]
    return parts, is_null


def keep_null(
    is_null: Bool[Array, "*b"], old: Shaped[Array, "..."], new: Shaped[Array, "..."]
) -> Shaped[Array, "..."]:
    """Returns `new`, and `old` to the bit where there is no task."""
    where = is_null.reshape(*is_null.shape, *[1] * (new.ndim - is_null.ndim))
    return jnp.where(where, old.astype(new.dtype), new)
