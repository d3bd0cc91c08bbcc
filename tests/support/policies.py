"""A policy and an experiment at a size that takes seconds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.comparison.experiment import Experiment
from taskcond import TaskConditioner


class Tiny(nnx.Module):
    """A policy that compiles quickly, for chunks of 8 steps of 4 dimensions."""

    def __init__(self, num_tasks, rngs):
        width = 8 * 4
        self.task_embeddings = TaskConditioner(num_tasks, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def compute_loss(self, rng, batch, task_id):
        noise = jax.random.normal(rng, batch["actions"].shape)
        time_emb = self.task_embeddings(noise.reshape(len(noise), -1), task_id)
        velocity = self.out(time_emb).reshape(noise.shape)
        return jnp.mean((velocity - (noise - batch["actions"])) ** 2, axis=-1)


TINY = Experiment(Tiny, Tiny.compute_loss, base_steps=3, task_steps=3, batch_size=16, draws=2)


def weights(model):
    return jax.tree.map(np.asarray, nnx.state(model, nnx.Param))


def interrupted(iterator, after):
    """Yields `after` items, and then behaves as if Ctrl-C was pressed."""
    yield from itertools.islice(iterator, after)
    raise KeyboardInterrupt
