"""Blank inputs of π0, which cost as much as any others, and trainers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from examples.pi0.augment import RECIPES
from examples.pi0.model import Observation, Pi0Config
from examples.pi0.training.blueprint import Blueprint
from examples.pi0.training.configs import TrainConfig
from examples.pi0.training.groups import frozen_paths
from examples.pi0.training.step import Trainer


def blank_observation(config: Pi0Config, batch: int) -> Observation:
    """Returns `batch` observations of zeros, with the task id 0 if the model has tasks."""
    image = jnp.zeros((batch, config.image_size, config.image_size, 3))
    assert config.max_token_len is not None
    return Observation(
        images=dict.fromkeys(config.image_keys, image),
        image_masks=dict.fromkeys(config.image_keys, jnp.ones(batch, bool)),
        state=jnp.zeros((batch, config.action_dim)),
        tokenized_prompt=jnp.zeros((batch, config.max_token_len), jnp.int32),
        tokenized_prompt_mask=jnp.ones((batch, config.max_token_len), bool),
        task_id=jnp.zeros(batch, jnp.int32) if config.num_tasks else None,
    )


def blank_batch(config: Pi0Config, batch: int) -> dict[str, Any]:
    """Returns the shapes of a batch of the trainer, see `examples.pi0.training.examples`."""
    size, keys = config.image_size, config.image_keys
    assert config.max_token_len is not None

    def shape(*dims: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *dims), dtype)

    return {
        "images": {key: shape(size, size, 3, dtype=jnp.uint8) for key in keys},
        "image_masks": {key: shape(dtype=bool) for key in keys},
        "state": shape(config.action_dim),
        "tokenized_prompt": shape(config.max_token_len, dtype=jnp.int32),
        "tokenized_prompt_mask": shape(config.max_token_len, dtype=bool),
        "task_id": shape(dtype=jnp.int32),
        "actions": shape(config.action_horizon, config.action_dim),
        "action_is_pad": shape(config.action_horizon, dtype=bool),
        "action_dims": shape(dtype=jnp.int32),
    }


def random_like(shapes: Any, dtype: Any = None) -> Any:
    """Returns small random numbers, which a GPU multiplies as slowly as it does real weights.

    Args:
        shapes: A pytree of `jax.ShapeDtypeStruct`.
        dtype: The dtype; by default that of each leaf.
    """
    leaves, tree = jax.tree.flatten(shapes)

    def draw(i: int, leaf: Any) -> jax.Array:
        key = jax.random.key(i, impl="unsafe_rbg")
        return 0.02 * jax.random.normal(key, leaf.shape, dtype or leaf.dtype)

    return jax.tree.unflatten(tree, [draw(i, leaf) for i, leaf in enumerate(leaves)])


def make_trainer(config: TrainConfig, rows: Sharding | None = None) -> Trainer:
    """Returns the trainer of settings, as a run makes it."""
    blueprint = Blueprint(config.model)
    blueprint = blueprint.freeze(frozen_paths(blueprint.shapes, config.freeze))
    return Trainer(config, blueprint, RECIPES[config.data.augmentation], rows)
