"""Fusions: how the row of a task changes the timestep embedding.

A new fusion is one class with the members of `Fusion`, one line in `FUSIONS`, and its name in
`FusionName`.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

FusionName = Literal["add", "film"]
"""The name of a fusion."""


@runtime_checkable
class Fusion(Protocol):
    """A function of a timestep embedding and the scaled row of a task.

    Attributes:
        embedding_init: The default initializer of the table.
    """

    @property
    def embedding_init(self) -> nnx.Initializer: ...  # noqa: D102

    def row_width(self, features: int) -> int:
        """Returns the width of the table for an embedding of `features`."""
        ...

    def __call__(
        self, time_emb: Float[Array, "*b d"], row: Float[Array, "*b width"]
    ) -> Float[Array, "*b d"]:
        """Returns the fused embedding."""
        ...


class Add:
    """`time_emb + row`, the method of the 2025 BEHAVIOR challenge."""

    # The initializer of `nnx.Embed`: a standard deviation of 1/sqrt(features).
    embedding_init = staticmethod(
        nnx.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    )

    def row_width(self, features: int) -> int:
        """Returns `features`."""
        return features

    def __call__(
        self, time_emb: Float[Array, "*b d"], row: Float[Array, "*b d"]
    ) -> Float[Array, "*b d"]:
        """Adds the row."""
        return time_emb + row


class Film:
    """`time_emb * (1 + scale) + shift`, where a row is `[scale, shift]`.

    The table starts with zeros, with which the fusion is the identity.

    Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018,
    https://arxiv.org/abs/1709.07871.
    """

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


FUSIONS: dict[str, Fusion] = {"add": Add(), "film": Film()}


def get_fusion(name: str) -> Fusion:
    """Returns the fusion of this name; raises `ValueError` if there is none."""
    if name not in FUSIONS:
        raise ValueError(f"fusion must be one of {list(FUSIONS)}, got {name!r}")
    return FUSIONS[name]
