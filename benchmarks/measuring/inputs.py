"""Blank inputs of π0, which cost as much as any others."""

from __future__ import annotations

import jax.numpy as jnp

from examples.pi0.model import Observation, Pi0Config


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
