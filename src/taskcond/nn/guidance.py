"""`guide`: acts more like the task, and less like the average of all tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from taskcond.ids import NULL_TASK
from taskcond.messages import warn
from taskcond.nn.lookup import signed_ids


def guide(
    velocity: Callable[..., Float[Array, "b ..."]],
    weight: float | int | Float[Array, ""],
    *,
    dropout_rate: float | None = None,
) -> Callable[..., Float[Array, "b ..."]]:
    """Returns a velocity (or noise prediction) that is guided by the task.

    The result is `none + weight * (task - none)`, where `task` is the velocity for the ids and
    `none` that for `NULL_TASK`. Weight 0 acts without a task, 1 as the model was trained, and more
    exaggerates what is special about the task. Both velocities are computed in one call with twice
    the batch. With a weight of exactly 0 or 1, known before the call, there is one velocity alone.

    A model can be guided only if it has learnt to act without a task, by `dropout_rate` in
    training.

    Args:
        velocity: `velocity(task_id, *arrays)`. Ids and arrays, or trees of them, begin with the
            axis of the batch.
        weight: The weight; it may be traced.
        dropout_rate: The rate with which the model was trained, if it is known.

    Warns:
        UserWarning: `dropout_rate` is 0, and the weight is not 1.

    Raises:
        ValueError: `weight` is not finite.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022,
    https://arxiv.org/abs/2207.12598.

    >>> def velocity(task_id, x):
    ...     return x + task_id[:, None]
    >>> guide(velocity, 3.0)(jnp.array([4]), jnp.zeros((1, 2))).tolist()
    [[14.0, 14.0]]
    """
    known = check_weight(weight, dropout_rate)

    def guided(task_id: Any, *arrays: Any) -> Float[Array, "b ..."]:
        ids = signed_ids(task_id)
        null = jnp.full_like(ids, NULL_TASK)
        if known == 1:
            return velocity(ids, *arrays)
        if known == 0:
            return velocity(null, *arrays)
        both = velocity(jnp.concatenate([ids, null]), *twice(arrays))
        return blend(both, weight)

    return guided


def check_weight(
    weight: float | int | Float[Array, ""], dropout_rate: float | None
) -> float | None:
    """Returns the weight of a guidance, or `None` if it is traced; see `guide`."""
    known = None if isinstance(weight, Tracer) else float(weight)
    if known is not None and not math.isfinite(known):
        raise ValueError(f"weight must be finite, got {known}")
    if dropout_rate == 0 and known != 1:
        warn(
            f"guidance with weight {weight} on a model that was trained without dropout of tasks: "
            "what it does without a task was never trained. Train it with a dropout_rate such as "
            "0.1, or use weight 1"
        )
    return known


def twice(tree: Any) -> Any:
    """Returns a tree of arrays with the batch, the first axis, twice: for the task and for none."""
    return jax.tree.map(lambda x: jnp.concatenate([jnp.asarray(x)] * 2), tree)


def blend(
    both: Float[Array, "two_b ..."], weight: float | int | Float[Array, ""]
) -> Float[Array, "b ..."]:
    """Returns `none + weight * (task - none)` for a batch of `task` followed by `none`."""
    task, none = jnp.split(both, 2)
    return none + jnp.asarray(weight, none.dtype) * (task - none)
