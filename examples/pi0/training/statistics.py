"""The statistics by which a run normalizes: those of what the model sees and makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from examples.lerobot import Frames
from examples.lerobot.stats import Stats, StatsBuilder
from examples.pi0.transform import Place, pick

Array = Float[np.ndarray, "n d"]


def compute_stats(
    data: Frames, places: Sequence[Place], delta: Sequence[bool], *, per_step: bool
) -> dict[str, Stats]:
    """Returns the statistics of states and actions.

    Args:
        data: The training data.
        places: The parts of the state that the model sees.
        delta: For each dimension of the actions, whether they are relative to the state.
        per_step: Whether each step of a chunk has its own statistics, of shape `[h, d]`. Steps past
            the end of an episode do not count.
    """
    horizon = data.parts[0].horizon
    steps = range(horizon) if per_step or any(delta) else range(1)
    state, actions = StatsBuilder(), [StatsBuilder() for _ in (steps if per_step else range(1))]
    for part in data.parts:
        for episode in part.episode_indices:
            vectors = part.vectors(episode)
            seen = pick(vectors["state"], places)
            state.add(seen)
            for step in steps:
                chunk = vectors["actions"][step:]
                if any(delta):
                    chunk = chunk - np.where(delta, seen[: len(chunk), : len(delta)], 0)
                actions[step if per_step else 0].add(chunk)
    return {"state": state.build(), "actions": _stack([builder.build() for builder in actions])}


def delta_mask(runs: Sequence[int]) -> tuple[bool, ...]:
    """Returns a flag for each dimension: a positive run is relative, a negative one absolute.

    >>> delta_mask([2, -1])
    (True, True, False)
    """
    return tuple(run > 0 for run in runs for _ in range(abs(run)))


def narrow_dimensions(stats: dict[str, Stats], min_range: float) -> list[str]:
    """Returns sentences about dimensions that move over a range too small to divide by."""
    lines = []
    for name, part in stats.items():
        narrow = np.flatnonzero(part.narrow(min_range).reshape(-1, part.mean.shape[-1]).any(0))
        if len(narrow):
            lines.append(
                f"The dimensions {narrow.tolist()} of {name} move over less than {min_range}, and "
                "are divided by that instead."
            )
    return lines


def _stack(parts: list[Stats]) -> Stats:
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in dataclasses.fields(Stats) if field.name != "count"]
    arrays = {name: np.stack([getattr(part, name) for part in parts]) for name in names}
    return Stats(count=parts[0].count, **arrays)
