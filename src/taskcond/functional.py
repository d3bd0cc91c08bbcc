"""Task conditioning as functions of a table, for plain JAX, Equinox, Haiku and others.

The functions do what `TaskConditioner` does, with its checks and errors. The table is an array that
you keep among your parameters.

>>> import jax, jax.numpy as jnp
>>> table = init_table(jax.random.key(0), num_tasks=50, features=8)
>>> condition(table, jnp.zeros((2, 8)), jnp.array([3, -1])).shape
(2, 8)
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from taskcond.ids import TaskIds, check_integer
from taskcond.nn.fusion import Fusion, FusionName, get_fusion
from taskcond.nn.settings import ConditionerSettings


def init_table(
    key: Array,
    num_tasks: int,
    features: int,
    *,
    fusion: FusionName | Fusion = "add",
    embedding_init: nnx.Initializer | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "tasks width"]:
    """Returns a fresh table with one row per task.

    Args:
        key: A random key.
        num_tasks: The number of tasks, at least 1.
        features: Width of the timestep embedding.
        fusion: `"add"` and `"concat"` give rows of the width `features`, `"film"` and `"gate"` of
            `2 * features`.
        embedding_init: `f(key, shape, dtype)`, such as `jax.nn.initializers.zeros`. By default
            that of the fusion; see `TaskConditioner`.
        param_dtype: Dtype of the table, floating point.

    Raises:
        TypeError: `num_tasks` or `features` is not an integer, or `param_dtype` not floating point.
        ValueError: `num_tasks` or `features` is less than 1, or there is no such fusion.

    >>> import jax
    >>> init_table(jax.random.key(0), 50, 1024, fusion="film").shape
    (50, 2048)
    """
    settings = ConditionerSettings(
        check_integer("num_tasks", num_tasks, 1), features, fusion=fusion
    )
    return settings.init_table(key, embedding_init, param_dtype)


def condition(
    table: Float[Array, "tasks width"],
    time_emb: Float[Array, "*b d"],
    task_id: TaskIds,
    *,
    scale: float = 1.0,
    fusion: FusionName | Fusion = "add",
    projection: Float[Array, "wide d"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
    checkify: bool = False,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*b d"]:
    """Fuses the task into a timestep embedding: `time_emb + scale * table[task_id]`.

    Args:
        table: `[num_tasks, row width]`, which `init_table` makes.
        time_emb: `[*b, features]`, floating point.
        task_id: Integers `[*b]`: `NULL_TASK` or in `[0, num_tasks)`. `NULL_TASK` leaves its entry
            of `time_emb` as it is, bit for bit.
        scale: Factor on the rows.
        fusion: See `TaskConditioner`.
        projection: The weights of the fusion `"concat"`, `[2 * features, features]`. Start with
            zeros.
        dropout_rate: Probability with which an id becomes `NULL_TASK`.
        dropout_key: A random key that draws which ids are dropped. Without one, none is.
        checkify: Whether `checkify.checkify(f)` names a bad id; see `TaskConditioner`.
        dtype: Dtype of the computation; by default the one that the table and `time_emb` promote
            to. The result has the dtype of `time_emb`.

    Raises:
        ValueError: A concrete id is out of range, the shapes do not fit, or a setting is out of
            range. Under `jit` the rows of bad ids are NaN.
        TypeError: The ids are not integers, or `time_emb` is not floating point.

    >>> import jax.numpy as jnp
    >>> condition(jnp.ones((3, 2)), jnp.zeros((2, 2)), [0, -1], scale=0.5).tolist()
    [[0.5, 0.5], [0.0, 0.0]]
    """
    features = time_emb.shape[-1] if getattr(time_emb, "ndim", 0) else 1
    settings = ConditionerSettings(
        table.shape[0], features, scale, fusion, dropout_rate, dtype, checkify
    )
    wanted = get_fusion(fusion).projection_shape(features)
    found = None if projection is None else projection.shape
    if found != wanted:
        raise ValueError(
            f"projection has the shape {found}, but fusion={fusion!r} on a time_emb of width "
            f"{features} needs {wanted}; pass "
            + ("no projection" if wanted is None else f"projection=jnp.zeros({wanted}) at first")
        )
    if table.shape != settings.table_shape:
        raise ValueError(
            f"table has shape {table.shape}, but fusion={fusion!r} on a time_emb of width "
            f"{features} needs {settings.table_shape}; make it with init_table(key, "
            f"{table.shape[0]}, {features}, fusion={fusion!r})"
        )
    return settings.fuse(table, time_emb, task_id, dropout_key, projection)


def embed(
    table: Float[Array, "tasks width"],
    task_id: TaskIds,
    *,
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*b width"]:
    """Returns the scaled rows alone: `[*b]` ids become `[*b, row width]`.

    The row of `NULL_TASK` is zero. The errors are those of `condition`.

    >>> import jax.numpy as jnp
    >>> embed(jnp.ones((3, 2)), [2, -1], scale=0.5).tolist()
    [[0.5, 0.5], [0.0, 0.0]]
    """
    settings = ConditionerSettings(table.shape[0], table.shape[1], scale, dtype=dtype)
    return settings.embed(table, task_id)
