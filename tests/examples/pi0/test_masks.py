"""Masks and positions: one pass over all tokens, and the suffix alone after a cached prefix."""

import jax.numpy as jnp
import numpy as np
import pytest

from examples.pi0.masks import block_mask, positions, suffix_mask, suffix_positions

VALID = np.array([[1, 1, 0, 1], [0, 1, 1, 0]], bool)
BLOCKS = np.array([1, 2, 2])


def test_a_token_sees_valid_tokens_of_its_own_block_and_of_earlier_ones():
    blocks = np.array([0, 0, 1, 2])
    mask = np.asarray(block_mask(blocks, jnp.asarray(VALID)))
    for row, valid in enumerate(VALID):
        for i in range(4):
            for j in range(4):
                assert mask[row, i, j] == (valid[i] and valid[j] and blocks[j] <= blocks[i])


@pytest.mark.parametrize("part", ["mask", "positions"])
def test_the_suffix_alone_is_the_end_of_prefix_and_suffix_together(part):
    together = jnp.pad(jnp.asarray(VALID), ((0, 0), (0, 3)), constant_values=True)
    if part == "mask":
        whole = block_mask(np.pad(BLOCKS, (4, 0)), together)[:, 4:]
        alone = suffix_mask(BLOCKS, jnp.asarray(VALID))
    else:
        whole = positions(together)[:, 4:]
        alone = suffix_positions(3, jnp.asarray(VALID))
    np.testing.assert_array_equal(alone, whole)
