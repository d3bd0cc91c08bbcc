"""A π0 or π0.5 that is small enough for tests, its inputs, and how to run it under jit."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.pi0.model import GemmaConfig, Observation, Pi0, Pi0Config, SiglipConfig
from taskcond import merge_into
from taskcond.trees import flatten, to_dict

TABLE = "task_embeddings/embedding"


def tiny(**changes) -> Pi0Config:
    heads = {"depth": 2, "num_heads": 4, "num_kv_heads": 1, "head_dim": 8}
    sizes = {
        "dtype": "float32",
        "action_dim": 5,
        "action_horizon": 4,
        "max_token_len": 6,
        "image_size": 28,
        "vocab_size": 64,
        "paligemma": GemmaConfig(width=32, mlp_dim=48, **heads),
        "action_expert": GemmaConfig(width=16, mlp_dim=24, **heads),
        "siglip": SiglipConfig(width=24, depth=1, mlp_dim=40, num_heads=2, patch_size=14),
    }
    return Pi0Config(**{**sizes, **changes})


def observe(config: Pi0Config, batch: tuple[int, ...] = (2,), task_id=None, seed=0) -> Observation:
    rng = np.random.default_rng(seed)
    image = (*batch, config.image_size, config.image_size, 3)
    prompt = (*batch, config.max_token_len)
    mask = np.ones(prompt, bool)
    mask[..., -2:] = False
    return Observation(
        images={k: rng.uniform(-1, 1, image).astype(np.float32) for k in config.image_keys},
        image_masks={k: np.ones(batch, bool) for k in config.image_keys},
        state=rng.normal(size=(*batch, config.action_dim)).astype(np.float32),
        tokenized_prompt=rng.integers(0, config.vocab_size, prompt, np.int32),
        tokenized_prompt_mask=mask,
        task_id=task_id,
    )


def chunk(config: Pi0Config, batch: tuple[int, ...] = (2,), seed=1) -> np.ndarray:
    shape = (*batch, config.action_horizon, config.action_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shaken(model: Pi0) -> Pi0:
    """Gives adaptive norms random weights; with their initial zeros they ignore time and task."""
    state = nnx.state(model, nnx.Param)
    for path, x in flatten(to_dict(state)).items():
        if "Dense_0/kernel" in path and "norm_1" in path:
            key = jax.random.key(sum(map(ord, path)))
            value = jax.random.normal(key, x.shape) * 0.1
            merge_into(model, {path: value}, keep=(".*",))
    return model


def sample(model: Pi0, observation: Observation, **kwargs) -> np.ndarray:
    """Samples under jit, as it is meant to run: eagerly, each of these takes seconds."""
    graph, state = nnx.split(model)
    rows = np.shape(observation.state)[:-1]
    kwargs.setdefault("noise", chunk(model.config, rows))
    run = jax.jit(lambda state, o: nnx.merge(graph, state).sample_actions(None, o, **kwargs))
    return np.asarray(run(state, observation))


def velocity(model: Pi0, observation: Observation) -> np.ndarray:
    graph, state = nnx.split(model)
    x, time = chunk(model.config), jnp.array([0.2, 0.7])
    run = jax.jit(lambda state, o: nnx.merge(graph, state).velocity(o, x, time))
    return np.asarray(run(state, observation))


def close(a, b, tolerance=2e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


_SMALLEST = GemmaConfig(width=8, depth=1, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=8)
ROBOT_CONFIG = Pi0Config.small(
    num_tasks=3,
    action_dim=6,
    action_horizon=4,
    image_size=28,
    paligemma=_SMALLEST,
    action_expert=_SMALLEST,
    siglip=SiglipConfig(width=8, depth=1, mlp_dim=8, num_heads=1, patch_size=14),
)
"""A model for the frames of the demo dataset with three tasks."""
