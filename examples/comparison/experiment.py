"""A policy to compare with and without task ids, and how to train it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.lerobot import Frames, make_loader

Batch = dict[str, Any]
TaskIds = Int[Array, " b"]
P = TypeVar("P", bound=nnx.Module)


def vector_loader(data: Frames, **kwargs: Any) -> Iterator[Batch]:
    """Yields batches of normalized states and actions, without images and text.

    Args:
        data: The source.
        **kwargs: Arguments of `make_loader`.
    """
    keys = ("state", "actions", "action_is_pad", "task_id")
    for batch in make_loader(data, normalize_by="quantile", **kwargs):
        yield {key: batch[key] for key in keys}


@dataclasses.dataclass(frozen=True)
class Experiment(Generic[P]):
    """A policy to compare with and without task ids, and how to train it.

    Attributes:
        make_policy: `make_policy(num_tasks, rngs)` returns a policy. Its `TaskConditioner` is the
            attribute `task_embeddings`.
        compute_loss: `compute_loss(policy, rng, batch, task_id)` returns losses `[b, horizon]`.
        batch_size: The number of frames in a batch.
        base_steps: The number of steps of the base policy, without task ids.
        task_steps: The number of steps from there on, of one policy with ids and of one without.
        learning_rate: The peak of the learning rate, for both.
        draws: The number of draws of noise and time for each validation frame.
        make_loader: `make_loader(data, batch_size=..., num_epochs=...)` returns batches for
            `compute_loss`, which hold at least `actions`, `action_is_pad` and `task_id`.
    """

    make_policy: Callable[[int, nnx.Rngs], P]
    compute_loss: Callable[[P, Array, Batch, TaskIds | None], Float[Array, "b h"]]
    batch_size: int = 64
    base_steps: int = 600
    task_steps: int = 600
    learning_rate: float = 1e-3
    draws: int = 8
    make_loader: Callable[..., Iterable[Batch]] = vector_loader

    def frame_loss(
        self, policy: P, rng: Array, batch: Batch, task_id: TaskIds | None
    ) -> Float[Array, " b"]:
        """Returns the mean loss of each frame's chunk, over the steps that are not padding."""
        losses = self.compute_loss(policy, rng, batch, task_id)
        valid = ~batch["action_is_pad"]
        return jnp.sum(losses * valid, -1) / jnp.sum(valid, -1)
