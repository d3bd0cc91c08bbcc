"""`TaskTokens`: learned tokens of the task in front of a sequence."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from taskcond.ids import TaskIds, check_integer
from taskcond.nn.select import select
from taskcond.nn.signature import ConstructorSignature
from taskcond.params import TaskParam


class TaskTokens(nnx.Module):
    """Tells a transformer which task to do, by learned tokens in front of its sequence.

    `tokens, mask = task_tokens(tokens, mask, task_id)` makes `[*b, n + t, features]` of
    `[*b, t, features]`. For `NULL_TASK` the new tokens are zeros that the mask leaves out, so that
    a masked attention acts as if they were not there. A bad concrete id raises; under `jit` its
    tokens are NaN.

    This cannot start as the identity: a token that attention sees takes a part of it away from the
    others. The fewer and smaller the new tokens, the smaller that part; positions move by `n`
    unless the model counts valid tokens only.

    Attributes:
        embedding: A `TaskParam` of shape `[num_tasks, num_tokens, features]`; `None` if
            `num_tasks=0`.

    Args:
        num_tasks: The number of tasks. 0 gives no parameters, and the sequence as it is.
        features: The width of a token.
        num_tokens: The number of tokens of a task.
        max_length: The longest sequence that the model takes, new tokens included; `None` for any.
        embedding_init: Initializer; by default normal with a standard deviation of 0.02.
        param_dtype: Dtype of the parameter. The tokens have the dtype of the sequence.
        rngs: Its stream `params` draws the tokens.

    Raises:
        ValueError: A number is too small.
        TypeError: A number is not an integer.

    Source: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021,
    https://arxiv.org/abs/2104.08691. The 2025 BEHAVIOR challenge was won with a task token.

    >>> task_tokens = TaskTokens(5, 8, num_tokens=2, rngs=nnx.Rngs(0))
    >>> tokens, mask = task_tokens(jnp.ones((3, 4, 8)), None, jnp.array([0, 4, -1]))
    >>> tokens.shape, mask[2].tolist()
    ((3, 6, 8), [False, False, True, True, True, True])
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        num_tasks: int,
        features: int,
        num_tokens: int = 1,
        *,
        max_length: int | None = None,
        embedding_init: nnx.Initializer | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_tasks = check_integer("num_tasks", num_tasks, 0)
        self.num_tokens = check_integer("num_tokens", num_tokens, 1)
        self.features = check_integer("features", features, 1)
        self.max_length = max_length
        shape = (self.num_tasks, self.num_tokens, self.features)
        init = embedding_init or nnx.initializers.normal(0.02)
        self.embedding = (
            TaskParam(init(rngs.params(), shape, param_dtype)) if self.num_tasks else None
        )

    def __call__(
        self,
        tokens: Float[Array, "*b t d"],
        mask: Bool[Array, "*b t"] | None = None,
        task_id: TaskIds | None = None,
    ) -> tuple[Float[Array, "*b n d"], Bool[Array, "*b n"]]:
        """Returns the sequence with the task's tokens in front, and its mask.

        Args:
            tokens: `[*b, t, features]`.
            mask: Which tokens are valid, `[*b, t]`; `None` for all.
            task_id: Integers `[*b]`; may be `None` only if `num_tasks=0`.

        Raises:
            ValueError: Ids are missing, out of range or of another shape; the tokens have another
                width; or the sequence becomes longer than `max_length`.
            TypeError: The ids are not integers.
        """
        if mask is None:
            mask = jnp.ones(tokens.shape[:-1], bool)
        if self.embedding is None:
            return tokens, mask
        self._check(tokens)
        batch = tokens.shape[:-2]
        (values,), is_null = select([self.embedding[...]], task_id, tokens, len(batch))
        valid = jnp.broadcast_to(~is_null[..., None], (*batch, self.num_tokens))
        return (
            jnp.concatenate([values.astype(tokens.dtype), tokens], axis=-2),
            jnp.concatenate([valid, mask], axis=-1),
        )

    def _check(self, tokens: Float[Array, "*b t d"]) -> None:
        if tokens.ndim < 2 or tokens.shape[-1] != self.features:
            raise ValueError(
                f"tokens have the shape {tokens.shape}, but must be [*b, t, {self.features}]; "
                "build TaskTokens with the width of the sequence as features"
            )
        length = tokens.shape[-2] + self.num_tokens
        if self.max_length is not None and length > self.max_length:
            raise ValueError(
                f"a sequence of {tokens.shape[-2]} tokens and {self.num_tokens} of its task are "
                f"{length}, but max_length={self.max_length}; shorten the sequence, use fewer "
                "num_tokens, or raise max_length"
            )
