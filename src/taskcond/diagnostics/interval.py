"""Wilson's interval of a share."""

from __future__ import annotations

import math

_Z = 1.96  # 95 %


def wilson_interval(hits: float | int, total: float | int) -> tuple[float, float]:
    """Returns the interval that holds the true share with a probability of 95 %.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        hits: The number of samples that count.
        total: The number of independent samples.

    >>> [round(bound, 3) for bound in wilson_interval(9, 10)]
    [0.596, 0.982]
    """
    if not total:
        return 0.0, 1.0
    share = hits / total
    centre = share + _Z**2 / (2 * total)
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return (centre - half) / (1 + _Z**2 / total), (centre + half) / (1 + _Z**2 / total)
