"""Where time and task enter the model."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

import taskcond
from examples.pi0.config import Pi0Config
from examples.pi0.gemma import NormCondition
from examples.pi0.updates import TaskUpdates
from taskcond.nn.lookup import signed_ids

TASK_INITS = {
    "normal": None,  # the default of the fusion
    "zeros": nnx.initializers.zeros_init(),
}


class Condition(NamedTuple):
    """Time and task, on their ways into the action expert.

    Attributes:
        tokens: `[*b, width]`, which is mixed into every action token (π0).
        norms: `[*b, width]`, on which the adaptive norms depend; or their modulations (π0.5).
        task_id: `[*b]`, for the projections that tasks have of their own; `None` without tasks.
    """

    tokens: Float[Array, "*b d"] | None = None
    norms: NormCondition = None
    task_id: Int[Array, "*b"] | None = None

    def ids_of(self, count: int) -> Int[Array, " b"] | None:
        """Returns an id for each of `count` rows; one id serves all of them."""
        return None if self.task_id is None else jnp.broadcast_to(self.task_id, (count,))

    def repeated(self, count: int) -> Condition:
        """Returns the condition, of all steps, with each of its rows `count` times."""
        tokens, norms = jax.tree.map(
            lambda x: jnp.repeat(x, count, axis=-2), (self.tokens, self.norms)
        )
        ids = None if self.task_id is None else jnp.repeat(self.task_id, count, axis=-1)
        return Condition(tokens, norms, ids)


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
        num_tasks = config.num_tasks
        self.task_embeddings = taskcond.TaskConditioner(
            num_tasks if config.has_table else 0,
            width,
            scale=config.task_embedding_scale,
            fusion="add" if config.task_fusion == "none" else config.task_fusion,
            embedding_init=TASK_INITS[config.task_embedding_init],
            rngs=rngs,
        )
        # These have no parameters, and do nothing, unless the config asks for them.
        self.task_tokens = taskcond.TaskTokens(
            num_tasks if config.num_task_tokens else 0,
            config.paligemma.width,
            max(config.num_task_tokens, 1),
            rngs=rngs,
        )
        self.task_updates = TaskUpdates(config, rngs=rngs)
        self.task_heads = taskcond.TaskLinear(
            num_tasks if config.task_heads else 0, width, config.action_dim, rngs=rngs
        )
        self.task_stages = taskcond.StageConditioner(
            config.stages, width, scale=config.task_embedding_scale, rngs=rngs
        )
        self.task_stage_head = (
            taskcond.StageHead(config.stages, config.paligemma.width, rngs=rngs)
            if config.task_stages
            else None
        )

    def time_embedding(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, stage: Any = None
    ) -> Float[Array, "*b d"]:
        """Embeds the flow-matching time and adds the task, and its stage.

        **The task enters here**, before any MLP, and nowhere else unless the config says so. From
        here it reaches every action token: in π0.5 by all adaptive norms, in π0 by
        `action_time_mlp_in`.

        Args:
            time: 0 for the actions, 1 for the noise.
            task_id: `[*b]`; `None` if `num_tasks=0`.
            stage: `[*b]`; `None` for no stage.
        """
        time_emb = sincos(jnp.asarray(time), self.config.action_expert.width)
        time_emb = self.task_embeddings(time_emb, task_id, deterministic=True)
        return self.task_stages(time_emb, task_id, stage)

    def adarms_cond(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, stage: Any = None
    ) -> Float[Array, "*b d"]:
        """Returns the condition of π0.5's adaptive norms.

        It is the time embedding after two dense layers; for the arguments see `time_embedding`.
        """
        x = self.time_embedding(time, task_id, stage)
        x = jax.nn.swish(self.task_updates.time_in(x, task_id, self.time_mlp_in(x)))
        return jax.nn.swish(self.task_updates.time_out(x, task_id, self.time_mlp_out(x)))

    def condition(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, stage: Any = None
    ) -> Condition:
        """Returns time and task as the action expert meets them; see `time_embedding`."""
        ids = None if task_id is None else signed_ids(task_id)
        if self.config.pi05:
            return Condition(norms=self.adarms_cond(time, task_id, stage), task_id=ids)
        return Condition(tokens=self.time_embedding(time, task_id, stage), task_id=ids)

    def condition_at(self, time: Float[Array, ""], task_id: Any, stage: Any = None) -> Condition:
        """Returns the condition of all rows of a batch at one time.

        Without tasks, all rows have the same condition, and the result has one row for all.

        Args:
            time: One time for all rows.
            task_id: `[b]`; `None` if `num_tasks=0`.
            stage: `[b]`; `None` for no stage.
        """
        ids = task_id if self.config.num_tasks else None
        return self.condition(jnp.full(1 if ids is None else len(ids), time), ids, stage)


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


def with_none(task_id: Any) -> Int[Array, "two_b"]:
    """Returns the ids, followed by as many of `NULL_TASK`."""
    ids = signed_ids(task_id)
    return jnp.concatenate([ids, jnp.full_like(ids, taskcond.NULL_TASK)])
