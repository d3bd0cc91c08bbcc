"""FLOPs and bytes of a compiled function, as XLA counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import jax


class Cost(NamedTuple):
    """Floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


def cost(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Returns the cost of one call, from XLA's analysis of the compiled function.

    >>> x = jax.numpy.ones((8, 8))
    >>> cost(lambda x: x @ x, x).flops
    1024.0
    """
    with _unrolled():
        compiled = jax.jit(function).lower(*arguments).compile()
    analysis: Any = compiled.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis  # older releases of jax
    return Cost(analysis["flops"], analysis["bytes accessed"])


@contextmanager
def _unrolled() -> Iterator[None]:
    # XLA counts the body of a loop once, no matter how often it runs.
    with (
        mock.patch.object(jax.lax, "scan", _always_unrolled(jax.lax.scan)),
        mock.patch.object(jax.lax, "fori_loop", _always_unrolled(jax.lax.fori_loop)),
    ):
        yield


def _always_unrolled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a loop that is unrolled whatever its caller says."""
    return lambda *args, unroll=None, **kwargs: loop(*args, unroll=True, **kwargs)
