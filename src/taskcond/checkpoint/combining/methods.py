"""Several fine-tuned weights into one: the arithmetic, on pieces of leaves.

Every function takes arrays of one shape, computes in float32 (float64 for float64), and knows
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
DENSITY = {"ties": 0.2, "dare": 0.1}
"""What each paper recommends to keep."""


def weighted_mean(
    values: Sequence[Shaped[np.ndarray, "*n"]], weights: Sequence[float]
) -> Float[np.ndarray, "*n"]:
    """The mean of fine-tuned weights: a model soup.

    Wortsman et al., "Model soups", 2022, https://arxiv.org/abs/2203.05482. Where all values are
    equal, the result is exactly that.

    Args:
        values: One array for each model.
        weights: One for each model; they are divided by their sum, which must not be zero.

    >>> weighted_mean([np.zeros(2), np.ones(2)], [1.0, 3.0]).tolist()
    [0.75, 0.75]
    """
    first, *others = map(_wide, values)
    shares = np.divide(weights, sum(weights))
    # As differences from the first: (a + a + a) / 3 is not always a.
    return first + _sum([x - first for x in others], shares[1:]) if others else first


def task_arithmetic(
    base: Shaped[np.ndarray, "*n"],
    values: Sequence[Shaped[np.ndarray, "*n"]],
    weights: Sequence[float],
    scale: float,
) -> Float[np.ndarray, "*n"]:
    """`base + scale * sum(weight * (value - base))`.

    Ilharco et al., "Editing models with task arithmetic", 2023, https://arxiv.org/abs/2212.04089.
    A negative weight makes the result unlearn a task.

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
    """Trims small differences, elects a sign for each entry, and averages those that have it.

    Yadav et al., "TIES-Merging", 2023, https://arxiv.org/abs/2306.01708.

    Args:
        base: What the models were fine-tuned from.
        values: One array for each model.
        weights: One for each model, none negative, for election and average.
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
    """Task arithmetic on differences most of which are dropped at random, the rest scaled up.

    Yu et al., "Language models are super Mario", 2024, https://arxiv.org/abs/2311.03099.

    Args:
        base: What the models were fine-tuned from.
        values: One array for each model.
        weights: One for each model.
        scale: Factor on the sum.
        density: Share of the entries that is kept.
        index: The position of each entry in its leaf. What is dropped depends on it and the key
            alone, so that it does not matter how a leaf is cut into pieces.
        keys: A key for each model; see `leaf_key`.
    """
    wide = _wide(base)
    changes = []
    for value, key in zip(values, keys, strict=True):
        kept = _hash(index + np.uint64(key)) <= np.uint64(max(int(density * 2.0**63) * 2 - 1, 0))
        changes.append(np.where(kept, difference(value, wide) / wide.dtype.type(density), 0))
    return wide + _sum(changes, np.multiply(weights, scale))


def leaf_key(seed: int, path: str, model: int) -> int:
    """A key for one leaf of one model, the same on every machine.

    >>> leaf_key(0, "dense/kernel", 1) == leaf_key(0, "dense/kernel", 1)
    True
    """
    digest = hashlib.sha256(f"{seed}\0{model}\0{path}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def magnitude_threshold(
    pieces: Callable[[], Iterable[Shaped[np.ndarray, "..."]]], density: float
) -> float:
    """The magnitude that `density` of the entries reach: exact in float32, without holding them.

    The bits of non-negative floats are ordered as the floats are. So a histogram of their upper
    halves finds the upper half of the threshold, and one of the lower halves the rest.

    Args:
        pieces: Gives the entries, in any order; is called twice.
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
    """What fine-tuning changed, as the methods see it."""
    return _wide(value) - _wide(base)


def _descend(histogram: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin of the `rank`-th largest entry, and its rank within."""
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
    """Splitmix64: 64 uniform bits for each number."""
    with np.errstate(over="ignore"):
        x = index * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
