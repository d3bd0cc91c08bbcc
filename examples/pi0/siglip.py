"""SigLIP's image encoder: a vision transformer that turns a picture into tokens.

Sources: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023; Dosovitskiy et al., "An
Image is Worth 16x16 Words", 2020. Module names are those of the published weights.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from examples.pi0.attention import attend
from examples.pi0.config import Attention, SiglipConfig
from examples.pi0.stack import scan, stack


class Siglip(nnx.Module):
    """Pictures `[b, image_size, image_size, 3]` to tokens `[b, patches, features]`.

    Args:
        config: Sizes.
        image_size: Pixels along a side.
        features: Width of the tokens, that of the language model.
        dtype: Of the computation after the position embedding; until there it is float32.
        attention: See `Pi0Config`.
        rngs: For the parameters.
    """

    def __init__(
        self,
        config: SiglipConfig,
        *,
        image_size: int,
        features: int,
        dtype: Any,
        attention: Attention,
        rngs: nnx.Rngs,
    ):
        width, patch = config.width, (config.patch_size, config.patch_size)
        patches = (image_size // config.patch_size) ** 2
        position = nnx.initializers.normal(1 / math.sqrt(width))
        self.dtype = dtype
        self.embedding = nnx.Conv(3, width, patch, strides=patch, padding="VALID", rngs=rngs)
        self.pos_embedding = nnx.Param(position(rngs.params(), (1, patches, width), jnp.float32))
        self.Transformer = Transformer(config, dtype=dtype, attention=attention, rngs=rngs)
        self.head = nnx.Linear(width, features, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b s d"]:
        """Encodes pictures in `[-1, 1]`."""
        patches = self.embedding(images.astype(jnp.float32))
        x = jax.lax.collapse(patches, 1, 3) + self.pos_embedding[...]
        return self.head(self.Transformer(x.astype(self.dtype)))


class Transformer(nnx.Module):
    """The blocks and the norm after them."""

    def __init__(self, config: SiglipConfig, *, dtype: Any, attention: Attention, rngs: nnx.Rngs):
        def make(rngs: nnx.Rngs) -> EncoderBlock:
            return EncoderBlock(config, dtype=dtype, attention=attention, rngs=rngs)

        self.encoderblock = stack(make, config.depth, rngs)
        self.encoder_norm = LayerNorm(config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Runs all blocks."""
        x, _ = scan(self.encoderblock, lambda block, x, _: (block(x), None), x, None)
        return self.encoder_norm(x)


class EncoderBlock(nnx.Module):
    """Attention, then feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: SiglipConfig, *, dtype: Any, attention: Attention, rngs: nnx.Rngs):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.LayerNorm_0 = LayerNorm(config.width, rngs=rngs)
        self.MultiHeadDotProductAttention_0 = SelfAttention(config, attention=attention, **kwargs)
        self.LayerNorm_1 = LayerNorm(config.width, rngs=rngs)
        self.MlpBlock_0 = MlpBlock(config, **kwargs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """One block."""
        x = x + self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x))
        return x + self.MlpBlock_0(self.LayerNorm_1(x))


class LayerNorm(nnx.LayerNorm):
    """A layer norm in float32, whose result has the dtype of `x`.

    With `dtype=bfloat16`, newer releases of flax would round scale and bias first.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"], *, mask: Any = None) -> Float[Array, "b s d"]:
        """Norms."""
        return super().__call__(x, mask=mask).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Every patch sees every patch."""

    def __init__(self, config: SiglipConfig, *, attention: Attention, dtype: Any, rngs: nnx.Rngs):
        heads = (config.num_heads, config.width // config.num_heads)
        self.attention: Attention = attention
        self.query = nnx.LinearGeneral(config.width, heads, dtype=dtype, rngs=rngs)
        self.key = nnx.LinearGeneral(config.width, heads, dtype=dtype, rngs=rngs)
        self.value = nnx.LinearGeneral(config.width, heads, dtype=dtype, rngs=rngs)
        self.out = nnx.LinearGeneral(heads, config.width, axis=(-2, -1), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Attends and projects back."""
        query = self.query(x)
        query = query / math.sqrt(query.shape[-1])
        encoded = attend(
            query,
            self.key(x),
            self.value(x),
            implementation=self.attention,
            logits_dtype=query.dtype,  # as it was trained
        )
        return self.out(encoded)


class MlpBlock(nnx.Module):
    """Two dense layers around a GELU."""

    def __init__(self, config: SiglipConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.Dense_0 = nnx.Linear(config.width, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.Dense_1 = nnx.Linear(config.mlp_dim, config.width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Widens, bends, narrows."""
        return self.Dense_1(jax.nn.gelu(self.Dense_0(x), approximate=True))
