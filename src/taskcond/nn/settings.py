"""`ConditionerSettings`: what the NNX and the Linen conditioner have in common."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from taskcond.ids import TaskIds, check_integer
from taskcond.nn.fusion import get_fusion
from taskcond.nn.lookup import look_up, require_task_id


@dataclasses.dataclass(frozen=True)
class ConditionerSettings:
    """The settings of a conditioner, which check themselves, and what they do with a table.

    The fields are the arguments of `taskcond.TaskConditioner`.

    Raises:
        TypeError: `num_tasks` or `features` is not an integer.
        ValueError: A setting is out of range, or there is no such fusion.
    """

    num_tasks: int
    features: int
    scale: float = 1.0
    fusion: str = "add"
    dropout_rate: float = 0.0
    dtype: DTypeLike | None = None
    checkify: bool = True

    def __post_init__(self) -> None:
        values = {
            "num_tasks": check_integer("num_tasks", self.num_tasks, 0),
            "features": check_integer("features", self.features, 1),
            "scale": float(self.scale),
            "dropout_rate": float(self.dropout_rate),
            "checkify": bool(self.checkify),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        get_fusion(self.fusion)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")
        if not 0.0 <= self.dropout_rate <= 1.0:
            raise ValueError(f"dropout_rate must be in [0, 1], got {self.dropout_rate}")

    @property
    def table_shape(self) -> tuple[int, int]:
        """The shape of the table, `[num_tasks, row width]`."""
        return self.num_tasks, get_fusion(self.fusion).row_width(self.features)

    @property
    def embedding_init(self) -> nnx.Initializer:
        """The default initializer of the table."""
        return get_fusion(self.fusion).embedding_init

    def fuse(
        self,
        table: Float[Array, "tasks width"],
        time_emb: Float[Array, "*b d"],
        task_id: TaskIds | None,
        dropout_key: Array | None,
    ) -> Float[Array, "*b d"]:
        """Fuses tasks into a timestep embedding, in the dtype of that.

        Args:
            table: `[num_tasks, row width]`.
            time_emb: `[*b, features]`.
            task_id: `[*b]`.
            dropout_key: Draws which ids are dropped; `None` drops none.
        """
        if time_emb.ndim < 1 or time_emb.shape[-1] != self.features:
            raise ValueError(
                f"time_emb has shape {time_emb.shape}, but its last axis must be "
                f"features={self.features}; build the conditioner with the width of the timestep "
                "embedding"
            )
        ids = require_task_id(task_id)
        rows = look_up(table, ids, time_emb.shape[:-1], self.checkify)
        is_null = rows.is_null
        if dropout_key is not None:  # a bad id stays bad
            dropped = jax.random.bernoulli(dropout_key, self.dropout_rate, is_null.shape)
            is_null |= dropped & ~rows.is_bad
        dtype = self.dtype or jnp.promote_types(table.dtype, time_emb.dtype)
        fused = get_fusion(self.fusion)(time_emb, rows.values.astype(dtype) * self.scale)
        # A zero row is not enough: -0.0 + 0.0 is 0.0, and the input must come out as it is.
        return jnp.where(is_null[..., None], time_emb, fused.astype(time_emb.dtype))

    def embed(
        self, table: Float[Array, "tasks width"] | None, task_id: TaskIds | None
    ) -> Float[Array, "*b width"]:
        """Returns the scaled rows of tasks, and zeros for `NULL_TASK`."""
        if table is None:
            dtype = self.dtype or jnp.float32
            return jnp.zeros((*jnp.shape(task_id), self.table_shape[1]), dtype)  # type: ignore[arg-type]
        ids = require_task_id(task_id)
        rows = look_up(table, ids, jnp.shape(ids), self.checkify)  # type: ignore[arg-type]
        values = rows.values.astype(self.dtype or table.dtype) * self.scale
        return jnp.where(rows.is_null[..., None], jnp.zeros_like(values), values)
