"""The loss of a batch: squared errors of velocities, times weights that add up to one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from examples.pi0.augment import Recipe, augment
from examples.pi0.model import Observation, Pi0
from examples.pi0.training.configs import ActionGroup, LossConfig
from taskcond import NULL_TASK

Batch = Mapping[str, Any]


class Draw(NamedTuple):
    """Holds what the model sees of a batch, and what was drawn for it.

    Attributes:
        observation: The observations; images are augmented, and some ids are dropped.
        actions: `[b, h, d]`, normalized.
        noise: `[b, h, d]`.
        time: `[b]`.
        weight: `[b, h, d]`; the sum is 1.
        stage_weight: `[b]`, of the prediction of the stage.
    """

    observation: Observation
    actions: Float[Array, "b h d"]
    noise: Float[Array, "b h d"]
    time: Float[Array, " b"]
    weight: Float[Array, "b h d"]
    stage_weight: Float[Array, " b"]


def draw(
    rng: Array,
    batch: Batch,
    config: LossConfig,
    *,
    dropout: float = 0.0,
    recipe: Recipe | None = None,
) -> Draw:
    """Draws noise and time for a whole batch, so that the parts of a batch do not change them.

    Args:
        rng: A key.
        batch: What the loader yields.
        config: The weights of the loss.
        dropout: How often the id of a task is dropped.
        recipe: How images are changed; `None` leaves them as they are.
    """
    augment_rng, noise_rng, time_rng, dropout_rng = jax.random.split(rng, 4)
    observation = observe(batch)
    if recipe is not None:
        images = augment(augment_rng, observation.images, recipe)
        observation = observation.replace(images=images)
    if dropout:
        is_dropped = jax.random.bernoulli(dropout_rng, dropout, batch["task_id"].shape)
        ids = jnp.where(is_dropped, NULL_TASK, batch["task_id"])
        observation = observation.replace(task_id=ids)
        if observation.stage is not None:
            stage = jnp.where(is_dropped, NULL_TASK, observation.stage)
            observation = observation.replace(stage=stage)
    actions = jnp.asarray(batch["actions"])
    if config.mask_padding:
        actions = without_padding(batch)
    noise = jax.random.normal(noise_rng, actions.shape)
    # As in the released models; see `Pi0.compute_loss`.
    time = jax.random.beta(time_rng, 1.5, 1.0, actions.shape[:1]) * 0.999 + 0.001
    weights = loss_weights(batch, config), _stage_weights(observation, config)
    return Draw(observation, actions, noise, time, *weights)


def weighted_loss(model: Pi0, draw: Draw, *, frozen_prefix: bool = False) -> Float[Array, ""]:
    """Returns the loss of a batch, or the share of a part of a batch."""
    errors, of_stage = model.errors_and_stage_loss(
        draw.observation, draw.actions, draw.noise, draw.time, frozen_prefix=frozen_prefix
    )
    return jnp.sum(errors * draw.weight) + jnp.sum(of_stage * draw.stage_weight)


def observe(batch: Batch) -> Observation:
    """Returns the observations of a batch, whose images are bytes until here."""
    return Observation(
        {name: jnp.asarray(image) / 127.5 - 1 for name, image in batch["images"].items()},
        batch["image_masks"],
        batch["state"],
        batch["tokenized_prompt"],
        batch["tokenized_prompt_mask"],
        batch["task_id"],
        batch.get("stage"),
    )


def is_valid(batch: Batch) -> Bool[Array, "b h d"]:
    """Says which actions are recorded ones: neither past an episode's end nor padded dimensions."""
    dims = jnp.arange(batch["actions"].shape[-1]) < batch["action_dims"][:, None]
    return ~jnp.asarray(batch["action_is_pad"])[..., None] & dims[:, None]


def without_padding(batch: Batch) -> Float[Array, "b h d"]:
    """Returns the actions with the last recorded one in place of padded steps, and no padded dims.

    The model sees all steps of a chunk, so that what is written in a padded one would change the
    others.
    """
    actions = jnp.asarray(batch["actions"])
    last = jnp.maximum(jnp.sum(~jnp.asarray(batch["action_is_pad"]), axis=1) - 1, 0)
    steps = jnp.minimum(jnp.arange(actions.shape[1]), last[:, None])
    repeated = jnp.take_along_axis(actions, steps[..., None], axis=1)
    dims = jnp.arange(actions.shape[-1]) < batch["action_dims"][:, None]
    return jnp.where(dims[:, None], repeated, 0.0)


def loss_weights(batch: Batch, config: LossConfig) -> Float[Array, "b h d"]:
    """Returns the weight of each error; the sum is 1.

    Source of the weights by motion: the recipe of the fork for BEHAVIOR-1K.
    """
    actions = jnp.asarray(batch["actions"])
    groups = config.groups or (ActionGroup("all", 0, actions.shape[-1], 1.0),)
    weight = jnp.zeros(actions.shape)
    for group in groups:
        part = slice(group.first, group.stop)
        step = _by_motion(actions[..., part]) if config.by_motion else jnp.ones(actions.shape[:2])
        weight = weight.at[..., part].set(step[..., None] * group.weight)
    if config.mask_padding:
        weight = jnp.where(is_valid(batch), weight, 0.0)
    return weight / jnp.maximum(weight.sum(), 1e-9)


def _stage_weights(observation: Observation, config: LossConfig) -> Float[Array, " b"]:
    """Returns the weight of the prediction of each stage, 0 where none is known."""
    if observation.stage is None:
        return jnp.zeros(len(observation.state))
    known = (jnp.asarray(observation.stage) != NULL_TASK).astype(jnp.float32)
    return config.stage_weight * known / jnp.maximum(known.sum(), 1)


def _by_motion(actions: Float[Array, "b h g"]) -> Float[Array, "b h"]:
    moved = jnp.linalg.norm(jnp.diff(actions, axis=1, prepend=actions[:, :1]), axis=-1)
    weight = jnp.clip(0.2 + jnp.minimum(moved, 0.5), 0.1, 3.0)
    return weight / weight.mean()
