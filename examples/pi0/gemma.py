"""Two Gemma experts that share one attention: PaliGemma's language model and the action expert.

The names of the parameters are the published ones: those of the action expert end in `_1`.

Sources: "Gemma: Open Models Based on Gemini Research and Technology", 2024; Black et al., "π0: A
Vision-Language-Action Flow Model for General Robot Control", 2024.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from examples.pi0.attention import attend
from examples.pi0.config import AttentionImplementation, Pi0Config
from examples.pi0.layers import (
    NO_UPDATES,
    Einsum,
    Embedder,
    FeedForward,
    Updates,
    add_update,
    attention_projections,
    rope,
)
from examples.pi0.norms import AdaptiveRMSNorm, RMSNorm, add_gated
from examples.pi0.stack import map_layers, scan, stack


class Expert(enum.IntEnum):
    """The experts, in the order in which their tokens are joined."""

    PALIGEMMA = 0
    ACTION = 1


Tokens = dict[Expert, Float[Array, "b _t _d"]]
"""The tokens of each expert, PaliGemma's first. An expert that does not take part is absent."""


class Modulations(NamedTuple):
    """`[scale, shift, gate]` of the action expert's adaptive norms, along the last axis.

    Attributes:
        attention: `[depth, *b, 3 * width]` for the norms before attention.
        feed_forward: `[depth, *b, 3 * width]` for the norms before the feed-forward.
        final: `[*b, 3 * width]` for the final norm, whose gate is not used.
    """

    attention: Float[Array, "..."]
    feed_forward: Float[Array, "..."]
    final: Float[Array, "..."]


NormCondition = Modulations | Float[Array, "#b d"] | None
"""What the adaptive norms depend on: a condition, or the modulations computed from one. `None` if
the norms are not adaptive, or if the action expert does not take part."""

BlockModulation = tuple[Float[Array, "..."] | None, Float[Array, "..."] | None]
"""The modulations of one layer, before attention and before the feed-forward. `None` if the norms
are not adaptive."""


class Cache(NamedTuple):
    """Keys and values of all layers: `[depth, b, s, num_kv_heads, head_dim]` each."""

    key: Float[Array, "..."]
    value: Float[Array, "..."]


class Gemma(nnx.Module):
    """A stack of layers that both experts share. In π0.5, the action norms are adaptive.

    Args:
        config: The model's.
        rngs: Draws the parameters.
    """

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        self.dtype = config.compute_dtype
        width = config.paligemma.width
        self.embedder = Embedder(config.vocab_size, width, dtype=self.dtype, rngs=rngs)
        self.layers = stack(lambda rngs: Block(config, rngs=rngs), config.paligemma.depth, rngs)
        self.final_norm = RMSNorm(width)
        self.final_norm_1 = _action_norm(config, rngs)
        self.unroll = False

    def __call__(
        self,
        tokens: Tokens,
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        *,
        condition: NormCondition = None,
        cache: Cache | None = None,
        updates: Updates = NO_UPDATES,
    ) -> tuple[Tokens, Cache | None]:
        """Runs the experts that have tokens through all layers.

        Args:
            tokens: `[b, t, width]` for each expert.
            positions: The positions of all tokens, for RoPE.
            mask: Which tokens each token sees: the cached ones first, then `tokens`.
            condition: `[b, width]` for the adaptive norms; or `self.modulations(condition)`, if
                that was computed before.
            cache: Keys and values of earlier tokens.
            updates: The updates that tasks have of the action expert's projections, layer by layer.

        Returns:
            The tokens after the final norms, and the cache of PaliGemma's tokens if that expert
            runs alone.
        """
        if isinstance(condition, Modulations):
            vector, per_layer = None, (condition.attention, condition.feed_forward)
        else:
            vector, per_layer = condition, None

        def step(
            block: Block, tokens: Tokens, x: tuple[BlockModulation | None, Cache | None, Updates]
        ) -> tuple[Tokens, Cache | None]:
            modulation, cache, updates = x
            modulation = modulation or block.modulation(vector)
            return block(tokens, positions, mask, modulation, cache, updates)

        tokens = {expert: x.astype(self.dtype) for expert, x in tokens.items()}
        of_layers = (per_layer, cache, updates)
        tokens, new_cache = scan(self.layers, step, tokens, of_layers, unroll=self.unroll)
        if isinstance(condition, Modulations):
            final = condition.final
        else:
            final = self.final_norm_1.modulation(condition)
        norms = {Expert.PALIGEMMA: self.final_norm, Expert.ACTION: self.final_norm_1}
        return {expert: norms[expert](x, final)[0] for expert, x in tokens.items()}, new_cache

    def modulations(self, condition: Float[Array, "*b d"]) -> Modulations:
        """Computes what all adaptive norms do under a condition, in one batched product."""
        attention, feed_forward = map_layers(self.layers, Block.modulation, condition)
        final = self.final_norm_1.modulation(condition)
        assert final is not None, "these norms are not adaptive"
        return Modulations(attention, feed_forward, final)

    def for_sampling(self, *, unroll: bool) -> Gemma:
        """Returns a copy with the action expert's matrices in the compute dtype.

        They are then cast once, and not in every step of sampling.

        Args:
            unroll: Whether the copy unrolls its layers; see `scan`.
        """
        copy = nnx.clone(self)
        copy.unroll = unroll
        for module in (*copy.layers.action_modules(), copy.final_norm_1):
            if not isinstance(module, RMSNorm):  # which computes in float32
                cast = jax.tree.map(lambda x: x.astype(self.dtype), nnx.state(module))
                nnx.update(module, cast)
        return copy


