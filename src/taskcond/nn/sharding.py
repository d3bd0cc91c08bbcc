"""Explicit sharding: where the arrays of a lookup lie on a mesh with explicit axes.

`jax.make_mesh` makes such axes by default on newer releases of jax. There, an operation must not
guess the sharding of its result. Everywhere else these functions change nothing.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

A = TypeVar("A", bound=Array)


def explicit_sharding(x: Array) -> NamedSharding | None:
    """Returns the sharding of an array on a mesh with explicit axes, and `None` for others."""
    typeof = getattr(jax, "typeof", None)  # newer than jax 0.5.3, as are explicit axes
    sharding = getattr(typeof(x), "sharding", None) if typeof else None
    if sharding is None:
        return None
    explicit = jax.sharding.AxisType.Explicit
    return sharding if explicit in sharding.mesh.axis_types else None


def without_last_axis(sharding: NamedSharding | None, *more: None) -> NamedSharding | None:
    """Returns the sharding of the leading axes, followed by axes that are not sharded."""
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:-1], *more))


def put(x: A, sharding: NamedSharding | None) -> A:
    """Reshards an array, unless `sharding` is `None`."""
    return x if sharding is None else jax.sharding.reshard(x, sharding)


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
