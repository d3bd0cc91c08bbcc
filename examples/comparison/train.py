"""Trains a policy of an experiment, and saves it with the meaning of its task table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from examples.comparison.experiment import Batch, Experiment, P
from examples.lerobot import Frames
from examples.training import fit
from taskcond import TaskConditioner
from taskcond.checkpoint import TaskConditioning, save_params


def train(
    experiment: Experiment[P], policy: P, path: Path, *, data: Frames, steps: int, use_tasks: bool
) -> bool:
    """Trains and saves a policy, also after Ctrl-C; returns whether all steps were done.

    Args:
        experiment: How to train.
        policy: Is trained in place.
        path: The folder to save to, see `save`.
        data: The training data.
        steps: The number of steps.
        use_tasks: Whether the policy gets task ids.
    """
    policy.train()
    batches = experiment.make_loader(data, batch_size=min(experiment.batch_size, len(data)))
    seen = np.zeros(len(data.vocabulary), int)

    def counted() -> Iterator[Batch]:
        for batch in batches:
            seen[:] += np.bincount(batch["task_id"], minlength=len(seen))
            yield batch

    def loss(model: P, rng: Array, batch: Batch) -> Float[Array, ""]:
        return experiment.frame_loss(
            model, rng, batch, batch["task_id"] if use_tasks else None
        ).mean()

    done = fit(
        policy,
        loss,
        counted(),
        steps=steps,
        learning_rate=experiment.learning_rate,
        label=f"{path.name}: {'with' if use_tasks else 'without'} task ids",
    )
    conditioning = None
    if use_tasks:
        table: TaskConditioner = vars(policy)["task_embeddings"]
        conditioning = TaskConditioning(
            table.num_tasks, table.features, table.scale, table.fusion, data.vocabulary,
            tuple(seen.tolist()),
        )  # fmt: skip
    save(policy, path, conditioning)
    return done == steps


def save(policy: nnx.Module, path: Path, conditioning: TaskConditioning | None = None) -> None:
    """Writes a policy's parameters to `path/params`, in the layout of released weights.

    Args:
        policy: The policy.
        path: The folder. An older checkpoint in it is replaced.
        conditioning: The meaning of the task table.
    """
    params = nnx.state(policy, nnx.Param)
    save_params(params, path / "params", conditioning=conditioning, overwrite=True)
