"""Where arrays are: a mesh with the axes `data` and `fsdp`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_MIN_BYTES = 4 * 2**20
"""Smaller arrays are not split, as in openpi."""


def make_mesh(batch_size: int, fsdp_devices: int, devices: int | None, grad_accum: int = 1) -> Mesh:
    """Returns the mesh of this machine's devices.

    Raises:
        ValueError: The numbers do not divide. The message names the nearest that do.
    """
    found = jax.local_devices()
    count = len(found) if devices is None else devices
    if not 1 <= count <= len(found):
        raise ValueError(f"devices={count}, but this machine has {len(found)}: {found}")
    if count % fsdp_devices:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        raise ValueError(
            f"fsdp_devices={fsdp_devices} does not divide the {count} devices; pass one of {fits}"
        )
    if batch_size % count:
        below = batch_size // count * count
        fits = [size for size in (below, below + count) if size]
        raise ValueError(
            f"batch_size={batch_size} does not divide by the {count} devices; the nearest that do "
            f"are {' and '.join(map(str, fits))}"
        )
    part = batch_size // grad_accum
    if part % count:
        raise ValueError(
            f"batch_size={batch_size} in grad_accum={grad_accum} parts is {part} frames a part, "
            f"which do not divide by the {count} devices; a batch_size of "
            f"{grad_accum * count} or a multiple does"
        )
    grid = np.array(found[:count]).reshape(count // fsdp_devices, fsdp_devices)
    return Mesh(grid, ("data", "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(mesh: Mesh, shapes: Any, min_bytes: int = _MIN_BYTES) -> Any:
    """Returns the sharding of each array of a state.

    An array of two axes or more, and of `min_bytes` or more, is split over `fsdp` along its longest
    axis that divides. Others are on every device.

    Args:
        mesh: The mesh.
        shapes: A pytree of arrays or shapes.
        min_bytes: See above.
    """
    size = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        large = len(leaf.shape) > 1 and leaf.size * leaf.dtype.itemsize >= min_bytes
        axes = [axis for axis, n in enumerate(leaf.shape) if n % size == 0]
        if size > 1 and large and axes:
            spec[max(axes, key=lambda axis: leaf.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, shapes)
