"""The order in which a run reads frames. It depends on the seed alone, and can begin anywhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int


class WeightedOrder:
    """An endless order of frames: in each epoch as many draws as there are frames, shuffled.

    In an epoch a frame comes `weight / mean weight` times, rounded up or down. With equal weights
    it comes once.

    Args:
        weights: The weight of each frame, `[n]`.
        seed: The seed.

    >>> order = WeightedOrder(np.ones(3), seed=0)
    >>> sorted(order[i] for i in range(3)), sorted(order[i] for i in range(3, 6))
    ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, weights: Float[np.ndarray, " n"], seed: int):
        self._ends = np.cumsum(weights) / np.sum(weights) * len(weights)
        self._seed = seed
        self._epoch = functools.lru_cache(maxsize=2)(self._draw)

    def __getitem__(self, number: int) -> int:
        """Returns the position of the frame of an example."""
        epoch, place = divmod(number, len(self._ends))
        return int(self._epoch(epoch)[place])

    def _draw(self, epoch: int) -> Int[np.ndarray, " n"]:
        rng = np.random.default_rng([self._seed, epoch])
        count = len(self._ends)
        # Evenly spaced draws, with one shift for all: a frame of weight 1 comes exactly once.
        draws = np.arange(count) + rng.uniform()
        positions = np.searchsorted(self._ends, draws, side="right")
        return rng.permutation(np.minimum(positions, count - 1))

    def __reduce__(self) -> tuple[type[WeightedOrder], tuple[np.ndarray, int]]:
        return WeightedOrder, (np.diff(self._ends, prepend=0), self._seed)


def task_weights(
    tasks: Int[np.ndarray, " n"],
    names: Sequence[str],
    temperature: float,
    by_hand: Mapping[str, float],
) -> Float[np.ndarray, " n"]:
    """Returns the weight of each frame by its task.

    Args:
        tasks: The task id of each frame.
        names: The names of all tasks.
        temperature: 1 draws tasks by their frames, 0 all tasks equally often.
        by_hand: A further factor for the frames of a task, by its name.

    Raises:
        ValueError: A task of `by_hand` has no frames, or its factor is not positive.

    >>> task_weights(np.array([0, 0, 1]), ["pour", "wipe"], 0.0, {}).tolist()
    [0.5, 0.5, 1.0]
    """
    counts = np.bincount(tasks, minlength=len(names))
    known = {name for name, count in zip(names, counts, strict=True) if count}
    if unknown := sorted(set(by_hand) - known):
        raise ValueError(f"data.task_weights: no frame has the tasks {unknown}; remove them")
    if bad := {name: factor for name, factor in by_hand.items() if not 0 < factor < np.inf}:
        raise ValueError(f"data.task_weights: {bad} must be positive and finite")
    factors = np.array([by_hand.get(name, 1.0) for name in names])
    return (np.maximum(counts, 1) ** (temperature - 1.0) * factors)[tasks]


def stratified(tasks: Int[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " m"]:
    """Returns the positions of up to `count` frames, of all tasks as equally as possible.

    >>> sorted(stratified(np.array([0, 0, 0, 1]), 2, seed=0).tolist())[1]
    3
    """
    rng = np.random.default_rng(seed)
    groups = [rng.permutation(np.flatnonzero(tasks == task))[:count] for task in np.unique(tasks)]
    turns = np.concatenate([np.arange(len(group)) for group in groups])
    # A stable sort takes the tasks in order in each turn.
    return np.concatenate(groups)[np.argsort(turns, kind="stable")][:count]
