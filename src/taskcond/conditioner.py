"""`TaskConditioner`: embed a task id, scale it, fuse it into the timestep embedding."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from taskcond.ids import check_num_tasks, resolve_ids

FUSIONS = ("add",)

default_embedding_init = nnx.initializers.variance_scaling(
    1.0, "fan_in", "normal", out_axis=0
)  # that of `nnx.Embed`: a standard deviation of 1/sqrt(features)


class TaskParam(nnx.Param):
    """A parameter that exists once per task.

    Selects what task conditioning adds to a model, as `nnx.LoRAParam` does for LoRA:

    >>> from flax import nnx
    >>> model = TaskConditioner(3, 4, rngs=nnx.Rngs(0))
    >>> list(nnx.state(model, TaskParam))
    ['embedding']
    """


class TaskConditioner(nnx.Module):
    """Tells a network which task it does, by way of its timestep embedding.

    `conditioner(time_emb, task_id)` is `time_emb + scale * embedding[task_id]`, in the dtype of
    `time_emb`. Put it between the sine-cosine embedding of the flow-matching (or diffusion) time
    and the MLP that follows: from there it reaches every adaptive norm. The idea comes from the
    2025 BEHAVIOR challenge, where it was added to π0.5.

    An id is `NULL_TASK` (-1, "no task": the output is the input, bit for bit) or lies in
    `[0, num_tasks)`. A bad id never becomes another task: a concrete one raises, under `jit` its
    row of the output is NaN and `jax.experimental.checkify` reports it.

    Attributes:
        embedding: `TaskParam` of shape `[num_tasks, features]`; `None` where `num_tasks=0`.

    Args:
        num_tasks: Height of the table. 0 gives no parameters and the identity.
        features: Width of the timestep embedding.
        scale: Factor on the embedding. It belongs to the checkpoint: weights trained under one
            scale are wrong under another.
        fusion: How the embedding enters; `"add"`.
        dropout_rate: Probability in `[0, 1]` with which an id becomes `NULL_TASK` in training
            (`model.train()`), so that the model also learns to act without a task. Modules start
            in training mode, as `nnx.Dropout` does; `model.eval()` ends it.
        embedding_init: Initializer of the table; the default is that of `nnx.Embed`. Zeros make a
            merged checkpoint act exactly as before.
        dtype: Dtype of the computation; by default that which the table and `time_emb` promote to.
        param_dtype: Dtype of the table.
        rngs: `params` for the table, `dropout` for the dropout of ids.

    Raises:
        ValueError: A negative `num_tasks` or `features`, an unknown `fusion`, a `scale` that is
            not finite, a `dropout_rate` outside `[0, 1]`.
        TypeError: `num_tasks` or `features` is no integer.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> conditioner = TaskConditioner(num_tasks=50, features=8, rngs=nnx.Rngs(0))
    >>> conditioner(jnp.zeros((2, 8)), jnp.array([3, -1])).shape
    (2, 8)
    """

    def __init__(
        self,
        num_tasks: int,
        features: int,
        *,
        scale: float = 1.0,
        fusion: str = "add",
        dropout_rate: float = 0.0,
        embedding_init: Any = default_embedding_init,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_settings(num_tasks, features, scale, fusion, dropout_rate)
        self.num_tasks = int(num_tasks)
        self.features = int(features)
        self.scale = float(scale)
        self.fusion = fusion
        self.dropout_rate = float(dropout_rate)
        self.dtype = dtype
        self.deterministic = False
        shape = (self.num_tasks, self.features)
        self.embedding = (
            TaskParam(embedding_init(rngs.params(), shape, param_dtype)) if num_tasks else None
        )
        self.rngs = nnx.Rngs(dropout=rngs.dropout()) if num_tasks and dropout_rate else None

    def __call__(
        self,
        time_emb: Float[Array, "*b d"],
        task_id: Any = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "*b d"]:
        """Fuses the task into a timestep embedding.

        Args:
            time_emb: `[*b, features]`, floating point.
            task_id: Integers `[*b]`: `NULL_TASK` or in `[0, num_tasks)`. May be `None` only where
                `num_tasks=0`.
            deterministic: Overrides `model.train()` and `model.eval()` for the dropout of ids.
            rngs: Overrides the module's own `dropout` stream.

        Raises:
            ValueError: No `task_id`; ids out of range or of another shape than `[*b]`; a
                `time_emb` of another width.
            TypeError: Ids that are not integers.
        """
        if not self.num_tasks:
            return time_emb
        check_time_emb(time_emb, self.features)
        key = self._dropout_key(deterministic, rngs)
        row, is_null, is_bad = resolve_ids(require(task_id), self.num_tasks, time_emb.shape[:-1])
        is_null = drop_ids(key, is_null, is_bad, self.dropout_rate)
        return add(time_emb, self._rows(row, is_bad, time_emb.dtype), is_null)

    def embed(self, task_id: Any) -> Float[Array, "*b d"]:
        """The scaled embedding alone: `[*b]` ids to `[*b, features]`; zero for `NULL_TASK`.

        No dropout. In `dtype`, or that of the table. The same errors as calling the module.

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> conditioner = TaskConditioner(3, 4, rngs=nnx.Rngs(0))
        >>> conditioner.embed(jnp.array([-1])).tolist()
        [[0.0, 0.0, 0.0, 0.0]]
        """
        ids = require(task_id)
        shape = jnp.shape(ids)
        if not self.num_tasks:
            return jnp.zeros((*shape, self.features), self.dtype or jnp.float32)
        row, is_null, is_bad = resolve_ids(ids, self.num_tasks, shape)
        rows = self._rows(row, is_bad, None)
        return jnp.where(is_null[..., None], jnp.zeros_like(rows), rows)

    def _rows(self, row: Array, is_bad: Array, time_dtype: Any) -> Array:
        assert self.embedding is not None
        return scaled_rows(self.embedding[...], row, is_bad, self.scale, self.dtype, time_dtype)

    def _dropout_key(self, deterministic: bool | None, rngs: nnx.Rngs | None) -> Array | None:
        if self.deterministic if deterministic is None else deterministic:
            return None
        if self.dropout_rate == 0.0:
            return None
        rngs = rngs or self.rngs
        assert rngs is not None
        return rngs.dropout()


# What follows is shared with `taskcond.linen`.


def check_settings(
    num_tasks: Any, features: Any, scale: float, fusion: str, dropout_rate: float
) -> None:
    """Raises `TypeError` or `ValueError` on settings that no conditioner can have."""
    check_num_tasks(num_tasks)
    if isinstance(features, bool) or not hasattr(features, "__index__"):
        raise TypeError(f"features must be an integer, got {features!r}")
    if features < 1:
        raise ValueError(f"features must be >= 1, got {features}: the width of the time embedding")
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {list(FUSIONS)}, got {fusion!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    if not 0.0 <= dropout_rate <= 1.0:
        raise ValueError(f"dropout_rate must be in [0, 1], got {dropout_rate}")


def check_time_emb(time_emb: Any, features: int) -> None:
    """Raises `ValueError` where the embedding's last axis is not `features` long."""
    if time_emb.ndim < 1 or time_emb.shape[-1] != features:
        raise ValueError(
            f"time_emb has shape {time_emb.shape}, but its last axis must be features={features}; "
            "build the conditioner with the width of the timestep embedding"
        )


