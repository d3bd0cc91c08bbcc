"""`ConditionerSettings`: what the NNX and the Linen conditioner have in common."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from taskcond.ids import TaskIds, check_integer
from taskcond.nn.fusion import Fusion, FusionName, get_fusion
from taskcond.nn.lookup import as_ids, look_up, require_task_id
from taskcond.nn.sharding import explicit_sharding, put, without_last_axis


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
    fusion: FusionName | Fusion = "add"
    dropout_rate: float = 0.0
    dtype: DTypeLike | None = None
    checkify: bool = False

    def __post_init__(self) -> None:
        values = {
            "num_tasks": check_integer("num_tasks", self.num_tasks, 0),
            "features": check_integer("features", self.features, 1),
            "scale": _number("scale", self.scale),
            "dropout_rate": _number("dropout_rate", self.dropout_rate),
            "checkify": bool(self.checkify),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        get_fusion(self.fusion)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")
        if self.dtype is not None:
            self._check_dtype("dtype", self.dtype)
        if not 0.0 <= self.dropout_rate <= 1.0:
            raise ValueError(f"dropout_rate must be in [0, 1], got {self.dropout_rate}")

    def _check_dtype(self, name: str, dtype: DTypeLike) -> None:
        """Raises if a dtype has no NaN to mark bad ids with, or cannot hold `scale`."""
        if not jnp.issubdtype(dtype, jnp.floating) or not _has_nan(dtype):
            raise TypeError(
                f"{name} must be a floating-point dtype that has NaN, got {jnp.dtype(dtype)}; "
                "rows of bad ids are NaN. Use float32 or bfloat16"
            )
        if abs(self.scale) > float(jnp.finfo(dtype).max):
            raise ValueError(
                f"scale={self.scale} overflows {name}={jnp.dtype(dtype)}, whose largest number is "
                f"{float(jnp.finfo(dtype).max):g}; use a smaller scale or another dtype"
            )

    def init_table(
        self,
        key: Array,
        init: nnx.Initializer | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "tasks width"]:
        """Returns a fresh table; `init` replaces the fusion's own initializer."""
        self._check_dtype("param_dtype", param_dtype)
        init = init or get_fusion(self.fusion).embedding_init
        return init(key, self.table_shape, param_dtype)

    @property
    def table_shape(self) -> tuple[int, int]:
        """The shape of the table, `[num_tasks, row width]`."""
        return self.num_tasks, get_fusion(self.fusion).row_width(self.features)

    def init_projection(
        self, param_dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "wide d"] | None:
        """Returns the fresh weights of the fusion that all tasks share, if it has any."""
        shape = get_fusion(self.fusion).projection_shape(self.features)
        return None if shape is None else jnp.zeros(shape, param_dtype)

    def fuse(
        self,
        table: Float[Array, "tasks width"],
        time_emb: Float[Array, "*b d"],
        task_id: TaskIds | None,
        dropout_key: Array | None,
        projection: Float[Array, "wide d"] | None = None,
    ) -> Float[Array, "*b d"]:
        """Fuses tasks into a timestep embedding, in the dtype of that.

        Args:
            table: `[num_tasks, row width]`.
            time_emb: `[*b, features]`.
            task_id: `[*b]`.
            dropout_key: Draws which ids are dropped; `None` drops none.
            projection: The weights of the fusion, if it has any.
        """
        if not isinstance(time_emb, (jax.Array, np.ndarray)):
            raise TypeError(
                f"time_emb must be an array, got {type(time_emb).__name__}; use jnp.asarray"
            )
        if not jnp.issubdtype(time_emb.dtype, jnp.floating):
            raise TypeError(
                f"time_emb must be floating point, got {time_emb.dtype}; embed the time first, or "
                "convert it with time_emb.astype(jnp.float32)"
            )
        if time_emb.ndim < 1 or time_emb.shape[-1] != self.features:
            raise ValueError(
                f"time_emb has shape {time_emb.shape}, but its last axis must be "
                f"features={self.features}; build the conditioner with the width of the timestep "
                "embedding"
            )
        ids, time_emb = require_task_id(task_id), jnp.asarray(time_emb)
        sharding = explicit_sharding(time_emb)
        rows = look_up(
            table,
            ids,
            time_emb.shape[:-1],
            report=self.checkify,
            sharding=without_last_axis(sharding),
        )
        is_null = rows.is_null
        if dropout_key is not None:  # a bad id stays bad
            dropped = jax.random.bernoulli(dropout_key, self.dropout_rate, is_null.shape)
            is_null |= put(dropped, without_last_axis(sharding)) & ~rows.is_bad
        dtype = self.dtype or jnp.promote_types(table.dtype, time_emb.dtype)
        # A fusion may cut a row into parts: the last axis of rows and `whole` is not sharded.
        whole = put(time_emb, without_last_axis(sharding, None))
        shared = () if projection is None else (projection,)
        fused = get_fusion(self.fusion)(whole, rows.values.astype(dtype) * self.scale, *shared)
        fused = put(fused.astype(time_emb.dtype), sharding)
        # A zero row is not enough: -0.0 + 0.0 is 0.0, and the input must come out as it is.
        return jnp.where(is_null[..., None], time_emb, fused)

    def embed(
        self, table: Float[Array, "tasks width"] | None, task_id: TaskIds | None
    ) -> Float[Array, "*b width"]:
        """Returns the scaled rows of tasks, and zeros for `NULL_TASK`."""
        if table is None:
            dtype = self.dtype or jnp.float32
            shape = () if task_id is None else as_ids(task_id).shape
            return jnp.zeros((*shape, self.table_shape[1]), dtype)
        ids = as_ids(require_task_id(task_id))
        sharding = explicit_sharding(ids) if isinstance(ids, jax.Array) else None
        rows = look_up(table, ids, ids.shape, report=self.checkify, sharding=sharding)
        values = rows.values.astype(self.dtype or table.dtype) * self.scale
        return jnp.where(rows.is_null[..., None], jnp.zeros_like(values), values)


def _number(name: str, value: object) -> float:
    """Returns a setting as a float; raises `TypeError` naming it if it is not a plain number."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} is traced, but is a setting of the module; pass a Python number, and multiply "
            "the output of embed() by a traced factor"
        )
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)  # type: ignore[arg-type]


def _has_nan(dtype: DTypeLike) -> bool:
    # In NumPy, because under jit jax would make a tracer of it.
    return bool(np.isnan(np.array(np.nan).astype(jnp.dtype(dtype)).astype(np.float64)))
