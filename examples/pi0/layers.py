"""The layers of a Gemma expert: projections, feed-forward, LoRA, RoPE, text embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.pi0.config import GemmaConfig, LoRAConfig
from taskcond import TaskUpdate

Updates = Mapping[str, TaskUpdate]
"""The updates that tasks have of projections, by the names of these. Others stay as they are."""

NO_UPDATES: Updates = {}


class Projection(NamedTuple):
    """The computation of a projection.

    Attributes:
        equation: The einsum of input and weight.
        shape: The shape of the weight.
    """

    equation: str
    shape: tuple[int, ...]


def attention_projections(expert: GemmaConfig) -> dict[str, Projection]:
    """Returns the projections of an expert's attention, by their published names.

    With as many key-value heads as query heads, the published weights have one matrix for queries,
    keys and values, and otherwise two.
    """
    n, k, d, h = expert.num_heads, expert.num_kv_heads, expert.width, expert.head_dim
    output = {"attn_vec_einsum": Projection("btnh,nhd->btd", (n, h, d))}
    if k == n:
        return {"qkv_einsum": Projection("btd,cndh->cbtnh", (3, n, d, h)), **output}
    query = Projection("btd,ndh->btnh", (n, d, h))
    return {"q_einsum": query, "kv_einsum": Projection("btd,ckdh->cbtkh", (2, k, d, h)), **output}


def feed_forward_projections(expert: GemmaConfig) -> dict[str, Projection]:
    """Returns the projections of an expert's feed-forward."""
    d, f = expert.width, expert.mlp_dim
    into, out = Projection("btd,df->btf", (d, f)), Projection("btf,fd->btd", (f, d))
    return {"mlp_gate": into, "mlp_in": into, "mlp_out": out}


def add_update(updates: Updates, name: str, x: Array, y: Array) -> Array:
    """Returns the output `y` of a projection of `x`, with the update of each task if it has one."""
    return updates[name](x, y) if name in updates else y


class Embedder(nnx.Module):
    """The table of text embeddings."""

    def __init__(self, vocab_size: int, width: int, *, dtype: np.dtype, rngs: nnx.Rngs):
        init = nnx.initializers.normal(1 / math.sqrt(width))
        self.dtype = dtype
        self.input_embedding = nnx.Param(init(rngs.params(), (vocab_size, width), jnp.float32))

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Returns the rows of these token ids, times `sqrt(width)`."""
        rows = self.input_embedding[...][ids]
        return (rows * math.sqrt(rows.shape[-1])).astype(self.dtype)


class Einsum(nnx.Module):
    """`einsum(equation, x, w)`, plus a low-rank update where `lora` is set.

    Args:
        equation: For `x` and `w`. The last two axes of `w` are the input and the output features.
        shape: The shape of `w`.
        lora: The low-rank update, or `None` for none.
        dtype: The dtype of the computation.
        rngs: Draws the parameters.
    """

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        *,
        lora: LoRAConfig | None,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.equation = equation
        self.dtype = dtype
        self.lora = lora
        self.w = nnx.Param(_einsum_init(equation)(rngs.params(), shape, jnp.float32))
        if lora:
            self.lora_a, self.lora_b = _low_rank(shape, lora.rank, rngs)

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
    """`linear(gelu(x @ gate) * (x @ up))`, with `gating_einsum = [gate, up]`.

    The low-rank updates are not scaled by `alpha / rank`, unlike those of the attention: the
    published weights were trained so.
    """

    def __init__(self, config: GemmaConfig, *, dtype: np.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.lora = config.lora
        gating = (2, config.width, config.mlp_dim)
        self.gating_einsum = nnx.Param(_dense_init(rngs, gating))
        if config.lora:
            self.gating_einsum_lora_a, self.gating_einsum_lora_b = _low_rank(
                gating, config.lora.rank, rngs
            )
        linear = (config.mlp_dim, config.width)
        self.linear = nnx.Param(_dense_init(rngs, linear))
        if config.lora:
            self.linear_lora_a, self.linear_lora_b = _low_rank(linear, config.lora.rank, rngs)

    def __call__(
        self, x: Float[Array, "b t d"], updates: Updates = NO_UPDATES
    ) -> Float[Array, "b t d"]:
        """Computes in `dtype`; `updates` are those of tasks."""
        gate = jax.nn.gelu(add_update(updates, "mlp_gate", x, self._gating(x, 0)), approximate=True)
        hidden = gate * add_update(updates, "mlp_in", x, self._gating(x, 1))
        return add_update(updates, "mlp_out", hidden, self._linear(hidden))

    def _gating(self, x: Array, index: int) -> Array:
        w = self.gating_einsum[...][index].astype(self.dtype)
        if not self.lora:
            return x @ w
        a = self.gating_einsum_lora_a[...][index].astype(self.dtype)
        b = self.gating_einsum_lora_b[...][index].astype(self.dtype)
        return x @ w + x @ a @ b

    def _linear(self, x: Array) -> Array:
        w = self.linear[...].astype(self.dtype)
        if not self.lora:
            return x @ w
        a = self.linear_lora_a[...].astype(self.dtype)
        b = self.linear_lora_b[...].astype(self.dtype)
        return x @ w + x @ a @ b


def rope(x: Float[Array, "b t n h"], positions: Int[Array, "b t"]) -> Float[Array, "b t n h"]:
    """Turns the two halves of each head by the positions, in float32 and back.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    half = x.shape[-1] // 2
    wavelength = 10_000 ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None] / wavelength
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x, 2, axis=-1)  # float32 from here on, as sin and cos are; see `normalize`
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _dense_init(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Array:
    """Draws a weight `[*batch, in, out]` with variance 1 / in."""
    init = nnx.initializers.lecun_normal(batch_axis=tuple(range(len(shape) - 2)))
    return init(rngs.params(), shape, jnp.float32)


def _einsum_init(equation: str) -> nnx.Initializer:
    """Returns the initializer of `w` with variance 1 / (number of the inputs that are summed)."""
    x, w, _ = _split(equation)
    inputs = tuple(i for i, axis in enumerate(w) if axis in x)
    outputs = (len(w) - 1,)
    batch = tuple(i for i in range(len(w)) if i not in inputs + outputs)
    return nnx.initializers.lecun_normal(in_axis=inputs, out_axis=outputs, batch_axis=batch)


def _low_rank(
    shape: tuple[int, ...], rank: int, rngs: nnx.Rngs
) -> tuple[nnx.LoRAParam, nnx.LoRAParam]:
    """Draws LoRA's factors of a weight: `[..., in, rank]`, and zeros `[..., rank, out]`."""
    *batch, inputs, outputs = shape
    a = nnx.initializers.normal(0.01)(rngs.params(), (*batch, inputs, rank), jnp.float32)
    return nnx.LoRAParam(a), nnx.LoRAParam(jnp.zeros((*batch, rank, outputs)))


def _low_rank_equations(equation: str) -> tuple[str, str]:
    """Returns `x, a -> hidden` and `hidden, b -> y` for `x, w -> y` with `w[..., in, out]`.

    >>> _low_rank_equations("btnh,nhd->btd")
    ('btnh,nhl->btl', 'btl,nld->btd')
    """
    x, w, y = _split(equation)
    hidden = y.replace(w[-1], "l")
    return f"{x},{w[:-1]}l->{hidden}", f"{hidden},{w.replace(w[-2], 'l')}->{y}"


def _split(equation: str) -> tuple[str, str, str]:
    inputs, y = equation.split("->")
    x, w = inputs.split(",")
    return x, w, y
