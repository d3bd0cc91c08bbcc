"""attend: the plain path against a loop over heads, the fused one against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pi0.attention import attend


def inputs(kv_heads: int, heads: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(2, 3, heads, 8)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 5, kv_heads, 8)).astype(np.float32)
    mask = rng.random((2, 3, 5)) < 0.6
    mask[..., 0] = True
    return jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), jnp.asarray(mask)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_plain_attention_is_softmax_head_by_head(kv_heads):
    query, key, value, mask = inputs(kv_heads)
    result = attend(query, key, value, mask, implementation="plain")
    for head in range(4):
        shared = head // (4 // kv_heads)
        logits = np.einsum("bth,bsh->bts", query[:, :, head], key[:, :, shared])
        weights = np.exp(logits) * np.asarray(mask)
        weights = weights / weights.sum(-1, keepdims=True)
        wanted = np.einsum("bts,bsh->bth", weights, value[:, :, shared])
        np.testing.assert_allclose(result[:, :, head], wanted, atol=2e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_both_paths_agree_with_gradients(kv_heads):
    query, key, value, mask = inputs(kv_heads)

    def run(implementation):
        def loss(q, k, v):
            return jnp.sum(attend(q, k, v, mask, implementation=implementation) ** 2)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(query, key, value)

    for name in ("xla", "auto"):
        for ours, wanted in zip(
            jax.tree.leaves(run(name)), jax.tree.leaves(run("plain")), strict=True
        ):
            np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["plain", "xla"])
def test_a_row_that_sees_nothing_is_finite(implementation):
    query, key, value, mask = inputs(2)
    mask = mask.at[0, 1].set(False)
    assert jnp.isfinite(attend(query, key, value, mask, implementation=implementation)).all()


def test_cudnn_where_there_is_none_is_an_error_and_not_another_path():
    if jax.default_backend() == "gpu":
        pytest.skip("cuDNN is here")
    query, key, value, mask = inputs(2)
    with pytest.raises((NotImplementedError, RuntimeError, ValueError)):
        attend(query, key, value, mask, implementation="cudnn")
