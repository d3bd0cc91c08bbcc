"""Numbers for JSON, which has no NaN and no Inf, and for people."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def known(value: float) -> float | None:
    """Returns a number, or `None` for NaN and Inf.

    >>> known(0.5), known(math.nan), known(math.inf)
    (0.5, None, None)
    """
    return value if math.isfinite(value) else None


def known_list(values: Float[np.ndarray, "..."]) -> list[object]:
    """Returns an array as lists, with `None` for NaN and Inf.

    >>> known_list(np.array([[0.5, np.nan]]))
    [[0.5, None]]
    """
    result = values.astype(object)
    result[~np.isfinite(values)] = None
    return result.tolist()


def change(share: float) -> str:
    """Returns a relative change in percent, small ones with two digits.

    >>> change(4.5487), change(-0.00123), change(0.0)
    ('+455%', '-0.12%', '+0%')
    """
    return f"{share:+.0%}" if abs(share) >= 0.1 else f"{100 * share:+.2g}%"
