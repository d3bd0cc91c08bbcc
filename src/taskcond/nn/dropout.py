"""`drop_ids`: some examples act without their task, so that the model learns that, too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from taskcond.ids import NULL_TASK, TaskIds


def drop_ids(key: Array, task_id: TaskIds, rate: float) -> Int[Array, "*b"]:
    """Returns ids of which each became `NULL_TASK` with a probability of `rate`.

    Call it once for a batch if several modules take the ids, so that all of them drop the same.
    A `TaskConditioner` with a `dropout_rate` does it by itself.

    Args:
        key: A random key.
        task_id: Integers `[*b]`.
        rate: A probability.

    Raises:
        ValueError: `rate` is outside `[0, 1]`.

    >>> drop_ids(jax.random.key(0), [3, 4], 1.0).tolist()
    [-1, -1]
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    ids = jnp.asarray(task_id)
    is_dropped = jax.random.bernoulli(key, rate, ids.shape)
    return jnp.where(is_dropped, NULL_TASK, ids)
