"""Fusions: how the row of a task changes the timestep embedding.

A new fusion is a subclass of `Fusion`. `TaskConditioner(fusion=MyFusion())` takes it as it is. A
line in `FUSIONS` and a name in `FusionName` give it a name.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

FusionName = Literal["add", "film", "gate", "concat"]
"""The name of a fusion."""

# The initializer of `nnx.Embed`: a standard deviation of 1/sqrt(features).
embed_init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


class Fusion:
    """A function of a timestep embedding and the scaled row of a task.

    A subclass defines `__call__`, and overrides the other members where they differ. It has no
    state. A fusion with weights that all tasks share returns their shape from `projection_shape`,
    and gets them as the third argument of `__call__`. They start as zeros, with which a fusion
    should be the identity.

    >>> class Multiply(Fusion):
    ...     embedding_init = staticmethod(nnx.initializers.zeros)
    ...     def __call__(self, time_emb, row):
    ...         return time_emb * jnp.exp(row)
    >>> from taskcond import TaskConditioner
    >>> TaskConditioner(3, 4, fusion=Multiply(), rngs=nnx.Rngs(0))(jnp.ones(4), 2).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    embedding_init: nnx.Initializer = staticmethod(embed_init)
    """The default initializer of the table."""

    name: ClassVar[str]
    """The name in `task_conditioning.json`; by default that of the class."""

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name", cls.__name__)

    def row_width(self, features: int) -> int:
        """Returns the width of the table for an embedding of `features`."""
        return features

    def projection_shape(self, features: int) -> tuple[int, int] | None:
        """Returns the shape of the weights that all tasks share; `None` if there are none."""
        return None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the fused embedding.

        The arguments are `time_emb`, `[*b, features]`; `row`, `[*b, row_width(features)]`; and
        `projection`, if `projection_shape` does not return `None`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


class Add(Fusion):
    """`time_emb + row`, the method of the 2025 BEHAVIOR challenge."""

    name = "add"

    def __call__(
        self, time_emb: Float[Array, "*b d"], row: Float[Array, "*b d"]
    ) -> Float[Array, "*b d"]:
        """Adds the row."""
        return time_emb + row


class Film(Fusion):
    """`time_emb * (1 + scale) + shift`, where a row is `[scale, shift]`.

    The table starts with zeros, with which the fusion is the identity.

    Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018,
    https://arxiv.org/abs/1709.07871.
    """

    name = "film"
    embedding_init = staticmethod(nnx.initializers.zeros_init())

    def row_width(self, features: int) -> int:
        """Returns `2 * features`."""
        return 2 * features

    def __call__(
        self, time_emb: Float[Array, "*b d"], row: Float[Array, "*b width"]
    ) -> Float[Array, "*b d"]:
        """Scales and shifts."""
        scale, shift = jnp.split(row, 2, axis=-1)
        return time_emb * (1 + scale) + shift


class Gate(Fusion):
    """`time_emb + tanh(gate) * shift`, where a row is `[gate, shift]`.

    Gates start as zeros, with which the fusion is the identity, and shifts as the rows of
    `nnx.Embed`. What a gate lets through is at most the shift itself.

    Source: the gates of Alayrac et al., "Flamingo: a Visual Language Model for Few-Shot Learning",
    2022, https://arxiv.org/abs/2204.14198.
    """

    name = "gate"

    @staticmethod
    def embedding_init(
        key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "tasks width"]:
        """Returns rows of zero gates and random shifts."""
        tasks, width = shape
        shift = embed_init(key, (tasks, width // 2), dtype)
        return jnp.concatenate([jnp.zeros_like(shift), shift], axis=-1)

    def row_width(self, features: int) -> int:
        """Returns `2 * features`."""
        return 2 * features

    def __call__(
        self, time_emb: Float[Array, "*b d"], row: Float[Array, "*b width"]
    ) -> Float[Array, "*b d"]:
        """Adds the shift as far as the gate is open."""
        gate, shift = jnp.split(row, 2, axis=-1)
        return time_emb + jnp.tanh(gate) * shift


class Concat(Fusion):
    """`time_emb + [time_emb, row] @ projection`: a linear function of both.

    The projection `[2 * features, features]` is shared by all tasks. It starts as zeros, with which
    the fusion is the identity.
    """

    name = "concat"

    def projection_shape(self, features: int) -> tuple[int, int]:
        """Returns `(2 * features, features)`."""
        return 2 * features, features

    def __call__(
        self,
        time_emb: Float[Array, "*b d"],
        row: Float[Array, "*b d"],
        projection: Float[Array, "two_d d"],
    ) -> Float[Array, "*b d"]:
        """Projects both, and adds the result."""
        both = jnp.concatenate([time_emb, row], axis=-1)
        return time_emb + jnp.matmul(both, projection.astype(both.dtype))


FUSIONS: dict[str, Fusion] = {fusion.name: fusion for fusion in (Add(), Film(), Gate(), Concat())}


def get_fusion(fusion: str | Fusion) -> Fusion:
    """Returns a fusion by its name; one that is none of ours is returned as it is.

    Raises:
        ValueError: There is no fusion of this name.
        TypeError: It is neither a name nor a `Fusion`.
    """
    if isinstance(fusion, Fusion):
        return fusion
    if not isinstance(fusion, str):
        raise TypeError(
            f"fusion must be one of {list(FUSIONS)} or an instance of taskcond.nn.fusion.Fusion, "
            f"got {fusion!r}"
        )
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {list(FUSIONS)}, got {fusion!r}")
    return FUSIONS[fusion]
