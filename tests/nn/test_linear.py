"""TaskLinear: heads of several widths."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond import TaskLinear
from tests.support import as_untyped_code, assign

SIZES = (4, 2, 3)


def head(**kwargs):
    init = nnx.initializers.lecun_normal()
    return TaskLinear(3, 6, 4, kernel_init=init, rngs=nnx.Rngs(0), **kwargs)


def test_a_head_alone_is_a_linear_layer_of_its_task():
    made = head()
    assign(made, bias=jnp.arange(12.0).reshape(3, 4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)
    out = made(x, jnp.array([2, -1]))
    expected = x[0] @ made.kernel[2] + made.bias[2]
    np.testing.assert_allclose(out[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[1], np.zeros((5, 4)))


def test_outputs_beyond_the_size_of_a_task_are_zero():
    made = head(out_sizes=SIZES, bias=None)
    ids = jnp.array([0, 1, 2, -1])
    shared = jnp.ones((4, 7, 4))
    out = np.asarray(made(jnp.ones((4, 7, 6)), ids, shared)) != 0
    mask = np.asarray(made.mask(ids))
    assert mask.sum(1).tolist() == [4, 2, 3, 4]
    np.testing.assert_array_equal(out, np.broadcast_to(mask[:, None], out.shape))


def test_a_shared_bias_is_added_for_every_task_but_not_for_none():
    made = head(bias="shared")
    assign(made, bias=jnp.ones(4))
    out = made(jnp.zeros((2, 6)), jnp.array([1, -1]))
    np.testing.assert_array_equal(out, [[1.0] * 4, [0.0] * 4])


def test_what_does_not_fit_is_refused():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="out_sizes is .*needs 3 numbers"):
        TaskLinear(3, 6, 4, out_sizes=(4, 2), rngs=rngs)
    with pytest.raises(ValueError, match="of at most out_features=4"):
        TaskLinear(3, 6, 4, out_sizes=(5, 2, 1), rngs=rngs)
    with as_untyped_code(), pytest.raises(ValueError, match="bias must be"):
        TaskLinear(3, 6, 4, bias="none", rngs=rngs)
    with pytest.raises(ValueError, match="its last axis must be in_features=6"):
        head()(jnp.zeros((2, 5)), jnp.array([0, 1]))
    with pytest.raises(ValueError, match=r"y has the shape \(2, 3\), but must be \(2, 4\)"):
        head()(jnp.zeros((2, 6)), jnp.array([0, 1]), jnp.zeros((2, 3)))
