"""NaN and Inf among values that are loaded, merged or combined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from taskcond.messages import warn

_BLOCK = 1 << 22  # entries of a NumPy array that are tested in one go


def count_nonfinite(value: Any, dtype: Any = None) -> int:
    """Returns how many entries of an array are NaN or infinite; 0 for integers.

    Args:
        value: The array.
        dtype: The dtype that the array is cast to, in which large values may become infinite.

    >>> count_nonfinite(np.array([1.0, 1e5, np.nan]), np.float16)
    2
    """
    dtype = value.dtype if dtype is None else dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0
    if isinstance(value, jax.Array):
        return int(jnp.sum(~jnp.isfinite(value.astype(dtype))))
    # The mask of a whole leaf of 2 GB would take another 0.5 GB.
    flat = np.asarray(value).reshape(-1)
    blocks = (flat[i : i + _BLOCK] for i in range(0, flat.size, _BLOCK))
    return sum(int(np.count_nonzero(~np.isfinite(cast_array(block, dtype)))) for block in blocks)


def cast_array(value: np.ndarray, dtype: Any) -> np.ndarray:
    """Casts a NumPy array; who calls it counts the values that become NaN or Inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(dtype, copy=False)


def warn_nonfinite(
    counts: Mapping[str, int], casts: Mapping[str, tuple[str, str]] | None = None
) -> None:
    """Warns if any leaf has NaN or Inf, because a report is not always read.

    Args:
        counts: `{path: number of NaN and Inf}`.
        casts: `{path: (old dtype, new dtype)}`, for the leaves that were cast.
    """
    if not counts:
        return
    how = {path: f", cast from {old} to {new}" for path, (old, new) in (casts or {}).items()}
    leaves = ", ".join(f"{path} ({count}{how.get(path, '')})" for path, count in counts.items())
    advice = (
        "; use a dtype with a larger range if the cast is to blame" if how.keys() & counts else ""
    )
    warn(f"there are NaN or Inf in {leaves}{advice}")