class Block(nnx.Module):
    """One layer of both experts, which share the attention but not the feed-forward."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        dtype = config.compute_dtype
        self.attn = Attention(config, rngs=rngs)
        self.pre_attention_norm = RMSNorm(config.paligemma.width)
        self.pre_ffw_norm = RMSNorm(config.paligemma.width)
        self.mlp = FeedForward(config.paligemma, dtype=dtype, rngs=rngs)
        self.pre_attention_norm_1 = _action_norm(config, rngs)
        self.pre_ffw_norm_1 = _action_norm(config, rngs)
        self.mlp_1 = FeedForward(config.action_expert, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Tokens,
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        modulation: BlockModulation,
        cache: Cache | None,
        updates: Updates,
    ) -> tuple[Tokens, Cache | None]:
        """Runs one layer; see `Gemma.__call__`."""
        attention_norms = {
            Expert.PALIGEMMA: self.pre_attention_norm,
            Expert.ACTION: self.pre_attention_norm_1,
        }
        ffw_norms = {Expert.PALIGEMMA: self.pre_ffw_norm, Expert.ACTION: self.pre_ffw_norm_1}
        mlps = {Expert.PALIGEMMA: self.mlp, Expert.ACTION: self.mlp_1}
        for_attention, for_ffw = modulation
        normed, gates = {}, {}
        for expert, x in tokens.items():
            normed[expert], gates[expert] = attention_norms[expert](x, for_attention)
        attended, new_cache = self.attn(normed, positions, mask, cache, updates)
        result = {}
        for expert, x in tokens.items():
            x = add_gated(x, attended[expert], gates[expert])
            y, gate = ffw_norms[expert](x, for_ffw)
            y = mlps[expert](y, updates if expert == Expert.ACTION else NO_UPDATES)
            result[expert] = add_gated(x, y, gate)
        return result, None if Expert.ACTION in tokens else new_cache

    def modulation(self, condition: Float[Array, "*b d"] | None) -> BlockModulation:
        """Returns the modulations of the layer's two adaptive norms under a condition."""
        return (
            self.pre_attention_norm_1.modulation(condition),
            self.pre_ffw_norm_1.modulation(condition),
        )

    def action_modules(self) -> tuple[nnx.Module, ...]:
        """Returns the modules of the action expert."""
        return (
            *self.attn.action_modules(),
            self.pre_attention_norm_1,
            self.pre_ffw_norm_1,
            self.mlp_1,
        )


class Attention(nnx.Module):
    """One attention over the tokens of all experts; each expert has its own projections."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        self.implementation: AttentionImplementation = config.attention
        self.names = tuple(attention_projections(config.paligemma))
        for suffix, expert in (("", config.paligemma), ("_1", config.action_expert)):
            for name, (equation, shape) in attention_projections(expert).items():
                einsum = Einsum(
                    equation, shape, lora=expert.lora, dtype=config.compute_dtype, rngs=rngs
                )
                setattr(self, name + suffix, einsum)

    def __call__(
        self,
        tokens: Tokens,
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        cache: Cache | None,
        updates: Updates,
    ) -> tuple[Tokens, Cache]:
        """Returns the tokens, and the keys and values that were seen."""
        query, key, value = self._project(tokens, updates)
        query = rope(query, positions) * query.shape[-1] ** -0.5
        key = rope(key, positions)
        if cache is not None:
            key = jnp.concatenate([cache.key, key], axis=1)
            value = jnp.concatenate([cache.value, value], axis=1)
        encoded = attend(query, key, value, mask, implementation=self.implementation)
        result, start = {}, 0
        for expert, x in tokens.items():
            part = encoded[:, start : start + x.shape[1]]
            result[expert] = self._apply("attn_vec_einsum", expert, part, updates)
            start += x.shape[1]
        return result, Cache(key, value)

    def _project(self, tokens: Tokens, updates: Updates) -> tuple[Array, Array, Array]:
        """Returns query, key and value of all tokens, expert after expert."""
        parts = []
        for expert, x in tokens.items():
            *queries, others = (self._apply(name, expert, x, updates) for name in self.names[:-1])
            parts.append((*queries, *others))  # `others` holds key and value, or all three
        query, key, value = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        return query, key, value

    def _apply(self, name: str, expert: Expert, x: Array, updates: Updates) -> Array:
        """Returns the projection of an expert's tokens; tasks update those of the action expert."""
        if expert == Expert.PALIGEMMA:
            return getattr(self, name)(x)
        return add_update(updates, name, x, getattr(self, name + "_1")(x))

    def action_modules(self) -> tuple[nnx.Module, ...]:
        """Returns the projections of the action expert."""
        return tuple(getattr(self, name + "_1") for name in self.names)


def _action_norm(config: Pi0Config, rngs: nnx.Rngs) -> RMSNorm | AdaptiveRMSNorm:
    width = config.action_expert.width
    if config.pi05:
        return AdaptiveRMSNorm(width, dtype=config.compute_dtype, rngs=rngs)
    return RMSNorm(width)
