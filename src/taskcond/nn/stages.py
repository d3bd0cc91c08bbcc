"""Stages in a model: `StageConditioner` tells it the stage, `StageHead` predicts the stage."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from taskcond.data.stages import StageVocabulary
from taskcond.ids import NULL_TASK, TaskIds, check_integer
from taskcond.nn.lookup import as_ids, require_task_id, signed_ids
from taskcond.nn.select import keep_null, select
from taskcond.nn.signature import ConstructorSignature
from taskcond.params import SharedTaskParam, TaskParam


class StageConditioner(nnx.Module):
    """Tells a policy the stage of its task, by a learned vector for each stage of each task.

    `time_emb = stage_conditioner(time_emb, task_id, stage)` adds the vector. It stands after a
    `taskcond.TaskConditioner`, which tells the task. Without a task or without a stage
    (`NULL_TASK`) the output is the input, bit for bit, and so it is for all stages at the start. A
    stage outside its task raises; under `jit` its rows are NaN.

    Attributes:
        embedding: A `TaskParam`, `[num_tasks, stages.longest, features]`; `None` without tasks.

    Args:
        stages: The stages of the tasks. `StageVocabulary(())` gives no parameters, and the input
            as it is.
        features: The width of the input.
        scale: The factor on a vector.
        embedding_init: Initializer; by default zeros.
        param_dtype: Dtype of the parameter.
        rngs: Its stream `params` draws the vectors.

    Raises:
        ValueError: `features` is below 1.
        TypeError: `features` is not an integer.

    Source: the winner of the 2025 BEHAVIOR challenge, who fused such vectors in four ways into
    tokens; here they are added.

    >>> stages = StageVocabulary((2, 4))
    >>> conditioner = StageConditioner(stages, 8, rngs=nnx.Rngs(0))
    >>> conditioner.embedding.shape
    (2, 4, 8)
    >>> x = jnp.ones((3, 8))
    >>> bool((conditioner(x, [0, 1, 1], [1, 3, -1]) == x).all())
    True
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        stages: StageVocabulary,
        features: int,
        *,
        scale: float | int = 1.0,
        embedding_init: nnx.Initializer | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stages, self.scale = stages, float(scale)
        self.features = check_integer("features", features, 1)
        init = embedding_init or nnx.initializers.zeros_init()
        shape = (stages.num_tasks, stages.longest, self.features)
        self.embedding = (
            TaskParam(init(rngs.params(), shape, param_dtype)) if stages.counts else None
        )

    def __call__(
        self,
        x: Float[Array, "*b d"],
        task_id: TaskIds | None = None,
        stage: TaskIds | None = None,
    ) -> Float[Array, "*b d"]:
        """Adds the vector of the stage.

        Args:
            x: `[*b, features]`.
            task_id: Integers `[*b]`; may be `None` only without tasks.
            stage: Integers `[*b]`: `NULL_TASK`, or a stage of the task; `None` for no stage.

        Raises:
            ValueError: Ids are missing or of another shape, a task is out of range, or a stage is
                outside its task.
            TypeError: They are not integers.
        """
        if self.embedding is None:
            return x
        if x.shape[-1] != self.features:
            raise ValueError(
                f"x has the width {x.shape[-1]}, but features={self.features}; build the "
                "StageConditioner with the width of x as features"
            )
        rows = self._rows(require_task_id(task_id), NULL_TASK if stage is None else stage)
        table = self.embedding[...].reshape(-1, self.features)
        (vectors,), is_null = select([table], rows, x, x.ndim - 1)
        return keep_null(is_null, x, (x + self.scale * vectors).astype(x.dtype))

    def _rows(self, task_id: TaskIds, stage: TaskIds) -> Int[Array, "*b"]:
        """Returns rows of the flat table; a bad traced task or stage gets one that is not there."""
        tasks, stages = as_ids(task_id), as_ids(stage)
        if not isinstance(stages, Tracer) and stages.ndim == 0:
            stages = np.broadcast_to(stages, tasks.shape)
        if not isinstance(tasks, Tracer) and not isinstance(stages, Tracer):
            self.stages.rows(tasks, stages)  # raises
        if not jnp.issubdtype(stages.dtype, jnp.integer):
            raise TypeError(f"stage must be an integer, got an array of dtype {stages.dtype}")
        if stages.shape != tasks.shape:
            raise ValueError(
                f"task_id has shape {tasks.shape}, but stage has {stages.shape}; pass one "
                "stage for each task_id"
            )
        tasks, stages = signed_ids(tasks), signed_ids(stages)
        count, longest = self.stages.num_tasks, self.stages.longest
        # A sum, because an index would need to know where the ids are sharded.
        is_task = tasks[..., None] == np.arange(count)
        has = jnp.sum(jnp.where(is_task, np.array(self.stages.counts), 0), axis=-1)
        is_bad = (tasks < NULL_TASK) | (tasks >= count) | (stages < NULL_TASK) | (stages >= has)
        rows = jnp.where(is_bad, count * longest, tasks * longest + stages)
        is_null = (tasks == NULL_TASK) | ((stages == NULL_TASK) & (has > 0))
        return jnp.where(is_null, NULL_TASK, rows)


