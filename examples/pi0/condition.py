"""Where time and task enter the action expert."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

import taskcond
from examples.pi0.config import Pi0Config
from examples.pi0.gemma import NormCondition

TASK_INITS = {
    "normal": None,  # the default of `TaskConditioner`
    "zeros": nnx.initializers.zeros_init(),
}


class Condition(NamedTuple):
    """Time and task, on one of two ways into the action expert.

    Attributes:
        tokens: `[*b, width]`, which is mixed into every action token (π0).
        norms: `[*b, width]`, on which the adaptive norms depend; or their modulations (π0.5).
    """

    tokens: Float[Array, "*b d"] | None = None
    norms: NormCondition = None


class TimeAndTask(nnx.Module):
    """The layers that turn flow-matching time and task id into the condition of the action expert.

    This is a base class of `Pi0`, and not a part of it, because the published parameter paths have
    no name for such a part.

    Args:
        config: The model's.
        rngs: Draws the parameters.
    """

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        width = config.action_expert.width
        self.config = config
        if config.pi05:
            self.time_mlp_in = nnx.Linear(width, width, rngs=rngs)
            self.time_mlp_out = nnx.Linear(width, width, rngs=rngs)
        self.task_embeddings = taskcond.TaskConditioner(
            config.num_tasks,
            width,
            scale=config.task_embedding_scale,
            dropout_rate=config.task_dropout_rate,
            embedding_init=TASK_INITS[config.task_embedding_init],
            rngs=rngs,
        )

    def time_embedding(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, dropout_rng: Array | None = None
    ) -> Float[Array, "*b d"]:
        """Embeds the flow-matching time and adds the task.

        **The task enters here**, before any MLP, and nowhere else. From here it reaches every
        action token: in π0.5 by all adaptive norms, in π0 by `action_time_mlp_in`.

        Args:
            time: 0 for the actions, 1 for the noise.
            task_id: `[*b]`; `None` if `num_tasks=0`.
            dropout_rng: Draws which ids are dropped, in training; `None` drops none.
        """
        time_emb = sincos(jnp.asarray(time), self.config.action_expert.width)
        rngs = None if dropout_rng is None else nnx.Rngs(dropout=dropout_rng)
        return self.task_embeddings(time_emb, task_id, deterministic=rngs is None, rngs=rngs)

    def adarms_cond(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, dropout_rng: Array | None = None
    ) -> Float[Array, "*b d"]:
        """Returns the condition of π0.5's adaptive norms.

        It is the time embedding after two dense layers; for the arguments see `time_embedding`.
        """
        time_emb = self.time_embedding(time, task_id, dropout_rng)
        return jax.nn.swish(self.time_mlp_out(jax.nn.swish(self.time_mlp_in(time_emb))))

    def condition(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, dropout_rng: Array | None = None
    ) -> Condition:
        """Returns time and task as the action expert meets them; see `time_embedding`."""
        if self.config.pi05:
            return Condition(norms=self.adarms_cond(time, task_id, dropout_rng))
        return Condition(tokens=self.time_embedding(time, task_id, dropout_rng))

    def condition_at(self, time: Float[Array, ""], task_id: Any) -> Condition:
        """Returns the condition of all rows of a batch at one time.

        Without tasks, all rows have the same condition, and the result has one row for all.

        Args:
            time: One time for all rows.
            task_id: `[b]`; `None` if `num_tasks=0`.
        """
        ids = task_id if self.config.num_tasks else None
        return self.condition(jnp.full(1 if ids is None else len(ids), time), ids)


def sincos(
    time: Float[Array, "*b"], width: int, min_period: float = 4e-3, max_period: float = 4.0
) -> Float[Array, "*b d"]:
    """Returns sines, then cosines, of `2π time / period`.

    The `width / 2` periods are in geometric steps from `min_period` to `max_period`.

    >>> sincos(jnp.array(0.0), 4).tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    fraction = jnp.linspace(0.0, 1.0, width // 2)
    period = min_period * (max_period / min_period) ** fraction
    angle = time[..., None] * (1.0 / period * 2 * math.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
