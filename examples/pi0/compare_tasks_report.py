"""The actions of one frame under several tasks, as a table and as a plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from examples.lerobot.stats import Stats

_MOST_DIMENSIONS = 12


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The actions of one frame under several tasks, in the dataset's units.

    Attributes:
        names: The names of the tasks.
        sampled: A chunk for each task.
        recorded: The dataset's actions, up to the end of the episode.
        stats: The statistics of the actions that the model was trained on.
        fps: Actions per second.
    """

    names: tuple[str, ...]
    sampled: Float[np.ndarray, "tasks h a"]
    recorded: Float[np.ndarray, "t a"]
    stats: Stats
    fps: float

    @property
    def shown(self) -> Int[np.ndarray, " dimensions"]:
        """The dimensions that move, or the dozen of these in which the tasks differ most."""
        moving = np.flatnonzero(~self.stats.still)
        apart = self.apart[moving] / (self.stats.max - self.stats.min)[moving]
        return np.sort(moving[np.argsort(-apart, kind="stable")[:_MOST_DIMENSIONS]])

    @property
    def apart(self) -> Float[np.ndarray, " a"]:
        """The largest distance between two tasks in each dimension."""
        return np.ptp(self.sampled, axis=0).max(axis=0)

    @property
    def errors(self) -> Float[np.ndarray, " tasks"]:
        """The root mean square distance to the recorded chunk, in standard deviations."""
        moving = ~self.stats.still
        off = self.sampled[:, : len(self.recorded)] - self.recorded
        return np.sqrt(np.mean((off[..., moving] / self.stats.std[moving]) ** 2, axis=(1, 2)))


def table(chunks: Chunks, title: str) -> Table:
    """Returns a table with the mean of each shown dimension, recorded and under each task."""
    caption = (
        "mean over the chunk, and how far tasks are apart at most, in the dataset's units\n"
        "error: distance to the recorded chunk, in standard deviations of the dataset"
    )
    result = Table(title=title, caption=caption)
    for name in ("action", "recorded", *chunks.names, "apart"):
        result.add_column(name, justify="right")
    for i in chunks.shown:
        means = [f"{values[:, i].mean():.3g}" for values in (chunks.recorded, *chunks.sampled)]
        result.add_row(str(i), *means, f"{chunks.apart[i]:.3g}")
    result.add_section()
    errors = [f"{error:.2f}" for error in chunks.errors]
    result.add_row("error", "", *errors, "", style="bold")
    return result


def plot(chunks: Chunks, title: str, path: Path) -> None:
    """Draws the chunks, with a panel for each shown dimension, and writes a PNG."""
    shown, moving = chunks.shown, int((~chunks.stats.still).sum())
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(3.1 * columns, 8), 2.3 * rows + 1.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axis, dimension in zip(axes, shown, strict=False):
        _draw(axis, chunks, int(dimension))
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis in axes[max(len(shown) - columns, 0) : len(shown)]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("time / s")
    if moving > len(shown):
        title += f"\nthe {len(shown)} of {moving} moving dimensions in which the tasks differ most"
    figure.suptitle(title, size="medium")
    figure.supylabel("action, in the dataset's units", size="medium")
    _draw_legend(figure, axes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_legend(figure: Figure, axis: Axes) -> None:
    lines, labels = axis.get_legend_handles_labels()
    room = int(12 * figure.get_figwidth()) // (max(map(len, labels)) + 8)  # in characters
    figure.legend(lines, labels, loc="outside lower center", ncols=max(min(len(labels), room), 1))


def _draw(axis: Axes, chunks: Chunks, dimension: int) -> None:
    def line(values: Float[np.ndarray, "t a"], label: str, **style: Any) -> None:
        axis.plot(np.arange(len(values)) / chunks.fps, values[:, dimension], label=label, **style)

    line(chunks.recorded, "recorded", color="black", linestyle="--", linewidth=1.2, zorder=3)
    widths = np.linspace(3, 1.5, len(chunks.names))  # so that two equal chunks can both be seen
    for name, values, width in zip(chunks.names, chunks.sampled, widths, strict=True):
        line(values, name, marker=".", markersize=4, linewidth=width)
    # Without the usual range, noise in a dimension that hardly moves would fill the panel.
    axis.update_datalim([(0, chunks.stats.q01[dimension]), (0, chunks.stats.q99[dimension])])
    axis.autoscale_view()
    axis.set_title(f"action {dimension}", size="medium")
    axis.grid(alpha=0.3)
