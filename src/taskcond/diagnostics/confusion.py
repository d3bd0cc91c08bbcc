"""Task confusion: the task to which a policy's own loss assigns a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from taskcond.ids import check_ids


@dataclasses.dataclass(frozen=True)
class TaskConfusion:
    """A comparison of true and predicted tasks, with the losses behind the predictions.

    Attributes:
        matrix: `[num_tasks, num_tasks]`, the number of samples of each true task (row) that are
            assigned to each predicted task (column). If several ids have the smallest loss, they
            share the sample evenly, so that a policy that does not see the id is at chance.
        loss: `[num_tasks]`, the mean loss of each task's samples under their own id; NaN for a
            task without samples.
    """

    matrix: Float[np.ndarray, "tasks tasks"]
    loss: Float[np.ndarray, " tasks"]

    @property
    def accuracy(self) -> float:
        """The share of samples whose predicted task is the true task; NaN without samples."""
        total = self.matrix.sum()
        return float(np.trace(self.matrix) / total) if total else float("nan")

    def __add__(self, other: TaskConfusion) -> TaskConfusion:
        """Returns the comparison of both batches together."""
        counts = np.stack([self.matrix.sum(1), other.matrix.sum(1)])
        losses = np.stack([self.loss, other.loss])
        total = np.where(counts > 0, counts * losses, 0).sum(0)
        with np.errstate(invalid="ignore"):
            loss = total / counts.sum(0)
        return TaskConfusion(self.matrix + other.matrix, loss)


def losses_by_task(
    loss_fn: Callable[[Int[Array, " b"]], Float[Array, " b"]], batch_size: int, num_tasks: int
) -> Float[Array, "b tasks"]:
    """Returns the loss of every sample under every task id; can be jitted.

    Args:
        loss_fn: Gives the loss of each sample for one id per sample. It must use the same noise
            and time in every call, because losses under different noise cannot be compared.
        batch_size: Number of samples.
        num_tasks: Number of ids to try.

    >>> losses_by_task(lambda task_id: abs(task_id - 1.0), 2, 3).tolist()
    [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    """
    losses = jax.lax.map(
        lambda task: loss_fn(jnp.full((batch_size,), task, jnp.int32)), jnp.arange(num_tasks)
    )
    return losses.T


def task_confusion(
    losses: Float[Array, "b tasks"] | Float[np.ndarray, "b tasks"], task_id: Int[np.ndarray, " b"]
) -> TaskConfusion:
    """Returns the confusion of a batch; the id with the smallest loss is the predicted task.

    Args:
        losses: The result of `losses_by_task`.
        task_id: The true task of each sample.

    Raises:
        ValueError: An id is out of range, or a loss is NaN.

    >>> result = task_confusion(np.array([[0.1, 0.9], [0.5, 0.2], [0.3, 0.4]]), np.array([0, 1, 1]))
    >>> result.matrix.tolist(), round(result.accuracy, 2)
    ([[1.0, 0.0], [1.0, 1.0]], 0.67)
    """
    losses, task_id = np.asarray(losses, np.float64), np.asarray(task_id)
    num_tasks = losses.shape[1]
    check_ids(task_id, num_tasks)
    if (task_id < 0).any():
        raise ValueError(
            "task_id holds NULL_TASK, but a sample without a task has no true task; leave it out"
        )
    if np.isnan(losses).any():
        raise ValueError(
            f"the loss of {np.isnan(losses).any(1).sum()} samples is NaN; correct the policy or "
            "the data first"
        )
    best = losses == losses.min(1, keepdims=True)
    matrix, loss = np.zeros((num_tasks, num_tasks)), np.zeros(num_tasks)
    np.add.at(matrix, task_id, best / best.sum(1, keepdims=True))
    np.add.at(loss, task_id, losses[np.arange(len(task_id)), task_id])
    with np.errstate(invalid="ignore"):
        return TaskConfusion(matrix, loss / np.bincount(task_id, minlength=num_tasks))
