"""`drop_ids`: some examples act without their task, so that the model learns that, too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from taskcond.ids import NULL_TASK, TaskIds
from taskcond.nn.lookup import signed_ids


def drop_ids(
    key: Array, task_id: TaskIds, rate: float, num_tasks: int | None = None
) -> Int[Array, "*b"]:
    """Returns ids of which each became `NULL_TASK` with a probability of `rate`.

    Call it once for a batch if several modules take the ids, so that all of them drop the same.
    A `TaskConditioner` with a `dropout_rate` does it by itself.

    Args:
        key: A random key.
        task_id: Integers `[*b]`.
        rate: A probability.
        num_tasks: The number of tasks, if ids that are out of range shall stay so.

    Raises:
        ValueError: `rate` is outside `[0, 1]`, or a concrete id is below -1.
        TypeError: Concrete ids are not integers.

    >>> drop_ids(jax.random.key(0), [3, 4], 1.0).tolist()
    [-1, -1]
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    ids = signed_ids(task_id)
    is_dropped = jax.random.bernoulli(key, rate, ids.shape)
    if num_tasks is not None:
        is_dropped &= ids < num_tasks
    return jnp.where(is_dropped & (ids >= 0), NULL_TASK, ids)
