"""The sampling of openpi itself, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.measuring.inputs import random_like
from examples.pi0.model import Observation


def has_openpi() -> bool:
    """Says whether openpi is installed."""
    return importlib.util.find_spec("openpi") is not None


def openpi_sampler(observation: Observation, noise: Any, variant: str | None) -> Callable[[], Any]:
    """Returns a call that samples with openpi's π0.5, whose weights are random, in bfloat16.

    Args:
        observation: What the policy sees, of a batch.
        noise: Where to start.
        variant: The name of both experts in openpi; `None` for those of π0.5.
    """
    from openpi.models import model, pi0_config  # pyright: ignore[reportMissingImports]

    experts = {"paligemma_variant": variant, "action_expert_variant": variant} if variant else {}
    horizon = noise.shape[1]
    config = pi0_config.Pi0Config(pi05=True, action_horizon=horizon, **experts)
    graph, shapes = nnx.split(nnx.eval_shape(config.create, jax.random.key(0)))
    state = random_like(shapes, jnp.bfloat16)
    seen = model.Observation(
        images=dict(observation.images),
        image_masks=dict(observation.image_masks),
        state=observation.state,
        tokenized_prompt=observation.tokenized_prompt,
        tokenized_prompt_mask=observation.tokenized_prompt_mask,
    )

    @jax.jit
    def sample(state: Any, seen: Any, noise: Any) -> Any:
        return nnx.merge(graph, state).sample_actions(jax.random.key(0), seen, noise=noise)

    return lambda: sample(state, seen, noise)
