"""Two Gemma experts that share one attention: PaliGemma's language model and the action expert.

Sources: "Gemma: Open Models Based on Gemini Research and Technology", 2024; Black et al., "π0: A
Vision-Language-Action Flow Model for General Robot Control", 2024.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from examples.pi0 import config as sizes
from examples.pi0.attention import attend
from examples.pi0.config import GemmaConfig, LoRAConfig
from examples.pi0.stack import map_layers, scan, stack

PALIGEMMA, ACTION_EXPERT = "", "_1"
"""The experts, by what the published names of their parameters end in."""

Tokens = dict[str, Float[Array, "b _t _d"]]
"""Tokens by expert, PaliGemma's first; an expert that does not take part is absent."""


class Modulations(NamedTuple):
    """`[scale, shift, gate]` of the action expert's adaptive norms, along the last axis.

    Attributes:
        attention: `[depth, *b, 3 * width]`, of the norms before attention.
        feed_forward: `[depth, *b, 3 * width]`, of the norms before the feed-forward.
        final: `[*b, 3 * width]`, of the final norm, whose gate is not used.
    """

    attention: Float[Array, "..."]
    feed_forward: Float[Array, "..."]
    final: Float[Array, "..."]


BlockModulation = tuple[Float[Array, "..."] | None, Float[Array, "..."] | None]
"""Those of one layer, before attention and before the feed-forward; `None`: not adaptive."""


class Cache(NamedTuple):
    """Keys and values of all layers: `[depth, b, s, num_kv_heads, head_dim]` each."""

    key: Float[Array, "..."]
    value: Float[Array, "..."]


class Gemma(nnx.Module):
    """Both experts, layer by layer.

    Args:
        paligemma: Sizes of the first expert.
        action_expert: Sizes of the second.
        vocab_size: Rows of the text embedding.
        adaptive: Whether the norms of the action expert are adaptive (π0.5).
        dtype: Of the computation.
        attention: See `Pi0Config`.
        rngs: For the parameters.
    """

    def __init__(
        self,
        paligemma: GemmaConfig,
        action_expert: GemmaConfig,
        *,
        vocab_size: int,
        adaptive: bool,
        dtype: Any,
        attention: sizes.Attention,
        rngs: nnx.Rngs,
    ):
        experts = {PALIGEMMA: paligemma, ACTION_EXPERT: action_expert}

        def make(rngs: nnx.Rngs) -> Block:
            return Block(experts, adaptive=adaptive, dtype=dtype, attention=attention, rngs=rngs)

        self.dtype = dtype
        self.embedder = Embedder(vocab_size, paligemma.width, dtype=dtype, rngs=rngs)
        self.layers = stack(make, paligemma.depth, rngs)
        self.final_norm = RMSNorm(paligemma.width)
        self.final_norm_1 = make_norm(action_expert.width, adaptive, dtype, rngs)

    def __call__(
        self,
        tokens: Tokens,
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        *,
        condition: Float[Array, "#b d"] | None = None,
        modulations: Modulations | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tokens, Cache | None]:
        """Runs the experts that `tokens` has, through all layers.

        Args:
            tokens: `[b, t, width]` by expert.
            positions: Of all tokens, for RoPE.
            mask: Which tokens each token sees: the cached ones first, then `tokens`.
            condition: `[b, width]`, of the adaptive norms, where they take part.
            modulations: `self.modulations(condition)`, in place of that.
            cache: Keys and values of earlier tokens.

        Returns:
            The tokens after the final norms; and, where PaliGemma runs alone, their cache.
        """
        tokens = {expert: x.astype(self.dtype) for expert, x in tokens.items()}

        def step(block: Block, tokens: Tokens, x: Any) -> tuple[Tokens, Cache | None]:
            known, cache = x
            return block(tokens, positions, mask, known or block.modulation(condition), cache)

        known = modulations and (modulations.attention, modulations.feed_forward)
        tokens, new_cache = scan(self.layers, step, tokens, (known, cache))
        final = modulations.final if modulations else self.final_norm_1.modulation(condition)
        for expert, x in tokens.items():
            tokens[expert], _ = getattr(self, f"final_norm{expert}")(x, final)
        return tokens, new_cache

    def modulations(self, condition: Float[Array, "*b d"]) -> Modulations:
        """What all adaptive norms do under a condition: all layers in one batched product."""
        attention, feed_forward = map_layers(self.layers, Block.modulation, condition)
        final = self.final_norm_1.modulation(condition)
        assert final is not None, "these norms are not adaptive"
        return Modulations(attention, feed_forward, final)

    def for_sampling(self) -> Gemma:
        """A copy with the action expert's matrices in the compute dtype: cast once, not a step."""
        graph, state = nnx.split(self)

        def cast(path: Any, x: Array) -> Array:
            name = jax.tree_util.keystr(path)
            is_norm = "'scale'" in name  # RMSNorm computes in float32
            return x.astype(self.dtype) if f"{ACTION_EXPERT}'" in name and not is_norm else x

        return nnx.merge(graph, jax.tree_util.tree_map_with_path(cast, state))


