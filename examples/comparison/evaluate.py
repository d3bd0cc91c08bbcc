"""The task confusion of a policy on validation data."""

from __future__ import annotations

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float

from examples.comparison.experiment import Batch, Experiment, P, TaskIds
from examples.lerobot import Frames
from taskcond.diagnostics import TaskConfusion, losses_by_task, task_confusion

_IDS_AT_ONCE = 8  # so that the memory does not grow with the number of tasks


def evaluate(
    experiment: Experiment[P], policy: P, data: Frames, num_tasks: int, max_frames: int = 512
) -> TaskConfusion:
    """Returns the task confusion of a policy on `data`.

    Args:
        experiment: Gives the loss, and the number of draws of noise and time for each frame.
        policy: The policy; it is switched to evaluation.
        data: The validation data.
        num_tasks: The number of task ids to try for each frame.
        max_frames: How many frames to use at most.
    """
    policy.eval()
    graphdef, state = nnx.split(policy)

    @jax.jit
    def losses(state: nnx.State, rng: Array, batch: Batch) -> Float[Array, "b tasks"]:
        model = nnx.merge(graphdef, state)
        rngs = jax.random.split(rng, experiment.draws)

        def loss(task_id: TaskIds) -> Float[Array, " b"]:
            # The same draws for every id, as losses under different noise cannot be compared.
            each = jax.lax.map(lambda rng: experiment.frame_loss(model, rng, batch, task_id), rngs)
            return each.mean(0)

        return losses_by_task(loss, len(batch["actions"]), num_tasks, ids_at_once=_IDS_AT_ONCE)

    size = min(64, len(data))
    loader = experiment.make_loader(data, batch_size=size, num_epochs=1)
    batches = itertools.islice(loader, max(max_frames // size, 1))
    parts = [
        task_confusion(losses(state, jax.random.key(i), batch), batch["task_id"])
        for i, batch in enumerate(batches)
    ]
    return sum(parts[1:], start=parts[0])
