"""Views of a task confusion: a table as text and as HTML, numbers for JSON, and a plot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from taskcond.diagnostics.html import html_table
from taskcond.diagnostics.numbers import change, known, known_list
from taskcond.messages import columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from taskcond.diagnostics.confusion import TaskConfusion

_HEADER = ("task", "samples", "told right", "loss", "wrong id", "no id")


def as_text(confusion: TaskConfusion) -> str:
    """Returns the table of tasks, what all of them give together, and the worst pairs."""
    return f"{columns([_HEADER, *_rows(confusion)])}\n\n" + "\n".join(_summary(confusion))


def as_html(confusion: TaskConfusion) -> str:
    """Returns the same as HTML."""
    return html_table(_HEADER, _rows(confusion), _summary(confusion))


def to_dict(confusion: TaskConfusion) -> dict[str, object]:
    """Returns all numbers for JSON, whose NaN are `None`."""
    numbers = ("accuracy", "chance", "right", "wrong", "without", "effect", "effect_without")
    arrays = {
        name: getattr(confusion, name) for name in ("matrix", "loss", "loss_under", "loss_without")
    }
    return {
        "names": [confusion.name(task) for task in range(len(confusion.matrix))],
        **{name: known(getattr(confusion, name)) for name in numbers},
        "interval": list(confusion.interval),
        "worst_pairs": [list(pair) for pair in confusion.worst_pairs()],
        **{name: None if values is None else known_list(values) for name, values in arrays.items()},
    }


def plot(confusion: TaskConfusion) -> Figure:
    """Draws the matrix, and beside it the losses of each task."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib, which is not installed. Run pip install matplotlib, or use "
            "print(confusion) and confusion.to_dict()"
        ) from error
    used = np.flatnonzero(confusion.counts)
    figure = Figure(figsize=(11, 2 + 0.3 * len(confusion.matrix)), layout="constrained")
    left, right = figure.subplots(1, 2)
    share = confusion.matrix[used] / confusion.counts[used, None]
    image = left.imshow(100 * share, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    figure.colorbar(image, ax=left, label="% of the task's samples")
    left.set_title(f"{confusion.accuracy:.1%} right, chance {confusion.chance:.1%}")
    left.set_xlabel("predicted task")
    left.set_yticks(range(len(used)), [confusion.name(task) for task in used])
    for name, losses in (("right id", confusion.loss), ("no id", confusion.loss_without)):
        if losses is not None:
            right.plot(losses[used], range(len(used)), "o", label=name)
    if confusion.loss_under is not None:
        for column in confusion.loss_under[used].T:
            right.plot(column, range(len(used)), "|", color="gray")
        right.plot([], [], "|", color="gray", label="each id")
    right.set_ylim(left.get_ylim())
    right.set_yticks(range(len(used)), [])
    right.set_xlabel("loss")
    right.legend()
    return figure


def _rows(confusion: TaskConfusion) -> list[tuple[str, ...]]:
    counts = confusion.counts
    rows = []
    for task in np.flatnonzero(counts):
        wrong = without = math.nan
        if confusion.loss_under is not None and len(counts) > 1:
            wrong = float(np.delete(confusion.loss_under[task], task).mean())
        if confusion.loss_without is not None:
            without = float(confusion.loss_without[task])
        rows.append(
            (
                confusion.name(task),
                f"{counts[task]:.0f}",
                f"{confusion.matrix[task, task] / counts[task]:.1%}",
                *(_number(x) for x in (float(confusion.loss[task]), wrong, without)),
            )
        )
    losses = (confusion.right, confusion.wrong, confusion.without)
    rows.append(
        (
            "all tasks",
            f"{counts.sum():.0f}",
            f"{confusion.accuracy:.1%}",
            *(_number(x) for x in losses),
        )
    )
    return rows


def _summary(confusion: TaskConfusion) -> list[str]:
    low, high = confusion.interval
    lines = [
        f"told right: {confusion.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}); chance is "
        f"{confusion.chance:.1%}"
    ]
    if not math.isnan(confusion.effect):
        lines.append(f"a wrong id changes the loss by {change(confusion.effect)}")
    if not math.isnan(confusion.effect_without):
        lines.append(f"no id changes the loss by {change(confusion.effect_without)}")
    return lines + [
        f"taken for another task: {true!r} for {predicted!r}, {share:.1%}"
        for true, predicted, share in confusion.worst_pairs()
    ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"
