"""Euler steps along a velocity, from noise to actions; no model is known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from taskcond.ids import check_integer

Velocity = Callable[
    [Float[Array, "..."], Int[ArrayLike, ""], Float[Array, ""]], Float[Array, "..."]
]
"""`velocity(x, step, time)`, where `time` is that of the step: 1 for noise, 0 for actions."""


def integrate(
    velocity: Velocity, noise: Float[Array, "*b"], num_steps: int | Int[Array, ""]
) -> Float[Array, "*b"]:
    """Follows a velocity in equal Euler steps from time 1 to time 0.

    Args:
        velocity: `velocity(x, step, time)`; step `i` has the time `step_times(num_steps)[i]`.
        noise: The value at time 1.
        num_steps: The number of steps. If it is a traced number below 1, the result is NaN.

    >>> integrate(lambda x, step, time: jnp.full_like(x, 2.0), jnp.ones(2), 4).tolist()
    [-1.0, -1.0]
    """
    dt = jnp.float32(-1.0) / num_steps

    def step(i: Int[ArrayLike, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, time = carry
        return x + dt * velocity(x, i, time), time + dt

    x, _ = jax.lax.fori_loop(0, num_steps, step, (noise, jnp.float32(1.0)))
    return jnp.where(jnp.asarray(num_steps) >= 1, x, jnp.nan)


def step_times(num_steps: int) -> Float[np.ndarray, " num_steps"]:
    """Returns the times of the Euler steps: 1, 1 - 1/n, ..., 1/n.

    >>> step_times(4).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    steps = np.full(num_steps, np.float32(-1.0) / np.float32(num_steps), np.float32)
    steps[0] = 1.0
    # Added one by one, so that the times are rounded as those of the loop are: the fastest sine of
    # the time embedding turns 250 times in [0, 1].
    return np.add.accumulate(steps, dtype=np.float32)


def check_num_steps(num_steps: Any) -> int | Int[Array, ""]:
    """Returns a static number of steps as an `int`, and a traced one unchanged.

    Raises:
        TypeError: The number is not an integer.
        ValueError: The number is below 1.
    """
    if isinstance(num_steps, Tracer) and jnp.issubdtype(num_steps.dtype, jnp.integer):
        return num_steps
    return check_integer("num_steps", num_steps, low=1)
