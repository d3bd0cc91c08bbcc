"""A small conditioner and its inputs."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import taskcond

FEATURES = 6


def make(num_tasks=5, **kwargs):
    return taskcond.TaskConditioner(num_tasks, FEATURES, rngs=nnx.Rngs(0), **kwargs)


def time_emb(*batch, dtype=jnp.float32):
    values = np.random.default_rng(0).normal(size=(*batch, FEATURES))
    return jnp.asarray(values, dtype)


def table(conditioner):
    return np.asarray(conditioner.embedding[...])
