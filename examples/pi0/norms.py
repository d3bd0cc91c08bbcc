"""RMS norms, plain and adaptive, and the residual that follows them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
    """`x / rms(x) * (1 + scale)`, which ignores the condition and has no gate."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.zeros(width))

    def modulation(self, condition: Float[Array, "*b d"] | None) -> None:
        """Returns `None`: this norm has no modulation."""

    def __call__(
        self, x: Float[Array, "b t d"], modulation: Float[Array, "#b m"] | None = None
    ) -> tuple[Float[Array, "b t d"], None]:
        """Returns the normed tokens, and `None` for the gate."""
        return (normalize(x) * (1 + self.scale[...])).astype(x.dtype), None


class AdaptiveRMSNorm(nnx.Module):
    """`x / rms(x) * (1 + scale) + shift`, where scale, shift and gate depend on a condition.

    `modulation` computes them from the condition, and `__call__` uses them. These are two methods
    because the condition is the same for all tokens, and because sampling knows the conditions of
    all its steps before the first one.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers" (adaLN), 2022.
    """

    def __init__(self, width: int, *, dtype: np.dtype, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.Dense_0 = nnx.Linear(width, 3 * width, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def modulation(self, condition: Float[Array, "*b d"] | None) -> Float[Array, "*b m"] | None:
        """Returns `[scale, shift, gate]` along the last axis; `None` without a condition."""
        return None if condition is None else self.Dense_0(condition)

    def __call__(
        self, x: Float[Array, "b t d"], modulation: Float[Array, "#b m"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "#b 1 d"]]:
        """Returns the normed tokens, and the gate for `add_gated`."""
        scale, shift, gate = jnp.split(modulation[:, None], 3, axis=-1)
        return (normalize(x) * (1 + scale) + shift).astype(x.dtype), gate


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Divides `x` by its root mean square, in float32.

    >>> normalize(jnp.array([2.0, -2.0])).round().tolist()
    [1.0, -1.0]
    """
    # Cast at each use, not once: bfloat16 gradients are then rounded as the published ones are.
    variance = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(variance + 1e-6)


def add_gated(
    x: Float[Array, "b t d"], y: Float[Array, "b t d"], gate: Float[Array, "#b 1 d"] | None
) -> Float[Array, "b t d"]:
    """Adds `y` to the residual `x`: `x + gate * y`, or `x + y` without a gate."""
    return x + y if gate is None else x + y * gate
