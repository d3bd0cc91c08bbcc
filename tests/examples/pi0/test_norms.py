"""RMS norms against NumPy, plain and adaptive; the residual with and without a gate."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.pi0.norms import AdaptiveRMSNorm, RMSNorm, add_gated, normalize

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8)).astype(np.float32)


def normed(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_normalizing_is_in_float32(dtype):
    x = jnp.asarray(X, dtype)
    result = normalize(x)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, normed(np.asarray(x, np.float32)), rtol=1e-5)


def test_a_plain_norm_has_a_scale_and_neither_modulation_nor_gate():
    norm = RMSNorm(8)
    norm.scale[...] = jnp.arange(8.0)
    result, gate = norm(jnp.asarray(X))
    np.testing.assert_allclose(result, normed(X) * np.arange(1, 9), rtol=1e-5)
    assert gate is None
    assert norm.modulation(jnp.ones((2, 4))) is None


def test_an_adaptive_norm_scales_shifts_and_gates_by_the_condition():
    norm = AdaptiveRMSNorm(8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    kernel, bias = RNG.normal(size=(8, 24)), RNG.normal(size=24)
    norm.Dense_0.kernel[...] = jnp.asarray(kernel, jnp.float32)
    norm.Dense_0.bias[...] = jnp.asarray(bias, jnp.float32)
    condition = RNG.normal(size=(2, 8)).astype(np.float32)
    modulation = norm.modulation(jnp.asarray(condition))
    scale, shift, wanted_gate = np.split((condition @ kernel + bias)[:, None], 3, axis=-1)
    result, gate = norm(jnp.asarray(X), modulation)
    np.testing.assert_allclose(result, normed(X) * (1 + scale) + shift, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gate, wanted_gate, rtol=1e-4, atol=1e-4)
    assert norm.modulation(None) is None


def test_an_adaptive_norm_starts_without_effect():
    norm = AdaptiveRMSNorm(8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    result, gate = norm(jnp.asarray(X), norm.modulation(jnp.ones((2, 8))))
    np.testing.assert_array_equal(result, normalize(jnp.asarray(X)))
    assert not gate.any()


def test_the_residual_is_gated_where_there_is_a_gate():
    x, y, gate = jnp.asarray(X), jnp.asarray(X[::-1]), jnp.full((2, 1, 8), 0.5)
    np.testing.assert_array_equal(add_gated(x, y, None), X + X[::-1])
    np.testing.assert_array_equal(add_gated(x, y, gate), X + X[::-1] * np.float32(0.5))
