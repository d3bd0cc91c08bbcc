"""`TaskConditioner`: embed a task id, scale it, and fuse it into the timestep embedding."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from taskcond.ids import TaskIds
from taskcond.nn.fusion import Fusion, FusionName, get_fusion
from taskcond.nn.settings import ConditionerSettings
from taskcond.nn.signature import ConstructorSignature
from taskcond.params import SharedTaskParam, TaskParam


class TaskConditioner(nnx.Module):
    """Tells a network which task to do, through its timestep embedding.

    `conditioner(time_emb, task_id)` is `time_emb + scale * embedding[task_id]`, in the dtype of
    `time_emb`. Put it between the sine-cosine embedding of the flow-matching (or diffusion) time
    and the MLP that follows. From there it reaches every adaptive norm. The method comes from the
    2025 BEHAVIOR challenge, where it was added to π0.5.

    An id is `NULL_TASK` (-1) or lies in `[0, num_tasks)`. With `NULL_TASK`, which means "no task",
    the output is the input, bit for bit. A bad id never becomes another task: a concrete one
    raises, and under `jit` its row of the output is NaN and `jax.experimental.checkify` reports it.

    Attributes:
        embedding: The table, a `TaskParam` of shape `[num_tasks, features]`; `None` if
            `num_tasks=0`.
        projection: The weights of the fusion `"concat"`, a `SharedTaskParam`; otherwise `None`.

    Args:
        num_tasks: Height of the table. 0 gives no parameters and the identity.
        features: Width of the timestep embedding.
        scale: Factor on the embedding. It belongs to the checkpoint: weights that were trained
            with one scale are wrong with another.
        fusion: How a row changes the embedding. `"add"` adds it. `"film"` scales and shifts:
            `time_emb * (1 + a) + b`, where a row is `[a, b]` and has the width `2 * features`.
            `"gate"` adds through a gate: `time_emb + tanh(a) * b`, with the same width.
            `"concat"` projects both: `time_emb + [time_emb, row] @ projection`. An instance of a
            subclass of `taskcond.nn.fusion.Fusion` is a fusion of your own.
        dropout_rate: Probability in `[0, 1]` with which an id becomes `NULL_TASK` in training
            (`model.train()`), so that the model also learns to act without a task. Modules start
            in training mode, as `nnx.Dropout` does; `model.eval()` ends it, and so does
            `nnx.view(model, deterministic=True)`. The random key comes with the call, so that
            the table is all the state that a conditioner has.
        embedding_init: Initializer of the table. By default `"add"` uses that of `nnx.Embed`, and
            `"film"` uses zeros, and `"gate"` uses zero gates. All but `"add"` then leave a merged
            checkpoint as it was until it is trained; `"add"` does with
            `embedding_init=nnx.initializers.zeros`.
        checkify: Whether `checkify.checkify(f)` names the bad id. Bad rows are NaN in any case,
            and `errors=checkify.index_checks` reports them. `True` adds an effect to the traced
            program: a call of the compiled function takes about 0.3 ms more on the host, and jax
            before 0.8 refuses to differentiate through `jax.checkpoint` around it.
        dtype: Dtype of the computation; by default the one that the table and `time_emb` promote
            to.
        param_dtype: Dtype of the table.
        rngs: Its stream `params` draws the table.

    Raises:
        ValueError: `num_tasks` or `features` is too small, `fusion` is unknown, `scale` is not
            finite, or `dropout_rate` is outside `[0, 1]`.
        TypeError: `num_tasks` or `features` is not an integer, `scale` is not a number, `fusion` is
            neither a name nor a `Fusion`, or a dtype is not floating point.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> conditioner = TaskConditioner(num_tasks=50, features=8, rngs=nnx.Rngs(0))
    >>> conditioner(jnp.zeros((2, 8)), jnp.array([3, -1])).shape
    (2, 8)
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        num_tasks: int,
        features: int,
        *,
        scale: float = 1.0,
        fusion: FusionName | Fusion = "add",
        dropout_rate: float = 0.0,
        embedding_init: nnx.Initializer | None = None,
        checkify: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.settings = settings = ConditionerSettings(
            num_tasks, features, scale, fusion, dropout_rate, dtype, checkify
        )
        self.deterministic = False
        has_table = settings.num_tasks > 0
        self.embedding = (
            TaskParam(settings.init_table(rngs.params(), embedding_init, param_dtype))
            if has_table
            else None
        )
        projection = settings.init_projection(param_dtype) if has_table else None
        self.projection = None if projection is None else SharedTaskParam(projection)

    @property
    def num_tasks(self) -> int:
        """The height of the table."""
        return self.settings.num_tasks

    @property
    def features(self) -> int:
        """The width of the timestep embedding."""
        return self.settings.features

    @property
    def scale(self) -> float:
        """The factor on the embedding."""
        return self.settings.scale

    @property
    def fusion(self) -> str:
        """The name of the fusion."""
        return get_fusion(self.settings.fusion).name

    def __call__(
        self,
        time_emb: Float[Array, "*b d"],
        task_id: TaskIds | None = None,
        *,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | Array | None = None,
    ) -> Float[Array, "*b d"]:
        """Fuses the task into a timestep embedding.

        Args:
            time_emb: `[*b, features]`, floating point.
            task_id: Integers `[*b]`: `NULL_TASK` or in `[0, num_tasks)`. May be `None` only if
                `num_tasks=0`.
            deterministic: Overrides `model.train()` and `model.eval()` for the dropout of ids.
            rngs: A key that draws which ids are dropped, or an `nnx.Rngs` with a stream
                `dropout`. It is needed in training if there is a `dropout_rate`.

        Raises:
            ValueError: `task_id` is missing, out of range or of another shape than `[*b]`,
                `time_emb` has another width, or `rngs` is missing.
            TypeError: The ids are not integers, or `time_emb` is not floating point.
        """
        if self.embedding is None:
            return time_emb
        key = self._dropout_key(deterministic, rngs)
        projection = None if self.projection is None else self.projection[...]
        return self.settings.fuse(self.embedding[...], time_emb, task_id, key, projection)

    def embed(self, task_id: TaskIds | None) -> Float[Array, "*b width"]:
        """Returns the scaled rows alone: `[*b]` ids become `[*b, row width]`.

        The row of `NULL_TASK` is zero. No id is dropped. The dtype is `dtype`, or that of the
        table. The errors are those of calling the module.

        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> conditioner = TaskConditioner(3, 4, rngs=nnx.Rngs(0))
        >>> conditioner.embed(jnp.array([-1])).tolist()
        [[0.0, 0.0, 0.0, 0.0]]
        """
        table = None if self.embedding is None else self.embedding[...]
        return self.settings.embed(table, task_id)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Switches the dropout of ids; `nnx.view` calls this.

        Args:
            deterministic: Whether no id is dropped; `None` changes nothing.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _dropout_key(
        self, deterministic: bool | None, rngs: nnx.Rngs | Array | None
    ) -> Array | None:
        rate = self.settings.dropout_rate
        off = self.deterministic if deterministic is None else deterministic
        if off or not rate:
            return None
        if rngs is None:
            raise ValueError(
                f"dropout_rate={rate} needs a random key in training: call the conditioner with "
                "rngs=key or rngs=nnx.Rngs(dropout=0), or switch dropout off with model.eval() or "
                "deterministic=True"
            )
        return rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
