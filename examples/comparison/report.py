"""A table and a plot of the task confusion without and with task ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from rich.table import Table

from taskcond import TaskVocabulary
from taskcond.diagnostics.confusion import TaskConfusion


def table(before: TaskConfusion, after: TaskConfusion, vocabulary: TaskVocabulary) -> Table:
    """Returns a table of each task's loss and accuracy, without and with task ids."""
    result = Table(title="loss, and share of frames whose task is told right")
    for title in ("task", "frames", "loss", "with ids", "right", "with ids"):
        result.add_column(title, justify="left" if title == "task" else "right", no_wrap=True)
    for i, name in enumerate(vocabulary):
        count = after.matrix[i].sum()
        if not count:
            continue
        shares = [f"{c.matrix[i, i] / count:.1%}" for c in (before, after)]
        losses = [f"{c.loss[i]:.4f}" for c in (before, after)]
        result.add_row(_shorten(name), f"{count:.0f}", *losses, *shares)
    means = [f"{np.nanmean(c.loss):.4f}" for c in (before, after)]
    accuracy = [f"{c.accuracy:.1%}" for c in (before, after)]
    result.add_section()
    result.add_row("all tasks", f"{after.matrix.sum():.0f}", *means, *accuracy, style="bold")
    return result


def plot(
    before: TaskConfusion, after: TaskConfusion, vocabulary: TaskVocabulary, path: Path
) -> None:
    """Draws both confusion matrices and the loss of each task, and writes a PNG file."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.1])
    used = np.flatnonzero(after.matrix.sum(1))
    predicted = np.flatnonzero((before.matrix + after.matrix).any(0))
    names = [_shorten(vocabulary[i]) for i in used]
    left.set_ylabel("true task")
    _draw_matrix(left, before, used, predicted, names, "without task conditioning")
    numbers = list(map(str, used))
    image = _draw_matrix(middle, after, used, predicted, numbers, "with task conditioning")
    figure.colorbar(image, ax=middle, label="% of the task's frames", shrink=0.8)
    _draw_losses(right, before, after, used)
    figure.savefig(path, dpi=110)


def _draw_matrix(
    axis: Axes,
    confusion: TaskConfusion,
    used: Int[np.ndarray, " used"],
    predicted: Int[np.ndarray, " predicted"],
    names: Sequence[str],
    title: str,
) -> AxesImage:
    """Draws for each used task the share of its frames that is predicted as each id."""
    rows = confusion.matrix[used]
    share = rows[:, predicted] / rows.sum(1, keepdims=True)
    image = axis.imshow(100 * share, vmin=0, vmax=100, cmap="Blues")
    axis.set_title(f"{title}: {confusion.accuracy:.1%} right")
    axis.set_xlabel("predicted task")
    axis.set_xticks(range(len(predicted)), list(map(str, predicted)))
    axis.set_yticks(range(len(used)), names)
    for row, column in np.ndindex(share.shape):
        text = f"{100 * share[row, column]:.3g}"
        color = "white" if share[row, column] > 0.6 else "black"
        axis.text(column, row, text, ha="center", va="center", color=color, size=7)
    return image


def _draw_losses(
    axis: Axes, before: TaskConfusion, after: TaskConfusion, used: Int[np.ndarray, " used"]
) -> None:
    height = 0.38
    for offset, confusion, title in ((-height, before, "without"), (0.0, after, "with")):
        rows = np.arange(len(used)) + offset + height / 2
        axis.barh(rows, confusion.loss[used], height, label=title)
    axis.set_yticks(range(len(used)), list(map(str, used)))
    axis.invert_yaxis()
    axis.set_xlabel("flow-matching loss (actions normalized)")
    axis.set_ylabel("task")
    axis.set_title("loss of each task")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def _shorten(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
