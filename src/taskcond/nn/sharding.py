"""Explicit sharding: where the arrays of a lookup lie on a mesh with explicit axes.

`jax.make_mesh` makes such axes by default on newer releases of jax. There, an operation must not
guess the sharding of its result. Everywhere else these functions change nothing.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

A = TypeVar("A", bound=Array)


def explicit_sharding(x: Array) -> NamedSharding | None:
    """Returns the sharding of an array on a mesh with explicit axes, and `None` for others."""
    if not hasattr(jax.sharding, "reshard"):  # older releases of jax only try out explicit axes
        return None
    sharding = jax.typeof(x).sharding if isinstance(x, Tracer) else getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return sharding if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types else None


def without_last_axis(sharding: NamedSharding | None, *more: None) -> NamedSharding | None:
    """Returns the sharding of the leading axes, followed by axes that are not sharded."""
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:-1], *more))


def put(x: A, sharding: NamedSharding | None) -> A:
    """Reshards an array, unless `sharding` is `None`."""
    if sharding is None:
        return x
    # Outside of jit, `x` may still lie on a single device, which only `device_put` accepts.
    is_eager = not isinstance(x, Tracer) and isinstance(sharding.mesh, jax.sharding.Mesh)
    return jax.device_put(x, sharding) if is_eager else jax.sharding.reshard(x, sharding)


def take_rows(
    table: Float[Array, "tasks width"], row: Int[Array, "*b"], sharding: NamedSharding | None
) -> Float[Array, "*b width"]:
    """Returns `table[row]`, and NaN for a row that the table does not have.

    Args:
        table: The rows.
        row: Which of them.
        sharding: The explicit sharding of the result, if there is one.
    """
    if sharding is None:
        return jnp.take(table, row, axis=0, mode="fill")
    table = put(table, NamedSharding(sharding.mesh, PartitionSpec(None, None)))
    return table.at[row].get(mode="fill", fill_value=jnp.nan, out_sharding=sharding)
