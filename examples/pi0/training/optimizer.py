"""The optimizer: AdamW with a clipped gradient, and the task table in a group of its own."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from examples.pi0.training.configs import OptimizerConfig
from examples.pi0.training.groups import TASK
from taskcond.trees import flatten


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    The rate rises from `peak / (warmup + 1)` to the peak, as in openpi. Then a cosine falls to its
    end, `constant` stays, and `rsqrt` falls with the inverse square root of the step.

    >>> rate = make_schedule(OptimizerConfig(1.0, warmup_steps=1), 101)
    >>> [round(float(rate(step)), 3) for step in (0, 1, 51, 101)]
    [0.5, 1.0, 0.55, 0.1]
    """
    peak = config.learning_rate
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(steps // 20, 1000)
    start = peak / (warmup + 1)
    if config.schedule == "cosine":
        end = peak / 10 if config.final_learning_rate is None else config.final_learning_rate
        last = max(config.decay_steps or steps, warmup + 1)
        return optax.warmup_cosine_decay_schedule(start, peak, warmup, last, end)
    rise = optax.linear_schedule(start, peak, max(warmup, 1))
    if config.schedule == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup])

    def fall(step: Any) -> Float[Array, ""]:
        return peak / jnp.sqrt((config.timescale + step) / config.timescale)

    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of nested dicts of parameters.

    The task table has no weight decay, so that the rows of tasks without data stay as they are, bit
    for bit.
    """
    rate = make_schedule(config, steps)

    def adamw(factor: float, decay: float) -> optax.GradientTransformation:
        def scaled(step: Any) -> Any:
            return rate(step) * factor

        return optax.adamw(
            scaled, config.b1, config.b2, config.eps, weight_decay=decay, mu_dtype=jnp.float32
        )

    groups: dict[Hashable, optax.GradientTransformation] = {
        "table": adamw(config.table_multiplier, 0.0),
        "rest": adamw(1.0, config.weight_decay),
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip), optax.multi_transform(groups, _labels)
    )


def update_average(average: Any, params: Any, decay: float) -> Any:
    """Returns the moving average of parameters, which is kept in float32.

    In bfloat16 a decay of 0.99 would never move it. What does not change in `params` does not
    change in the average either.
    """
    return jax.tree.map(
        lambda old, new: old + (1 - decay) * (new.astype(jnp.float32) - old), average, params
    )


def _labels(params: Any) -> Any:
    def label(path: tuple[Any, ...], _: Any) -> str:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        return "table" if name.startswith(TASK) else "rest"

    return jax.tree_util.tree_map_with_path(label, params)


def matrix_norm(params: Any) -> Float[Array, ""]:
    """Returns the norm of all matrices, which openpi logs as `param_norm`."""
    return optax.tree.norm([x for x in flatten(params).values() if x.ndim > 1])
