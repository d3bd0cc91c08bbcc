"""What episodes show: how often the asked task was done, with an interval, or which instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.table import Table

from examples.metaworld.episodes import Episode
from examples.metaworld.tasks import Task
from taskcond.diagnostics import wilson_interval


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of episodes.

    Attributes:
        hits: The number of episodes that count.
        total: The number of episodes.
    """

    hits: int
    total: int

    @property
    def interval(self) -> tuple[float, float]:
        """The interval that holds the true share with a probability of 95 %.

        >>> [round(bound, 3) for bound in Rate(9, 10).interval]
        [0.596, 0.982]
        """
        return wilson_interval(self.hits, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        percent = 100 * self.hits / max(self.total, 1)
        return f"{percent:.0f} ({100 * abs(low):.0f}-{100 * high:.0f})"


def asked_rate(episodes: Sequence[Episode]) -> Rate:
    """Returns how many episodes did the task that was asked for."""
    return Rate(sum(e.done == e.job.asked for e in episodes), len(episodes))


def told_rate(episodes: Sequence[Episode]) -> Rate:
    """Returns how many episodes did the task whose id the policy was given."""
    told = [e for e in episodes if e.job.told is not None]
    return Rate(sum(e.done == e.job.told for e in told), len(told))


def any_rate(episodes: Sequence[Episode]) -> Rate:
    """Returns how many episodes did any task."""
    return Rate(sum(e.done is not None for e in episodes), len(episodes))


def confusion(episodes: Sequence[Episode], tasks: Sequence[Task]) -> Int[np.ndarray, "n n+1"]:
    """Counts episodes by the asked task (row) and the done one (column; the last is none)."""
    counts = np.zeros((len(tasks), len(tasks) + 1), int)
    for episode in episodes:
        done = len(tasks) if episode.done is None else tasks.index(episode.done)
        counts[tasks.index(episode.job.asked), done] += 1
    return counts


def results_table(results: Mapping[str, Sequence[Episode]]) -> Table:
    """Returns a table with a row for each policy."""
    table = Table(title="episodes that did the task, in percent, and the 95 % interval")
    for name in ("policy", "episodes", "asked for", "of its id", "any"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name, episodes in results.items():
        told = told_rate(episodes)
        table.add_row(
            name,
            str(len(episodes)),
            str(asked_rate(episodes)),
            str(told) if told.total else "",
            str(any_rate(episodes)),
        )
    return table


def to_dict(results: Mapping[str, Sequence[Episode]]) -> dict[str, Any]:
    """Returns the numbers of the table for JSON, and each episode without its path."""
    return {
        name: {
            "asked": dataclasses.astuple(asked_rate(episodes)),
            "told": dataclasses.astuple(told_rate(episodes)),
            "any": dataclasses.astuple(any_rate(episodes)),
            "episodes": [_episode(e) for e in episodes],
        }
        for name, episodes in results.items()
    }


def _episode(episode: Episode) -> dict[str, Any]:
    job = episode.job
    return {
        "asked": job.asked.name,
        "told": None if job.told is None else job.told.name,
        "start": job.start,
        "done": None if episode.done is None else episode.done.name,
        "steps": len(episode.observations) - 1,
    }
