"""The arithmetic that makes one array of several fine-tuned ones.

Every function takes arrays of one shape, computes in float32 (in float64 for float64), and knows
nothing of files.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt64

METHODS = ("mean", "task_arithmetic", "ties", "dare")
NEEDS_BASE = METHODS[1:]
DENSITY = {"ties": 0.2, "dare": 0.1}
"""The share of differences to keep that each paper recommends."""


def weighted_mean(
    values: Sequence[Shaped[np.ndarray, "*n"]], weights: Sequence[float]
) -> Float[np.ndarray, "*n"]:
    """Returns the mean of fine-tuned weights, a model soup.

    If all values are equal, the result is exactly that value.

    Source: Wortsman et al., "Model soups", 2022, https://arxiv.org/abs/2203.05482.

    Args:
        values: One array for each model.
        weights: One weight for each model; they are divided by their sum, which must not be zero.

    >>> weighted_mean([np.zeros(2), np.ones(2)], [1.0, 3.0]).tolist()
    [0.75, 0.75]
    """
    first, *others = map(_wide, values)
    shares = np.divide(weights, sum(weights))
    # Differences from the first array are averaged, because (a + a + a) / 3 is not always a.
    return first + _sum([x - first for x in others], shares[1:]) if others else first


def task_arithmetic(
    base: Shaped[np.ndarray, "*n"],
    values: Sequence[Shaped[np.ndarray, "*n"]],
    weights: Sequence[float],
    scale: float,
) -> Float[np.ndarray, "*n"]:
    """Returns `base + scale * sum(weight * (value - base))`.

    A negative weight makes the result unlearn a task.

    Source: Ilharco et al., "Editing models with task arithmetic", 2023,
    https://arxiv.org/abs/2212.04089.

    >>> task_arithmetic(np.ones(1), [np.full(1, 3.0), np.full(1, 0.0)], [1.0, 1.0], 0.5).tolist()
    [1.5]
    """
    wide = _wide(base)
    return wide + _sum([difference(x, wide) for x in values], np.multiply(weights, scale))


def ties(
    base: Shaped[np.ndarray, "*n"],
    values: Sequence[Shaped[np.ndarray, "*n"]],
    weights: Sequence[float],
    scale: float,
    thresholds: Sequence[float],
) -> Float[np.ndarray, "*n"]:
    """Trims small differences, elects a sign for each entry, and averages those with that sign.

    Source: Yadav et al., "TIES-Merging", 2023, https://arxiv.org/abs/2306.01708.

    Args:
        base: The weights that the models were fine-tuned from.
        values: One array for each model.
        weights: One weight for each model, none negative, for the election and the average.
        scale: Factor on the result, the paper's lambda.
        thresholds: For each model the smallest magnitude that is kept; see
            `magnitude_threshold`.

    >>> values = [np.array([3.0, -1.0]), np.array([-1.0, -3.0])]
    >>> ties(np.zeros(2), values, [1.0, 1.0], 1.0, [0.0, 0.0]).tolist()
    [3.0, -2.0]
    """
    wide = _wide(base)
    changes = [
        np.where(np.abs(change := difference(x, wide), dtype=np.float32) < threshold, 0, change)
        for x, threshold in zip(values, thresholds, strict=True)
    ]
    weighted = [w * change for w, change in zip(weights, changes, strict=True)]
    elected = np.sign(sum(weighted))
    total, share = np.zeros_like(wide), np.zeros_like(wide)
    for weight, change, part in zip(weights, changes, weighted, strict=True):
        agrees = (np.sign(part) == elected) & (change != 0)
        total += np.where(agrees, part, 0)
        share += np.where(agrees, np.float32(weight), 0)
    return wide + scale * np.divide(total, share, out=np.zeros_like(wide), where=share != 0)


def dare(
    base: Shaped[np.ndarray, "*n"],
    values: Sequence[Shaped[np.ndarray, "*n"]],
    weights: Sequence[float],
    scale: float,
    density: float,
    index: UInt64[np.ndarray, "*n"],
    keys: Sequence[int],
) -> Float[np.ndarray, "*n"]:
    """Drops most differences at random, scales up the rest, and does task arithmetic on them.

    Source: Yu et al., "Language models are super Mario", 2024, https://arxiv.org/abs/2311.03099.

    Args:
        base: The weights that the models were fine-tuned from.
        values: One array for each model.
        weights: One weight for each model.
        scale: Factor on the sum.
        density: Share of the entries that is kept.
        index: The position of each entry in its leaf. Only the position and the key decide what is
            dropped, so that the result does not depend on how a leaf is cut into pieces.
        keys: A key for each model; see `leaf_key`.
    """
    wide = _wide(base)
    changes = []
    for value, key in zip(values, keys, strict=True):
        kept = _hash(index + np.uint64(key)) <= np.uint64(max(int(density * 2.0**63) * 2 - 1, 0))
        changes.append(np.where(kept, difference(value, wide) / wide.dtype.type(density), 0))
    return wide + _sum(changes, np.multiply(weights, scale))


def leaf_key(seed: int, path: str, model: int) -> int:
    """Returns a key for one leaf of one model, the same on every machine.

    >>> leaf_key(0, "dense/kernel", 1) == leaf_key(0, "dense/kernel", 1)
    True
    """
    digest = hashlib.sha256(f"{seed}\0{model}\0{path}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def magnitude_threshold(
    pieces: Callable[[], Iterable[Shaped[np.ndarray, "..."]]], density: float
) -> float:
    """Returns the smallest magnitude among the largest `density` share of the entries.

    It is exact in float32, and needs no memory for the entries. The bits of non-negative floats are
    ordered as the floats are. So a histogram of their upper halves finds the upper half of the
    threshold, and a histogram of their lower halves finds the rest.

    Args:
        pieces: Gives the entries, in any order; it is called twice.
        density: Share in `(0, 1]`; at least one entry is kept.

    >>> magnitude_threshold(lambda: [np.array([1.0, -4.0]), np.array([3.0, 2.0])], 0.5)
    3.0
    """
    upper = np.zeros(1 << 16, np.int64)
    for bits in map(_magnitude_bits, pieces()):
        upper += np.bincount(bits >> 16, minlength=1 << 16)
    rank = max(1, round(density * int(upper.sum())))
    high, rank = _descend(upper, rank)
    lower = np.zeros(1 << 16, np.int64)
    for bits in map(_magnitude_bits, pieces()):
        lower += np.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = _descend(lower, rank)
    return float(np.uint32(high << 16 | low).view(np.float32))


def difference(value: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns what fine-tuning changed, in the dtype of the arithmetic."""
    return _wide(value) - _wide(base)


def _descend(histogram: np.ndarray, rank: int) -> tuple[int, int]:
    """Returns the bin of the `rank`-th largest entry, and the rank of that entry in its bin."""
    above = np.cumsum(histogram[::-1])
    steps = int(np.searchsorted(above, rank))
    place = len(histogram) - 1 - steps
    return place, rank - int(above[steps] - histogram[place])


def _magnitude_bits(value: np.ndarray) -> np.ndarray:
    return np.abs(value, dtype=np.float32).reshape(-1).view(np.uint32)


def _wide(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64 if value.dtype == np.float64 else np.float32, copy=False)


def _sum(changes: Sequence[np.ndarray], weights: Any) -> np.ndarray:
    terms = [c.dtype.type(w) * c for c, w in zip(changes, weights, strict=True)]
    return functools.reduce(np.add, terms)


def _hash(index: np.ndarray) -> np.ndarray:
    """Returns 64 uniform bits for each number (splitmix64)."""
    with np.errstate(over="ignore"):
        x = index * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
