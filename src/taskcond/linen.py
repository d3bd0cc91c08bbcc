"""`TaskConditioner` for Linen models: the same arguments, behaviour and parameter path."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from taskcond.nn.conditioner import default_embedding_init
from taskcond.nn.fusion import check_settings, embed, fuse


class TaskConditioner(nn.Module):
    """`taskcond.TaskConditioner` as a Linen module; see there for arguments and errors.

    Its parameter is `embedding`, of shape `[num_tasks, features]`, below the module's name. In
    training (`deterministic=False`), ids are dropped with the `dropout` rng.

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
    fusion: str = "add"
    dropout_rate: float = 0.0
    embedding_init: Any = default_embedding_init
    checkify: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    deterministic: bool = True

    def setup(self):
        """Declares the table."""
        check_settings(self.num_tasks, self.features, self.scale, self.fusion, self.dropout_rate)
        shape = (self.num_tasks, self.features)
        self.table = (
            self.param("embedding", self.embedding_init, shape, self.param_dtype)
            if self.num_tasks
            else None
        )

    def __call__(
        self,
        time_emb: Float[Array, "*b d"],
        task_id: Any = None,
        *,
        deterministic: bool | None = None,
    ) -> Float[Array, "*b d"]:
        """Fuses the task into a timestep embedding; see `taskcond.TaskConditioner`."""
        if self.table is None:
            return time_emb
        off = self.deterministic if deterministic is None else deterministic
        key = None if off or not self.dropout_rate else self.make_rng("dropout")
        return fuse(
            self.table,
            time_emb,
            task_id,
            self.scale,
            self.dtype,
            self.dropout_rate,
            key,
            self.checkify,
        )

    def embed(self, task_id: Any) -> Float[Array, "*b d"]:
        """The scaled embedding alone, zero for `NULL_TASK`; for `apply(..., method="embed")`."""
        if self.table is None:
            return jnp.zeros((*jnp.shape(task_id), self.features), self.dtype or jnp.float32)
        return embed(self.table, task_id, self.scale, self.dtype, self.checkify)
