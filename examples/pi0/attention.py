"""Attention with grouped key-value heads: an exact reference, and JAX's fused kernels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from examples.pi0.config import AttentionImplementation

_LARGE = 128 * 2**20
"""Bytes of float32 logits from which on cuDNN, which does not hold them, is taken.

With smaller ones, as in sampling, XLA was faster on an H200: 32 ms instead of 42 for a chunk."""

MASKED = -2.3819763e38  # finite: a query that sees nothing has equal probabilities and no NaN


def attend(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"] | None = None,
    *,
    implementation: AttentionImplementation = "auto",
    logits_dtype: Any = jnp.float32,
) -> Float[Array, "b t n h"]:
    """Computes softmax attention. Query head `i` uses key-value head `i // (n // k)`.

    Args:
        query: Queries, scaled already.
        key: Keys.
        value: Values; the probabilities have their dtype.
        mask: True where a query sees a key; `None` if every query sees every key.
        implementation: See `Pi0Config.attention`.
        logits_dtype: The dtype of the logits; those of cuDNN are always float32.

    Raises:
        NotImplementedError, RuntimeError, ValueError: `implementation="cudnn"`, and cuDNN is absent
            or does not support these shapes or this dtype.

    >>> x = jnp.ones((1, 3, 2, 4))
    >>> attend(x, x, x).shape
    (1, 3, 2, 4)
    """
    if implementation == "auto":
        b, t, n, _ = query.shape
        is_large = 4 * b * n * t * key.shape[1] >= _LARGE
        use_cudnn = is_large and _cudnn_takes(query, key, value, mask)
        implementation = "cudnn" if use_cudnn else "xla"
    # XLA's implementation is not fused either, so the plain one costs no more where XLA's would
    # not keep the dtype.
    if implementation == "plain" or (implementation == "xla" and logits_dtype != jnp.float32):
        return _plain(query, key, value, mask, logits_dtype)
    return _fused(query, key, value, mask, implementation)


def _plain(query: Array, key: Array, value: Array, mask: Array | None, dtype: Any) -> Array:
    b, t, n, h = query.shape
    k = key.shape[2]
    query = query.reshape(b, t, k, n // k, h)
    logits = jnp.einsum("btkgh,bskh->bkgts", query, key, preferred_element_type=dtype)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    probs = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", probs, value).reshape(b, t, n, h)


def _fused(
    query: Array, key: Array, value: Array, mask: Array | None, implementation: Any
) -> Array:
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else mask[:, None],
        scale=1.0,
        implementation=implementation,
    )


def _cudnn_takes(query: Array, key: Array, value: Array, mask: Array | None) -> bool:
    # The limits of cuDNN (half precision, the head size, even lengths for gradients) change with
    # the GPU and the release, so we trace the call and its gradient, rather than list the limits.
    if jax.default_backend() != "gpu":
        return False
    attention = functools.partial(_fused, implementation="cudnn")
    loss = lambda q, k, v, m: attention(q, k, v, m).astype(jnp.float32).sum()  # noqa: E731
    try:
        jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), query, key, value, mask)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True
