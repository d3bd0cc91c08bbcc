"""Equal layers, stacked into one module with a depth axis and run by one scan."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jaxtyping import Array

Layer = TypeVar("Layer", bound=nnx.Module)

_ROWS: contextvars.ContextVar[Sharding | None] = contextvars.ContextVar("rows", default=None)


@contextlib.contextmanager
def keep_rows_on(sharding: Sharding | None) -> Iterator[None]:
    """Keeps the rows of a batch on their devices between layers, in all that is traced within.

    Without it, where weights are split over devices too, XLA may split the features of a layer
    instead. It then holds the activations of the whole batch on each device.

    Args:
        sharding: Splits the first axis; `None` leaves the choice to XLA.
    """
    token = _ROWS.set(sharding)
    try:
        yield
    finally:
        _ROWS.reset(token)


def stack(make: Callable[[nnx.Rngs], Layer], depth: int, rngs: nnx.Rngs, axis: int = 0) -> Layer:
    """Makes `depth` layers; each parameter of the result has them along an axis.

    >>> layers = stack(lambda rngs: nnx.Linear(2, 3, rngs=rngs), 4, nnx.Rngs(0))
    >>> layers.kernel.shape
    (4, 2, 3)
    """
    return nnx.split_rngs(splits=depth)(nnx.vmap(make, in_axes=0, out_axes=axis))(rngs)


def scan(
    layers: Layer,
    step: Callable[[Layer, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    *,
    unroll: bool = False,
):
    """Runs `carry, y = step(layer, carry, x)` through all layers.

    The backward pass computes each layer again, so that memory holds one activation per layer.

    Args:
        layers: The layers, as `stack` makes them.
        step: See above.
        carry: The first `carry`.
        xs: The `x` of all layers, along their first axis.
        unroll: Whether to compile each layer by itself. It compiles longer, and runs faster where a
            layer is small: a loop copies the weights of a layer before it uses them.

    Returns:
        The last carry, and the stacked `y` of all layers.
    """
    graph, state = nnx.split(layers)
    rows = _ROWS.get()

    # prevent_cse is not needed within a scan, which keeps the two computations apart.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry: Any, inputs: Any):
        layer_state, x = inputs
        if rows is not None:
            carry = jax.lax.with_sharding_constraint(carry, rows)
        return step(nnx.merge(graph, layer_state), carry, x)

    return jax.lax.scan(body, carry, (state, xs), unroll=unroll)


def map_layers(layers: Layer, function: Callable[[Layer, Any], Any], x: Array) -> Any:
    """Computes `function(layer, x)` for all layers in one batch; a dense layer is one product."""
    graph, state = nnx.split(layers)
    depth = len(jax.tree.leaves(state)[0])
    # `x` is repeated for each layer. If only the weights had the layer axis, XLA would transpose
    # them, which on a CPU takes several times as long as the product.
    x = jnp.broadcast_to(x, (depth, *x.shape))
    return jax.vmap(lambda layer, x: function(nnx.merge(graph, layer), x))(state, x)
