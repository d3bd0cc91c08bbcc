"""SigLIP's image encoder: a vision transformer that turns an image into tokens.

The module names are those of the published weights.

Sources: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023; Dosovitskiy et al., "An
Image is Worth 16x16 Words", 2020.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from examples.pi0.attention import attend
from examples.pi0.config import AttentionImplementation, Pi0Config
from examples.pi0.stack import scan, stack


class Siglip(nnx.Module):
    """An encoder of images `[b, image_size, image_size, 3]` into tokens `[b, patches, features]`.

    The tokens have the width of the language model. Up to and including the position embedding, the
    computation is in float32; after it, in the config's dtype.

    Args:
        config: The model's.
        rngs: Draws the parameters.
    """

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        width, side = config.siglip.width, config.siglip.patch_size
        patches = (config.image_size // side) ** 2
        position = nnx.initializers.normal(1 / math.sqrt(width))
        self.dtype = config.compute_dtype
        self.embedding = nnx.Conv(
            3, width, (side, side), strides=(side, side), padding="VALID", rngs=rngs
        )
        self.pos_embedding = nnx.Param(position(rngs.params(), (1, patches, width), jnp.float32))
        self.Transformer = Transformer(config, rngs=rngs)
        self.head = nnx.Linear(width, config.paligemma.width, dtype=self.dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b s d"]:
        """Encodes images with values in `[-1, 1]`."""
        patches = self.embedding(images.astype(jnp.float32))
        x = jax.lax.collapse(patches, 1, 3) + self.pos_embedding[...]
        return self.head(self.Transformer(x.astype(self.dtype)))


class Transformer(nnx.Module):
    """The blocks, and the norm after the last."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        depth = config.siglip.depth
        self.encoderblock = stack(lambda rngs: EncoderBlock(config, rngs=rngs), depth, rngs)
        self.encoder_norm = LayerNorm(config.siglip.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Runs all blocks and the norm."""
        x, _ = scan(self.encoderblock, lambda block, x, _: (block(x), None), x, None)
        return self.encoder_norm(x)


class EncoderBlock(nnx.Module):
    """An attention, then a feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        self.LayerNorm_0 = LayerNorm(config.siglip.width, rngs=rngs)
        self.MultiHeadDotProductAttention_0 = SelfAttention(config, rngs=rngs)
        self.LayerNorm_1 = LayerNorm(config.siglip.width, rngs=rngs)
        self.MlpBlock_0 = MlpBlock(config, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Runs one block."""
        x = x + self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x))
        return x + self.MlpBlock_0(self.LayerNorm_1(x))


class LayerNorm(nnx.LayerNorm):
    """A layer norm that computes in float32 and returns the dtype of `x`.

    With `dtype=bfloat16`, newer releases of flax would round scale and bias first.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"], *, mask: Any = None) -> Float[Array, "b s d"]:
        """Returns the normed tokens."""
        return super().__call__(x, mask=mask).astype(x.dtype)


class SelfAttention(nnx.Module):
    """An attention in which every patch sees every patch."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        width, num_heads, dtype = config.siglip.width, config.siglip.num_heads, config.compute_dtype
        heads = (num_heads, width // num_heads)
        self.implementation: AttentionImplementation = config.attention
        self.query = nnx.LinearGeneral(width, heads, dtype=dtype, rngs=rngs)
        self.key = nnx.LinearGeneral(width, heads, dtype=dtype, rngs=rngs)
        self.value = nnx.LinearGeneral(width, heads, dtype=dtype, rngs=rngs)
        self.out = nnx.LinearGeneral(heads, width, axis=(-2, -1), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Returns the tokens after attention and output projection."""
        query = self.query(x)
        query = query / math.sqrt(query.shape[-1])
        encoded = attend(
            query,
            self.key(x),
            self.value(x),
            implementation=self.implementation,
            logits_dtype=query.dtype,  # as in the published training
        )
        return self.out(encoded)


class MlpBlock(nnx.Module):
    """Two dense layers around a GELU."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        width, mlp_dim, dtype = config.siglip.width, config.siglip.mlp_dim, config.compute_dtype
        self.Dense_0 = nnx.Linear(width, mlp_dim, dtype=dtype, rngs=rngs)
        self.Dense_1 = nnx.Linear(mlp_dim, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Returns the new features of each patch."""
        return self.Dense_1(jax.nn.gelu(self.Dense_0(x), approximate=True))
