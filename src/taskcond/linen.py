"""`TaskConditioner` for Linen models: the same arguments, behaviour and parameter path."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from taskcond.ids import TaskIds
from taskcond.nn.fusion import Fusion, FusionName
from taskcond.nn.settings import ConditionerSettings


class TaskConditioner(nn.Module):
    """A `taskcond.TaskConditioner` as a Linen module; see there for arguments and errors.

    Its parameter is `embedding`, of shape `[num_tasks, features]`, below the module's name; with
    `fusion="concat"` also `projection`. In training (`deterministic=False`), ids are dropped with
    the `dropout` rng.

    >>> import jax, jax.numpy as jnp
    >>> conditioner = TaskConditioner(num_tasks=50, features=8)
    >>> time_emb, task_id = jnp.zeros((2, 8)), jnp.array([3, -1])
    >>> variables = conditioner.init(jax.random.key(0), time_emb, task_id)
    >>> conditioner.apply(variables, time_emb, task_id).shape
    (2, 8)
    """

    num_tasks: int
    features: int
    _: dataclasses.KW_ONLY
    scale: float = 1.0
    fusion: FusionName | Fusion = "add"
    dropout_rate: float = 0.0
    embedding_init: nn.initializers.Initializer | None = None
    checkify: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    deterministic: bool = True

    def setup(self) -> None:
        """Declares the table."""
        self.settings = settings = ConditionerSettings(
            self.num_tasks,
            self.features,
            self.scale,
            self.fusion,
            self.dropout_rate,
            self.dtype,
            self.checkify,
        )
        self.table = (
            self.param("embedding", settings.init_table, self.embedding_init, self.param_dtype)
            if settings.num_tasks
            else None
        )
        has_projection = settings.num_tasks and settings.init_projection() is not None
        self.weights = (
            self.param("projection", lambda _: settings.init_projection(self.param_dtype))
            if has_projection
            else None
        )

    def __call__(
        self,
        time_emb: Float[Array, "*b d"],
        task_id: TaskIds | None = None,
        *,
        deterministic: bool | None = None,
    ) -> Float[Array, "*b d"]:
        """Fuses the task into a timestep embedding; see `taskcond.TaskConditioner`."""
        if self.table is None:
            return time_emb
        off = self.deterministic if deterministic is None else deterministic
        key = None if off or not self.settings.dropout_rate else self.make_rng("dropout")
        return self.settings.fuse(self.table, time_emb, task_id, key, self.weights)

    def embed(self, task_id: TaskIds | None) -> Float[Array, "*b width"]:
        """Returns the scaled rows alone, zero for `NULL_TASK`; for `apply(..., method="embed")`."""
        return self.settings.embed(self.table, task_id)
