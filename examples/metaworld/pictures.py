"""Pictures of rollouts: the paths from one start under each id, and asked against done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from examples.metaworld.episodes import Episode
from examples.metaworld.report import confusion
from examples.metaworld.tasks import KINDS, TEN, Task

_COLOURS = dict(zip((task.name for task in TEN), matplotlib.color_sequences["tab10"], strict=True))


def draw_paths(results: Mapping[str, Sequence[Episode]], path: Path) -> None:
    """Draws from the front what moved where, one line for each task that was asked for."""
    figure, axes = plt.subplots(1, len(results), figsize=(12, 5), sharey=True)
    for axis, (name, episodes) in zip(axes, results.items(), strict=True):
        for episode in episodes:
            _draw_path(axis, episode)
        for task in TEN:
            _draw_goal(axis, task)
        hits = sum(e.done == e.job.asked for e in episodes)
        axis.set_title(f"{name}: {hits} of {len(episodes)} did the asked task")
        axis.set_xlabel("left - right (m)")
        axis.set_aspect("equal")
    axes[0].set_ylabel("height (m)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, loc="lower center", fontsize=8)
    figure.suptitle("One start, ten tasks asked. Line: hand; thick line: puck; ring: goal")
    figure.subplots_adjust(bottom=0.24, top=0.9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_path(axis: Axes, episode: Episode) -> None:
    seen, colour = episode.observations, _COLOURS[episode.job.asked.name]
    axis.plot(seen[:, 0], seen[:, 2], color=colour, linewidth=1)
    axis.plot(seen[:, 4], seen[:, 6], color=colour, linewidth=3, alpha=0.6)


def _draw_goal(axis: Axes, task: Task) -> None:
    colour = _COLOURS[task.name]
    radius = KINDS[task.kind].radius
    ring = Circle((task.goal[0], task.goal[2]), radius, fill=False, color=colour, linewidth=2)
    axis.add_patch(ring)
    axis.plot([], [], color=colour, label=task.name)


def draw_confusion(results: Mapping[str, Sequence[Episode]], path: Path) -> None:
    """Draws for each policy how often each task was done when each was asked for."""
    size = 4.2 * len(results), 5.2
    figure, axes = plt.subplots(1, len(results), figsize=size, sharey=True, squeeze=False)
    for axis, (name, episodes) in zip(axes[0], results.items(), strict=True):
        counts = confusion(episodes, TEN)
        axis.imshow(counts, cmap="Blues", vmin=0, vmax=max(1, counts.sum(1).max()))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axis.text(column, row, str(count), ha="center", va="center", fontsize=7)
        axis.set_title(name, fontsize=10)
        axis.set_xticks(
            range(len(TEN) + 1), [*(t.name for t in TEN), "none"], rotation=90, fontsize=7
        )
        axis.set_yticks(range(len(TEN)), [task.name for task in TEN], fontsize=7)
        axis.set_xlabel("done")
    axes[0, 0].set_ylabel("asked")
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
