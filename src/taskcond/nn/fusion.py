"""How a task's row enters the timestep embedding: pure functions, shared by NNX and Linen."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from taskcond.ids import check_num_tasks, resolve_ids

FUSIONS = ("add",)


def fuse(
    table: Float[Array, "tasks features"],
    time_emb: Float[Array, "*b d"],
    task_id: Any,
    scale: float,
    dtype: Any,
    dropout_rate: float,
    key: Array | None,
    checkify: bool,
) -> Float[Array, "*b d"]:
    """`time_emb + scale * table[task_id]`, in the dtype of `time_emb`; `key=None`: no dropout."""
    num_tasks, features = table.shape
    if time_emb.ndim < 1 or time_emb.shape[-1] != features:
        raise ValueError(
            f"time_emb has shape {time_emb.shape}, but its last axis must be features={features}; "
            "build the conditioner with the width of the timestep embedding"
        )
    ids = _require(task_id)
    row, is_null, is_bad = resolve_ids(ids, num_tasks, time_emb.shape[:-1], checkify)
    if key is not None:  # a bad id stays bad
        is_null |= jax.random.bernoulli(key, dropout_rate, is_null.shape) & ~is_bad
    compute_dtype = dtype or jnp.promote_types(table.dtype, time_emb.dtype)
    fused = (time_emb + _rows(table, row, scale, compute_dtype)).astype(time_emb.dtype)
    # Not `+ 0` for a null id: that would turn -0.0 into 0.0, and the input must come out as it is.
    return jnp.where(is_null[..., None], time_emb, fused)


def embed(
    table: Float[Array, "tasks d"], task_id: Any, scale: float, dtype: Any, checkify: bool
) -> Float[Array, "*b d"]:
    """`scale * table[task_id]`, zero for `NULL_TASK`."""
    ids = _require(task_id)
    row, is_null, _ = resolve_ids(ids, table.shape[0], jnp.shape(ids), checkify)
    rows = _rows(table, row, scale, dtype or table.dtype)
    return jnp.where(is_null[..., None], jnp.zeros_like(rows), rows)


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


def _require(task_id: Any) -> Any:
    if task_id is None:
        raise ValueError(
            "task_id not found in batch: this model has num_tasks > 0. Add "
            "taskcond.ExtractTaskID() to the data transforms and pass its task_id on, or pass "
            "taskcond.NULL_TASK ids to act without a task"
        )
    return task_id


def _rows(
    table: Float[Array, "tasks d"],
    row: Int[Array, "*b"],
    scale: float,
    dtype: Any,
) -> Float[Array, "*b d"]:
    # NaN for the row of a bad id, which the table does not have.
    return jnp.take(table, row, axis=0, mode="fill").astype(dtype) * scale
