"""The layers of an expert against NumPy: projections and feed-forward with LoRA, RoPE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.pi0.config import GemmaConfig, LoRAConfig
from examples.pi0.layers import Einsum, Embedder, FeedForward, rope

RNG = np.random.default_rng(0)
FLOAT32 = jnp.dtype("float32")
LORA = LoRAConfig(rank=2, alpha=6.0)


def shake(module):
    """Gives all parameters random values; LoRA's second factor starts as zeros."""
    values = jax.tree.map(
        lambda x: jnp.asarray(RNG.normal(size=x.shape), x.dtype), nnx.state(module)
    )
    nnx.update(module, values)
    return module


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_projection_of_heads_adds_a_scaled_low_rank_update(lora):
    layer = Einsum("btd,ndh->btnh", (4, 6, 5), lora=lora, dtype=FLOAT32, rngs=nnx.Rngs(0))
    shake(layer)
    x = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    w = np.asarray(layer.w[...])
    if lora:
        w = w + np.asarray(layer.lora_a[...]) @ np.asarray(layer.lora_b[...]) * (6.0 / 2)
    np.testing.assert_allclose(
        layer(jnp.asarray(x)), np.einsum("btd,ndh->btnh", x, w), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_feed_forward_adds_an_unscaled_low_rank_update(lora):
    config = GemmaConfig(
        width=6, depth=1, mlp_dim=7, num_heads=1, num_kv_heads=1, head_dim=2, lora=lora
    )
    layer = shake(FeedForward(config, dtype=FLOAT32, rngs=nnx.Rngs(0)))
    x = RNG.normal(size=(2, 3, 6)).astype(np.float32)
    gating, linear = np.asarray(layer.gating_einsum[...]), np.asarray(layer.linear[...])
    if lora:
        a, b = layer.gating_einsum_lora_a[...], layer.gating_einsum_lora_b[...]
        gating = gating + np.asarray(a) @ np.asarray(b)
        linear = linear + np.asarray(layer.linear_lora_a[...]) @ np.asarray(
            layer.linear_lora_b[...]
        )
    gate, up = x @ gating[0], x @ gating[1]
    gelu = gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) / 2
    wanted = (gelu * up) @ linear
    np.testing.assert_allclose(layer(jnp.asarray(x)), wanted, rtol=1e-3, atol=1e-3)


def test_the_initial_variance_is_one_over_the_inputs():
    layer = Einsum("btnh,nhd->btd", (8, 32, 64), lora=None, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert np.std(layer.w[...]) == pytest.approx((8 * 32) ** -0.5, rel=0.05)
    layer = Einsum("btd,ndh->btnh", (8, 64, 32), lora=None, dtype=FLOAT32, rngs=nnx.Rngs(0))
    assert np.std(layer.w[...]) == pytest.approx(64**-0.5, rel=0.05)


def test_rope_turns_pairs_by_the_position():
    x = RNG.normal(size=(1, 3, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 5]])
    pairs = x[..., :4] + 1j * x[..., 4:]
    angle = positions[..., None, None] / 10_000 ** (np.arange(4) / 4)
    turned = pairs * np.exp(1j * angle)
    wanted = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rope(jnp.asarray(x), jnp.asarray(positions)), wanted, atol=1e-5)


def test_text_is_embedded_by_scaled_rows():
    embedder = Embedder(10, 4, dtype=FLOAT32, rngs=nnx.Rngs(0))
    rows = np.asarray(embedder.input_embedding[...])
    np.testing.assert_array_equal(embedder(jnp.array([[3, 0]]))[0], rows[[3, 0]] * 2)
