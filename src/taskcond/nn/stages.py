"""`StageHead`: predicts the stage of a task from what the policy sees."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from taskcond.data.stages import StageVocabulary
from taskcond.ids import TaskIds
from taskcond.nn.select import select
from taskcond.nn.signature import ConstructorSignature
from taskcond.params import SharedTaskParam


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
