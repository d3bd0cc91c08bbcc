"""Which tokens see which, and the positions of tokens."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num


def block_mask(blocks: Num[np.ndarray, " t"], valid: Bool[Array, "b t"]) -> Bool[Array, "b t t"]:
    """Returns which tokens each token sees: the valid ones of its own block and of earlier blocks.

    Args:
        blocks: The number of each token's block, in ascending order.
        valid: Which tokens are valid. The others see nothing.

    >>> block_mask(np.array([0, 1]), jnp.ones((1, 2), bool)).astype(int).tolist()
    [[[1, 0], [1, 1]]]
    """
    before = jnp.asarray(blocks[None, :] <= blocks[:, None])
    return before & valid[:, None, :] & valid[:, :, None]


def suffix_mask(
    blocks: Num[np.ndarray, " t"], prefix_valid: Bool[Array, "b s"]
) -> Bool[Array, "b t s+t"]:
    """Returns which tokens of a cached prefix, and then of the suffix, each suffix token sees.

    Args:
        blocks: The number of each suffix token's block, see `block_mask`.
        prefix_valid: Which tokens of the prefix are valid; the suffix sees all of these.

    >>> suffix_mask(np.array([1, 2]), jnp.array([[True, False]])).astype(int).tolist()
    [[[1, 0, 1, 0], [1, 0, 1, 1]]]
    """
    (b, s), t = prefix_valid.shape, len(blocks)
    sees_prefix = jnp.broadcast_to(prefix_valid[:, None], (b, t, s))
    sees_suffix = block_mask(blocks, jnp.ones((b, t), bool))
    return jnp.concatenate([sees_prefix, sees_suffix], axis=-1)


def positions(valid: Bool[Array, "b t"]) -> Int[Array, "b t"]:
    """Returns the position of each token, which counts the valid tokens before it.

    >>> positions(jnp.array([[True, False, True]])).tolist()
    [[0, 0, 1]]
    """
    return jnp.cumsum(valid, axis=-1) - 1


def suffix_positions(length: int, prefix_valid: Bool[Array, "b s"]) -> Int[Array, "b t"]:
    """Returns the positions of the suffix tokens after a cached prefix.

    >>> suffix_positions(3, jnp.array([[True, False]])).tolist()
    [[1, 2, 3]]
    """
    return prefix_valid.sum(axis=-1, keepdims=True) + jnp.arange(length)