def require(task_id: Any) -> Any:
    """Returns `task_id`; raises where there is none."""
    if task_id is None:
        raise ValueError(
            "task_id not found in batch: this model has num_tasks > 0. Add "
            "taskcond.ExtractTaskID() to the data transforms and pass its task_id on, or pass "
            "taskcond.NULL_TASK ids to act without a task"
        )
    return task_id


def drop_ids(key: Array | None, is_null: Array, is_bad: Array, rate: float) -> Array:
    """Makes each good id null with probability `rate`; a bad one stays bad."""
    if key is None:
        return is_null
    return is_null | (jax.random.bernoulli(key, rate, is_null.shape) & ~is_bad)


def scaled_rows(
    table: Array, row: Array, is_bad: Array, scale: float, dtype: Any, time_dtype: Any
) -> Array:
    """`scale * table[row]`, NaN where `is_bad`."""
    rows = jnp.take(table, row, axis=0, mode="clip")
    if dtype is not None:
        rows = rows.astype(dtype)
    elif time_dtype is not None:
        rows = rows.astype(jnp.promote_types(table.dtype, time_dtype))
    return jnp.where(is_bad[..., None], jnp.nan, rows * scale)


def add(time_emb: Array, rows: Array, is_null: Array) -> Array:
    """`time_emb + rows` in the dtype of `time_emb`."""
    # Not `+ 0` for a null id: that would turn -0.0 into 0.0, and the input must come out as it is.
    fused = (time_emb + rows).astype(time_emb.dtype)
    return jnp.where(is_null[..., None], time_emb, fused)
