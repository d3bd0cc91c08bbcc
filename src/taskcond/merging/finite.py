"""NaN and Inf among values that are loaded, merged or combined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from taskcond.messages import warn

_BLOCK = 1 << 22  # entries of a NumPy array that are tested in one go


def count_nonfinite(value: Any) -> int:
    """Returns how many entries of an array are NaN or infinite; 0 for integers."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return 0
    if isinstance(value, jax.Array):
        return int(jnp.sum(~jnp.isfinite(value)))
    # The mask of a whole leaf of 2 GB would take another 0.5 GB.
    flat = np.asarray(value).reshape(-1)
    return sum(
        int(np.count_nonzero(~np.isfinite(flat[i : i + _BLOCK])))
        for i in range(0, flat.size, _BLOCK)
    )


def warn_nonfinite(counts: Mapping[str, int]) -> None:
    """Warns if any leaf has NaN or Inf, because a report is not always read.

    Args:
        counts: `{path: number of NaN and Inf}`.
    """
    if counts:
        leaves = ", ".join(f"{path} ({count})" for path, count in counts.items())
        warn(f"the checkpoint has NaN or Inf in {leaves}")