class Block(nnx.Module):
    """One layer of both experts: attention together, feed-forward each on its own."""

    def __init__(
        self,
        experts: dict[str, GemmaConfig],
        *,
        adaptive: bool,
        dtype: Any,
        attention: sizes.Attention,
        rngs: nnx.Rngs,
    ):
        self.attn = Attention(experts, dtype=dtype, attention=attention, rngs=rngs)
        for expert, config in experts.items():
            is_adaptive = adaptive and expert == ACTION_EXPERT
            for name in ("pre_attention_norm", "pre_ffw_norm"):
                setattr(self, name + expert, make_norm(config.width, is_adaptive, dtype, rngs))
            setattr(self, f"mlp{expert}", FeedForward(config, dtype=dtype, rngs=rngs))

    def __call__(
        self,
        tokens: Tokens,
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        modulation: BlockModulation,
        cache: Cache | None,
    ) -> tuple[Tokens, Cache | None]:
        """As `Gemma.__call__`, for one layer."""
        for_attention, for_mlp = modulation
        normed, gates = {}, {}
        for expert, x in tokens.items():
            norm = getattr(self, f"pre_attention_norm{expert}")
            normed[expert], gates[expert] = norm(x, for_attention)
        attended, new_cache = self.attn(normed, positions, mask, cache)
        result = {}
        for expert, x in tokens.items():
            x = add_gated(x, attended[expert], gates[expert])
            y, gate = getattr(self, f"pre_ffw_norm{expert}")(x, for_mlp)
            result[expert] = add_gated(x, getattr(self, f"mlp{expert}")(y), gate)
        return result, None if ACTION_EXPERT in tokens else new_cache

    def modulation(self, condition: Float[Array, "*b d"] | None) -> BlockModulation:
        """What its two adaptive norms do under a condition."""
        return (
            getattr(self, f"pre_attention_norm{ACTION_EXPERT}").modulation(condition),
            getattr(self, f"pre_ffw_norm{ACTION_EXPERT}").modulation(condition),
        )


class Attention(nnx.Module):
    """One attention over the tokens of all experts; each expert has its own projections."""

    def __init__(
        self,
        experts: dict[str, GemmaConfig],
        *,
        dtype: Any,
        attention: sizes.Attention,
        rngs: nnx.Rngs,
    ):
        self.attention: sizes.Attention = attention
        for expert, config in experts.items():
            d, n, k, h = config.width, config.num_heads, config.num_kv_heads, config.head_dim

            def einsum(equation: str, *shape: int, lora: LoRAConfig | None = config.lora) -> Einsum:
                return Einsum(equation, shape, lora=lora, dtype=dtype, rngs=rngs)

            if k == n:
                setattr(self, f"qkv_einsum{expert}", einsum("btd,cndh->cbtnh", 3, n, d, h))
            else:
                setattr(self, f"q_einsum{expert}", einsum("btd,ndh->btnh", n, d, h))
                setattr(self, f"kv_einsum{expert}", einsum("btd,ckdh->cbtkh", 2, k, d, h))
            setattr(self, f"attn_vec_einsum{expert}", einsum("btnh,nhd->btd", n, h, d))

    def __call__(
        self,
        tokens: Tokens,
        positions: Int[Array, "b t"],
        mask: Bool[Array, "b t s"],
        cache: Cache | None,
    ) -> tuple[Tokens, Cache]:
        """Attends; returns the tokens, and the keys and values that were seen."""
        parts = [self._project(expert, x) for expert, x in tokens.items()]
        query, key, value = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        query = rope(query, positions) * query.shape[-1] ** -0.5
        key = rope(key, positions)
        if cache is not None:
            key = jnp.concatenate([cache.key, key], axis=1)
            value = jnp.concatenate([cache.value, value], axis=1)
        encoded = attend(query, key, value, mask, implementation=self.attention)
        result, start = {}, 0
        for expert, x in tokens.items():
            part = encoded[:, start : start + x.shape[1]]
            result[expert] = getattr(self, f"attn_vec_einsum{expert}")(part)
            start += x.shape[1]
        return result, Cache(key, value)

    def _project(self, expert: str, x: Array) -> tuple[Array, Array, Array]:
        if hasattr(self, f"qkv_einsum{expert}"):
            query, key, value = getattr(self, f"qkv_einsum{expert}")(x)
        else:
            query = getattr(self, f"q_einsum{expert}")(x)
            key, value = getattr(self, f"kv_einsum{expert}")(x)
        return query, key, value


