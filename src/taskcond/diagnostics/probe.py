"""A probe of observations: do they give the task away, so that ids cannot help?"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Float, Int

from taskcond.diagnostics.interval import wilson_interval
from taskcond.messages import Readable

_BLOCK = 256  # samples whose distances to all others are in memory at once


@dataclasses.dataclass(frozen=True, repr=False)
class ObservationProbe(Readable):
    """How well the nearest observation of another group tells the task.

    Attributes:
        hits: The number of samples whose nearest observation has the same task.
        samples: The number of samples.
        chance: The share of the most frequent task, which a guess without observations reaches.
    """

    hits: int
    samples: int
    chance: float

    @property
    def accuracy(self) -> float:
        """The share of samples whose task is told right."""
        return self.hits / self.samples

    @property
    def skill(self) -> float:
        """The share of the mistakes of a guess that the nearest observation corrects."""
        return (self.accuracy - self.chance) / (1 - self.chance)

    def to_dict(self) -> dict[str, object]:
        """Returns the numbers for JSON."""
        return {
            "accuracy": self.accuracy,
            "interval": list(wilson_interval(self.hits, self.samples)),
            "chance": self.chance,
            "samples": self.samples,
        }

    def __str__(self) -> str:
        low, high = wilson_interval(self.hits, self.samples)
        return (
            f"the nearest observation tells the task of {self.accuracy:.1%} of {self.samples} "
            f"samples (95 % interval {low:.1%} to {high:.1%}); a guess, of {self.chance:.1%}"
        )


def observation_probe(
    observations: Float[Array, "n k"] | Float[np.ndarray, "n k"],
    task_id: Int[Array, " n"] | Int[np.ndarray, " n"],
    groups: Int[Array, " n"] | Int[np.ndarray, " n"] | None = None,
) -> ObservationProbe:
    """Predicts the task of each sample as that of the nearest observation of another group.

    Args:
        observations: What the policy sees besides the id: states, or features of images. Each
            column is divided by its standard deviation.
        task_id: The task of each sample.
        groups: Which samples belong together, such as `episode_index`: the neighbours of a frame
            in its own episode have its task for no other reason. By default, each sample is a
            group. Tasks of a single group are left out.

    Raises:
        ValueError: Fewer than two tasks have two groups, lengths differ, or an observation is NaN
            or Inf.

    >>> seen = np.array([[0.0], [0.1], [5.0], [5.1]])
    >>> print(observation_probe(seen, np.array([0, 0, 1, 1])))
    the nearest observation tells the task of 100.0% of 4 samples (95 % interval 51.0% to 100.0%);
    a guess, of 50.0%
    """
    seen, task_id = np.asarray(observations, np.float64), np.asarray(task_id)
    groups = np.arange(len(seen)) if groups is None else np.asarray(groups)
    if not len(seen) == len(task_id) == len(groups):
        raise ValueError(
            f"there are {len(seen)} observations, {len(task_id)} task ids and {len(groups)} "
            "groups; pass one of each for each sample"
        )
    if not np.isfinite(seen).all():
        bad = np.flatnonzero(~np.isfinite(seen).all(1))
        raise ValueError(
            f"{len(bad)} observations hold NaN or Inf, the first at {bad[0]}; correct the data"
        )
    used = [t for t in np.unique(task_id) if len(np.unique(groups[task_id == t])) > 1]
    if len(used) < 2:
        raise ValueError(
            f"{len(used)} tasks have samples of two or more groups, but a probe needs two such "
            "tasks; pass samples of more episodes"
        )
    kept = np.isin(task_id, used)
    seen, task_id, groups = seen[kept], task_id[kept], groups[kept]
    spread = seen.std(0)
    nearest = _nearest(seen / np.where(spread > 0, spread, 1), groups)
    chance = np.unique(task_id, return_counts=True)[1].max() / len(task_id)
    return ObservationProbe(int((task_id[nearest] == task_id).sum()), len(task_id), float(chance))


def _nearest(seen: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns for each sample the number of the nearest one of another group."""
    found = []
    for start in range(0, len(seen), _BLOCK):
        rows = slice(start, start + _BLOCK)
        square = np.square(seen).sum(1) - 2 * seen[rows] @ seen.T
        found.append(np.where(groups[rows, None] == groups, np.inf, square).argmin(1))
    return np.concatenate(found)