class StageHead(nnx.Module):
    """Predicts the stage of the task, as logits over the stages that the task has.

    It reads features that do not know the stage, such as the outputs of images and task. At run
    time `taskcond.StageTracker` lets the predictions vote.

    Attributes:
        kernel: A `SharedTaskParam`, `[features, stages.longest]`.
        bias: A `SharedTaskParam`, `[stages.longest]`.

    Args:
        stages: The stages of the tasks.
        features: The width of the input.
        dtype: Dtype of the computation; by default the one that input and kernel promote to.
        param_dtype: Dtype of the parameters.
        rngs: Its stream `params` draws the kernel.

    Source: the winner of the 2025 BEHAVIOR challenge, where the loss had a weight of 0.1.

    >>> head = StageHead(StageVocabulary((2, 4)), 8, rngs=nnx.Rngs(0))
    >>> jnp.isfinite(head(jnp.ones((1, 8)), jnp.array([0]))).tolist()
    [[True, True, False, False]]
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        stages: StageVocabulary,
        features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.stages, self.dtype = stages, dtype
        init = nnx.initializers.lecun_normal()
        shape = features, stages.longest
        self.kernel = SharedTaskParam(init(rngs.params(), shape, param_dtype))
        self.bias = SharedTaskParam(jnp.zeros(stages.longest, param_dtype))

    def __call__(
        self, x: Float[Array, "*b d"], task_id: TaskIds | None
    ) -> Float[Array, "*b stages"]:
        """Returns logits `[*b, stages.longest]`, `-inf` for stages that the task does not have.

        Args:
            x: `[*b, features]`.
            task_id: Integers `[*b]`. `NULL_TASK` has all stages.

        Raises:
            ValueError: Concrete ids are missing, out of range or of another shape.
            TypeError: The ids are not integers.
        """
        mask = jnp.asarray(self.stages.mask(), jnp.float32)
        (has,), is_null = select([mask], task_id, x, x.ndim - 1)
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        logits = jnp.matmul(x.astype(dtype), self.kernel[...].astype(dtype))
        logits += self.bias[...].astype(dtype)
        logits = jnp.where((has > 0) | is_null[..., None], logits, -jnp.inf)
        return jnp.where(jnp.isnan(has), jnp.nan, logits)  # a bad id is no task at all

    def loss(
        self, x: Float[Array, "*b d"], task_id: TaskIds, stage: Int[Array, "*b"]
    ) -> Float[Array, "*b"]:
        """Returns the cross-entropy of the stage, 0 where `stage` is negative, which means unknown.

        Args:
            x: `[*b, features]`.
            task_id: Integers `[*b]`.
            stage: Integers `[*b]`. A stage outside its task gives an infinite loss.
        """
        known = jnp.asarray(stage) >= 0
        log_probs = jax.nn.log_softmax(self(x, task_id), axis=-1)
        at = jnp.where(known, stage, 0)[..., None]
        picked = jnp.take_along_axis(log_probs, at, axis=-1, mode="fill")[..., 0]
        return jnp.where(known, -picked, 0.0)