class Einsum(nnx.Module):
    """`einsum(equation, x, w)`, plus a low-rank update where `lora` is set.

    The last two axes of `w` are the input and the output features.
    """

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        *,
        lora: LoRAConfig | None,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.equation = equation
        self.dtype = dtype
        self.lora = lora
        x, w, _ = _split(equation)
        self.w = nnx.Param(dense_init(x, w)(rngs.params(), shape, jnp.float32))
        if lora:
            a, b = low_rank(shape, lora.rank, rngs)
            self.lora_a, self.lora_b = nnx.LoRAParam(a), nnx.LoRAParam(b)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Computes in `dtype`."""
        y = jnp.einsum(self.equation, x, self.w[...].astype(self.dtype))
        if not self.lora:
            return y
        # Over heads (attn_vec_einsum), both factors sum: the published weights were trained so.
        down, up = _low_rank_equations(self.equation)
        hidden = jnp.einsum(down, x, self.lora_a[...].astype(self.dtype))
        update = jnp.einsum(up, hidden, self.lora_b[...].astype(self.dtype))
        return y + update * (self.lora.alpha / self.lora.rank)


class FeedForward(nnx.Module):
    """`linear(gelu(x @ gate) * (x @ up))`, with `gating_einsum = [gate, up]`."""

    def __init__(self, config: GemmaConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.dtype = dtype
        self.lora = config.lora
        for name, shape in {
            "gating_einsum": (2, config.width, config.mlp_dim),
            "linear": (config.mlp_dim, config.width),
        }.items():
            w = nnx.initializers.lecun_normal(batch_axis=tuple(range(len(shape) - 2)))
            setattr(self, name, nnx.Param(w(rngs.params(), shape, jnp.float32)))
            if config.lora:
                a, b = low_rank(shape, config.lora.rank, rngs)
                setattr(self, f"{name}_lora_a", nnx.LoRAParam(a))
                setattr(self, f"{name}_lora_b", nnx.LoRAParam(b))

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Computes in `dtype`."""
        gate = jax.nn.gelu(self._dot(x, "gating_einsum", 0), approximate=True)
        return self._dot(gate * self._dot(x, "gating_einsum", 1), "linear", ...)

    def _dot(self, x: Array, name: str, index: Any) -> Array:
        w, *factors = (
            getattr(self, name + part)[...][index].astype(self.dtype)
            for part in ("", "_lora_a", "_lora_b")[: 3 if self.lora else 1]
        )
        # Not scaled by alpha / rank, unlike attention: the published weights were trained so.
        return x @ w + x @ factors[0] @ factors[1] if factors else x @ w


