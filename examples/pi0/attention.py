"""Attention with grouped key-value heads: one exact reference, and JAX's fused kernels."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from examples.pi0.config import Attention

MASKED = -2.3819763e38  # finite, so that a row that sees nothing is uniform and not NaN


def attend(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b s k h"],
    value: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"] | None = None,
    *,
    implementation: Attention = "auto",
    logits_dtype: Any = jnp.float32,
) -> Float[Array, "b t n h"]:
    """Softmax attention. Queries come scaled; query head `i` uses key-value head `i // (n // k)`.

    The probabilities have the dtype of `value`. A true `mask` means "sees". `logits_dtype` is that
    of the logits, but for cuDNN, whose are float32.

    Raises:
        NotImplementedError, RuntimeError, ValueError: `implementation="cudnn"` and cuDNN is absent
            or does not take these shapes or this dtype.

    >>> x = jnp.ones((1, 3, 2, 4))
    >>> attend(x, x, x).shape
    (1, 3, 2, 4)
    """
    if implementation == "auto":
        implementation = "cudnn" if _cudnn_takes(query, key, value, mask) else "xla"
    # XLA's is no fused kernel either: where it cannot keep the dtype, there is nothing to lose.
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
    # Its limits (half precision, the head size, even lengths for gradients) change with the GPU
    # and the release, so we trace it, gradient and all, rather than list them.
    if jax.default_backend() != "gpu":
        return False
    attention = functools.partial(_fused, implementation="cudnn")
    loss = lambda q, k, v, m: attention(q, k, v, m).astype(jnp.float32).sum()  # noqa: E731
    try:
        jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), query, key, value, mask)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True
