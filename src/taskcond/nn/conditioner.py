"""`TaskConditioner`: embed a task id, scale it, fuse it into the timestep embedding."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from taskcond.nn.fusion import check_settings, embed, fuse

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
        checkify: Whether `checkify.checkify(f)` names the bad id. The price is an effect in the
            traced program: a call of the compiled function takes some 0.3 ms more on the host, and
            jax 0.5 refuses to differentiate through `jax.checkpoint` around it. Without, bad rows
            are NaN all the same, and checkify reports them under `errors=checkify.index_checks`.
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
        checkify: bool = True,
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
        self.checkify = bool(checkify)
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
        if self.embedding is None:
            return time_emb
        key = self._dropout_key(deterministic, rngs)
        return fuse(
            self.embedding[...],
            time_emb,
            task_id,
            self.scale,
            self.dtype,
            self.dropout_rate,
            key,
            self.checkify,
        )

    def embed(self, task_id: Any) -> Float[Array, "*b d"]:
        """The scaled embedding alone: `[*b]` ids to `[*b, features]`; zero for `NULL_TASK`.

        No dropout. In `dtype`, or that of the table. The same errors as calling the module.

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> conditioner = TaskConditioner(3, 4, rngs=nnx.Rngs(0))
        >>> conditioner.embed(jnp.array([-1])).tolist()
        [[0.0, 0.0, 0.0, 0.0]]
        """
        if self.embedding is None:
            return jnp.zeros((*jnp.shape(task_id), self.features), self.dtype or jnp.float32)
        return embed(self.embedding[...], task_id, self.scale, self.dtype, self.checkify)

    def _dropout_key(self, deterministic: bool | None, rngs: nnx.Rngs | None) -> Array | None:
        off = self.deterministic if deterministic is None else deterministic
        rngs = rngs or self.rngs
        return None if off or rngs is None or not self.dropout_rate else rngs.dropout()
