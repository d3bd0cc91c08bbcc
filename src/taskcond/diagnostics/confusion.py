"""Task confusion: the task to which a policy's own loss assigns a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float, Int

from taskcond.diagnostics import confusion_views
from taskcond.diagnostics.interval import wilson_interval
from taskcond.ids import check_ids
from taskcond.messages import Readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIE = 1e-6
"""The relative difference of losses up to which ids share a sample: float32 has no more digits."""


@dataclasses.dataclass(frozen=True, repr=False)
class TaskConfusion(Readable):
    """A comparison of true and predicted tasks, with the losses behind the predictions.

    `print` shows it as a table, and a notebook as well.

    Attributes:
        matrix: `[num_tasks, num_tasks]`, the number of samples of each true task (row) that are
            assigned to each predicted task (column). If several ids have the smallest loss, they
            share the sample evenly, so that a policy that does not see the id is at chance.
        loss: `[num_tasks]`, the mean loss of each task's samples under their own id; NaN for a
            task without samples.
        loss_under: `[num_tasks, num_tasks]`, the mean loss of each true task's samples (row) under
            each id (column); `None` if it is unknown.
        loss_without: `[num_tasks]`, the mean loss of each task's samples under no id; `None` if
            it is unknown.
        names: The names of the tasks; empty if they are unknown.
    """

    matrix: Float[np.ndarray, "tasks tasks"]
    loss: Float[np.ndarray, " tasks"]
    loss_under: Float[np.ndarray, "tasks tasks"] | None = None
    loss_without: Float[np.ndarray, " tasks"] | None = None
    names: tuple[str, ...] = ()

    @property
    def counts(self) -> Float[np.ndarray, " tasks"]:
        """The number of samples of each task."""
        return self.matrix.sum(1)

    @property
    def accuracy(self) -> float:
        """The share of samples whose predicted task is the true task; NaN without samples."""
        total = self.matrix.sum()
        return float(np.trace(self.matrix) / total) if total else float("nan")

    @property
    def chance(self) -> float:
        """The accuracy of a policy that does not see the id."""
        return 1 / len(self.matrix)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval, which holds the true accuracy with a probability of 95 %.

        It takes samples for independent. Frames that lie near each other are not: choose frames
        of many episodes.
        """
        return wilson_interval(float(np.trace(self.matrix)), float(self.matrix.sum()))

    @property
    def right(self) -> float:
        """The mean loss under the right id."""
        return self._mean(self.loss)

    @property
    def wrong(self) -> float:
        """The mean loss under the other ids; NaN if it is unknown, or there is only one id."""
        if self.loss_under is None or len(self.matrix) < 2:
            return float("nan")
        others = ~np.eye(len(self.matrix), dtype=bool)
        return self._mean(np.mean(self.loss_under, axis=1, where=others))

    @property
    def without(self) -> float:
        """The mean loss under no id; NaN if it is unknown."""
        return float("nan") if self.loss_without is None else self._mean(self.loss_without)

    @property
    def effect(self) -> float:
        """The share by which a wrong id raises the loss; NaN if it is unknown.

        Accuracy does not tell how much an id matters: one that changes the loss by a thousandth,
        but always in the right direction, has an accuracy of 100 %.
        """
        return float(_rise(self.right, self.wrong))

    @property
    def effect_without(self) -> float:
        """The share by which the loss is higher without an id; NaN if it is unknown."""
        return float(_rise(self.right, self.without))

    @property
    def rises(self) -> Float[np.ndarray, "tasks tasks"] | None:
        """The share by which each id (column) raises the loss of each task (row)."""
        return None if self.loss_under is None else _rise(self.loss[:, None], self.loss_under)

    def worst_pairs(self, limit: int = 5) -> list[tuple[str, str, float]]:
        """Returns `(true task, predicted task, share)` of the most frequent mistakes, worst first.

        Args:
            limit: The number of pairs at most.
        """
        shares = self.matrix / np.maximum(self.counts, 1)[:, None]
        shares[np.diag_indices_from(shares)] = 0
        order = np.argsort(-shares, axis=None, kind="stable")[:limit]
        pairs = [np.unravel_index(i, shares.shape) for i in order]
        return [(self.name(a), self.name(b), float(shares[a, b])) for a, b in pairs if shares[a, b]]

    def name(self, task: int | np.integer) -> str:
        """Returns the name of a task, or its number if names are unknown."""
        return self.names[task] if self.names else str(task)

    def to_dict(self) -> dict[str, object]:
        """Returns the numbers for JSON; what is unknown is `None`."""
        return confusion_views.to_dict(self)

    def plot(self) -> Figure:
        """Draws the matrix and the loss of each task; `plot().savefig(path)` writes a file.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return confusion_views.plot(self)

    def __str__(self) -> str:
        return confusion_views.as_text(self)

    def _repr_html_(self) -> str:
        return confusion_views.as_html(self)

    def __add__(self, other: TaskConfusion) -> TaskConfusion:
        """Returns the comparison of both batches together.

        Raises:
            ValueError: They are about different tasks.
        """
        if (self.names, len(self.matrix)) != (other.names, len(other.matrix)):
            raise ValueError(
                f"the comparisons are about {len(self.matrix)} tasks {list(self.names)} and "
                f"{len(other.matrix)} tasks {list(other.names)}; add those of the same tasks"
            )
        weights = self.counts, other.counts
        loss = _weighted(weights, self.loss, other.loss)
        under = without = None
        if self.loss_under is not None and other.loss_under is not None:
            under = _weighted([w[:, None] for w in weights], self.loss_under, other.loss_under)
        if self.loss_without is not None and other.loss_without is not None:
            without = _weighted(weights, self.loss_without, other.loss_without)
        return TaskConfusion(self.matrix + other.matrix, loss, under, without, self.names)

    def _mean(self, of_tasks: Float[np.ndarray, " tasks"]) -> float:
        """Returns the mean over samples of what is known for each task."""
        used = self.counts > 0
        if not used.any():
            return float("nan")
        return float(np.average(of_tasks[used], weights=self.counts[used]))


def task_confusion(
    losses: Float[Array, "b tasks"] | Float[np.ndarray, "b tasks"],
    task_id: Int[np.ndarray, " b"],
    *,
    names: Sequence[str] = (),
    without: Float[Array, " b"] | Float[np.ndarray, " b"] | None = None,
) -> TaskConfusion:
    """Returns the confusion of a batch; the id with the smallest loss is the predicted task.

    Args:
        losses: The result of `losses_by_task`.
        task_id: The true task of each sample.
        names: The names of the tasks.
        without: The loss of each sample under no id: the last column of `losses_by_task` with
            `null=True`.

    Raises:
        ValueError: An id is out of range, a loss is NaN or Inf, or lengths differ.

    >>> result = task_confusion(np.array([[0.1, 0.9], [0.5, 0.2], [0.3, 0.4]]), np.array([0, 1, 1]))
    >>> result.matrix.tolist(), round(result.accuracy, 2)
    ([[1.0, 0.0], [1.0, 1.0]], 0.67)
    """
    losses, task_id = np.asarray(losses, np.float64), np.asarray(task_id)
    names = tuple(names)
    num_tasks = losses.shape[1]
    _check_lengths(losses, task_id, names, without)
    check_ids(task_id, num_tasks)
    if (task_id < 0).any():
        raise ValueError(
            "task_id holds NULL_TASK, but a sample without a task has no true task; leave it out"
        )
    _check_finite(losses, task_id, names)
    least = losses.min(1, keepdims=True)
    best = losses <= least + _TIE * np.abs(least)
    matrix = _sum_by_task(best / best.sum(1, keepdims=True), task_id, num_tasks)
    counts = np.bincount(task_id, minlength=num_tasks)
    own = losses[np.arange(len(task_id)), task_id]
    with np.errstate(invalid="ignore"):
        loss = _sum_by_task(own, task_id, num_tasks) / counts
        under = _sum_by_task(losses, task_id, num_tasks) / counts[:, None]
        of_null = None
        if without is not None:
            of_null = _sum_by_task(np.asarray(without, np.float64), task_id, num_tasks) / counts
    return TaskConfusion(matrix, loss, under, of_null, names)


def _check_lengths(
    losses: np.ndarray,
    task_id: np.ndarray,
    names: Sequence[str],
    without: Float[Array, " b"] | Float[np.ndarray, " b"] | None,
) -> None:
    samples, num_tasks = losses.shape
    found = [f"task_id has {len(task_id)}"] if len(task_id) != samples else []
    if without is not None and len(without) != samples:
        found.append(f"without has {len(without)}")
    if found:
        raise ValueError(
            f"losses has {samples} samples, but {' and '.join(found)}; pass arrays of one batch"
        )
    if names and len(names) != num_tasks:
        raise ValueError(
            f"losses has {num_tasks} ids, but there are {len(names)} names; pass one name for each "
            "row of the table"
        )


def _check_finite(losses: np.ndarray, task_id: np.ndarray, names: Sequence[str]) -> None:
    bad = ~np.isfinite(losses)
    if not bad.any():
        return
    tasks, ids = np.unique(task_id[bad.any(1)]), np.flatnonzero(bad.any(0))
    named = [names[task] for task in tasks] if names else tasks.tolist()
    under = "every id" if len(ids) == losses.shape[1] else f"the ids {ids.tolist()}"
    raise ValueError(
        f"the loss of {bad.any(1).sum()} samples is NaN or Inf, under {under}; they are samples of "
        f"the tasks {named}. Correct the policy or the data first"
    )


def _sum_by_task(values: np.ndarray, task_id: np.ndarray, num_tasks: int) -> np.ndarray:
    total = np.zeros((num_tasks, *values.shape[1:]))
    np.add.at(total, task_id, values)
    return total


def _weighted(weights: Sequence[np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the mean of `a` and `b`; NaN where neither has weight."""
    total = sum(np.where(w > 0, w * x, 0) for w, x in zip(weights, (a, b), strict=True))
    with np.errstate(invalid="ignore"):
        return total / (weights[0] + weights[1])


def _rise(base: float | np.ndarray, loss: float | np.ndarray) -> np.ndarray:
    """Returns `loss` over `base`, as a share of it: 0 if both are equal, even to zero."""
    difference = np.subtract(loss, base)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(difference == 0, 0.0, difference / np.abs(base))