class RMSNorm(nnx.Module):
    """`x / rms(x) * (1 + scale)`, whatever the condition is, and no gate."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.zeros(width))

    def modulation(self, condition: Any) -> None:
        """None."""

    def __call__(
        self, x: Float[Array, "b t d"], modulation: Any = None
    ) -> tuple[Float[Array, "b t d"], None]:
        """Returns the normed tokens, and no gate."""
        return (normalize(x) * (1 + self.scale[...])).astype(x.dtype), None


class AdaptiveRMSNorm(nnx.Module):
    """`x / rms(x) * (1 + scale) + shift`, where scale, shift and gate depend on a condition.

    `modulation` makes them from the condition and `__call__` uses them: apart, because the
    condition is the same for all tokens, and known for all steps of sampling before the first.

    Source: Peebles and Xie, "Scalable Diffusion Models with Transformers" (adaLN), 2022.
    """

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.Dense_0 = nnx.Linear(width, 3 * width, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def modulation(self, condition: Float[Array, "*b d"] | None) -> Float[Array, "*b m"] | None:
        """`[scale, shift, gate]`, side by side; `None` without a condition."""
        return None if condition is None else self.Dense_0(condition)

    def __call__(
        self, x: Float[Array, "b t d"], modulation: Float[Array, "#b m"]
    ) -> tuple[Float[Array, "b t d"], Float[Array, "#b 1 d"]]:
        """Returns the normed tokens, and the gate of what is then added to the residual."""
        scale, shift, gate = jnp.split(modulation[:, None], 3, axis=-1)
        return (normalize(x) * (1 + scale) + shift).astype(x.dtype), gate


class Embedder(nnx.Module):
    """The table of text embeddings."""

    def __init__(self, vocab_size: int, width: int, *, dtype: Any, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1 / math.sqrt(width))
        self.dtype = dtype
        self.input_embedding = nnx.Param(init(rngs.params(), (vocab_size, width), jnp.float32))

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Rows times sqrt(width)."""
        rows = self.input_embedding[...][ids]
        return (rows * math.sqrt(rows.shape[-1])).astype(self.dtype)


def make_norm(width: int, adaptive: bool, dtype: Any, rngs: nnx.Rngs) -> RMSNorm | AdaptiveRMSNorm:
    """An RMS norm of either kind."""
    return AdaptiveRMSNorm(width, dtype=dtype, rngs=rngs) if adaptive else RMSNorm(width)


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """`x` over its root mean square, in float32."""
    # Cast at each use, not once: bfloat16 gradients are then rounded as the published ones are.
    variance = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(variance + 1e-6)


def add_gated(
    x: Float[Array, "b t d"], y: Float[Array, "b t d"], gate: Float[Array, "#b 1 d"] | None
) -> Float[Array, "b t d"]:
    """The residual: `x + gate * y`, or `x + y` without a gate."""
    return x + y if gate is None else x + y * gate


def rope(x: Float[Array, "b t n h"], positions: Int[Array, "b t"]) -> Float[Array, "b t n h"]:
    """Rotary position embedding on split halves, in float32 and back.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    half = x.shape[-1] // 2
    wavelength = 10_000 ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None] / wavelength
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x, 2, axis=-1)  # float32 from here on, as sin and cos are; see `normalize`
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def dense_init(x: str, w: str) -> nnx.Initializer:
    """Variance 1 / (number of inputs) for a weight whose axes are named as in an einsum."""
    inputs = tuple(i for i, axis in enumerate(w) if axis in x)
    outputs = (len(w) - 1,)
    batch = tuple(i for i in range(len(w)) if i not in inputs + outputs)
    return nnx.initializers.lecun_normal(in_axis=inputs, out_axis=outputs, batch_axis=batch)


def low_rank(shape: tuple[int, ...], rank: int, rngs: nnx.Rngs) -> tuple[Array, Array]:
    """LoRA's factors of a weight: `[..., in, rank]`, and zeros `[..., rank, out]`."""
    *batch, inputs, outputs = shape
    a = nnx.initializers.normal(0.01)(rngs.params(), (*batch, inputs, rank), jnp.float32)
    return a, jnp.zeros((*batch, rank, outputs))


def _split(equation: str) -> tuple[str, str, str]:
    inputs, y = equation.split("->")
    x, w = inputs.split(",")
    return x, w, y


def _low_rank_equations(equation: str) -> tuple[str, str]:
    """For `x, w -> y` with `w[..., in, out]`: `x, a -> hidden` and `hidden, b -> y`.

    >>> _low_rank_equations("btnh,nhd->btd")
    ('btnh,nhl->btl', 'btl,nld->btd')
    """
    x, w, y = _split(equation)
    hidden = y.replace(w[-1], "l")
    return f"{x},{w[:-1]}l->{hidden}", f"{hidden},{w.replace(w[-2], 'l')}->{y}"
