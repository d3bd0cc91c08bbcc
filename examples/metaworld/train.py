"""Training on demonstrations, saving, and loading as an actor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from examples.lerobot import LeRobotData
from examples.metaworld.policy import HORIZON, WIDTH, Policy, sample
from examples.training import fit
from taskcond import NULL_TASK, TaskVocabulary
from taskcond.checkpoint import TaskConditioning, load_into, open_checkpoint, save_params

BATCH = 256
_KEYS = ("state", "actions", "action_is_pad", "task_id", "episode_index")

Batch = dict[str, Array]


def read(root: Path, vocabulary: TaskVocabulary, limit: int | None = None) -> dict[str, np.ndarray]:
    """Reads the frames of a dataset into arrays, with the ids of `vocabulary`.

    Args:
        root: The dataset.
        vocabulary: The names of the ids.
        limit: The number of frames at most, evenly spaced; `None` reads all.
    """
    data = LeRobotData(root, horizon=HORIZON, vocabulary=vocabulary)
    count = len(data) if limit is None else min(limit, len(data))
    frames = [data[i * len(data) // count] for i in range(count)]
    return {key: np.stack([frame[key] for frame in frames]) for key in _KEYS}


def train(
    policy: Policy,
    frames: dict[str, np.ndarray],
    steps: int,
    *,
    use_tasks: bool,
    learning_rate: float = 1e-3,
    seed: int = 0,
    label: str = "training",
    trainable: type[nnx.Param] = nnx.Param,
) -> int:
    """Trains a policy in place; returns the number of steps, fewer than `steps` after Ctrl-C.

    Args:
        policy: The policy.
        frames: What `read` returns.
        steps: The number of steps of `BATCH` random frames.
        use_tasks: Whether the policy gets task ids.
        learning_rate: The peak of the learning rate.
        seed: The seed of batches and noise.
        label: The name of the training in the progress bar.
        trainable: `TaskParam` trains what belongs to tasks alone, and lets nothing else change.
    """

    def loss(model: Policy, key: Array, batch: Batch) -> Float[Array, ""]:
        return model.loss(key, batch, batch["task_id"] if use_tasks else None)

    policy.train()
    done = fit(
        policy,
        loss,
        batches(frames, seed),
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        label=label,
        trainable=trainable,
        weight_decay=1e-4 if trainable is nnx.Param else 0.0,
    )
    policy.eval()
    return done


def batches(frames: dict[str, np.ndarray], seed: int) -> Iterator[Batch]:
    """Yields batches of `BATCH` random frames, without end."""
    rng, count = np.random.default_rng(seed), len(frames["state"])
    while True:
        rows = rng.integers(count, size=BATCH)
        yield {key: jnp.asarray(values[rows]) for key, values in frames.items()}


def save(
    policy: Policy, path: Path, vocabulary: TaskVocabulary, frames: dict[str, np.ndarray]
) -> None:
    """Saves a policy, with what the rows of its table mean if it has one."""
    table = policy.task_embeddings
    about = None
    if table.num_tasks:
        seen = np.bincount(frames["task_id"], minlength=table.num_tasks)
        about = TaskConditioning(
            table.num_tasks,
            WIDTH,
            scale=table.scale,
            fusion=table.fusion,
            vocabulary=vocabulary,
            frames_seen=tuple(seen.tolist()),
        )
    save_params(nnx.state(policy, nnx.Param), path, conditioning=about, overwrite=True)


@dataclasses.dataclass(frozen=True)
class PolicyActor:
    """A policy that is told tasks by name; see `rollout.Actor`.

    Attributes:
        policy: The policy.
        vocabulary: The names of the table's rows; empty for a policy without conditioning.
    """

    policy: Policy
    vocabulary: TaskVocabulary

    def act(
        self, observation: Float[np.ndarray, "7"], task: str | None, seed: int
    ) -> Float[np.ndarray, "h 4"]:
        """Returns a chunk of actions."""
        task_id = None
        if len(self.vocabulary):
            task_id = jnp.array([NULL_TASK if task is None else self.vocabulary.id(task)])
        chunk = sample(self.policy, jax.random.key(seed), jnp.asarray(observation)[None], task_id)
        return np.asarray(chunk[0])


def load_actor(path: Path) -> PolicyActor:
    """Loads a checkpoint that `save` wrote."""
    about = open_checkpoint(path).conditioning
    vocabulary = TaskVocabulary([])
    if about is not None and about.vocabulary is not None:
        vocabulary = about.vocabulary
    own = "own/up" in open_checkpoint(path).leaves
    policy = Policy(len(vocabulary), nnx.Rngs(0), own=own)
    load_into(policy, path)
    policy.eval()
    return PolicyActor(policy, vocabulary)
