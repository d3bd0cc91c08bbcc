"""TaskTokens: tokens in front of a sequence."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond import TaskTokens


def test_the_tokens_of_the_task_come_first_and_those_of_none_are_masked():
    made = TaskTokens(3, 4, 2, rngs=nnx.Rngs(0))
    tokens, mask = jnp.ones((2, 3, 4)), jnp.array([[True, True, False]] * 2)
    out, valid = made(tokens, mask, jnp.array([2, -1]))
    np.testing.assert_array_equal(out[0, :2], made.embedding[2])
    np.testing.assert_array_equal(out[1, :2], np.zeros((2, 4)))
    np.testing.assert_array_equal(out[:, 2:], tokens)
    assert valid.tolist() == [[True, True, True, True, False], [False, False, True, True, False]]


def test_what_does_not_fit_is_refused():
    made = TaskTokens(3, 4, 2, max_length=5, rngs=nnx.Rngs(0))
    made(jnp.ones((1, 3, 4)), None, jnp.array([0]))
    with pytest.raises(ValueError, match="4 tokens and 2 of its task are 6, but max_length=5"):
        made(jnp.ones((1, 4, 4)), None, jnp.array([0]))
    with pytest.raises(ValueError, match=r"must be \[\*b, t, 4\]"):
        made(jnp.ones((1, 3, 5)), None, jnp.array([0]))
    with pytest.raises(ValueError, match="num_tokens must be at least 1"):
        TaskTokens(3, 4, 0, rngs=nnx.Rngs(0))
