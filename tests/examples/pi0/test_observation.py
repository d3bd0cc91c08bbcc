"""Observation: what is refused, and with which fix."""

import jax
import numpy as np
import pytest

from tests.support.tiny_pi0 import chunk, close, observe, velocity


def with_image(observation, key, value):
    return observation.replace(images={**observation.images, key: value})


BAD_OBSERVATIONS = {
    "a [b, 1] id": (
        lambda o: o.replace(task_id=np.zeros((2, 1), int)),
        ValueError,
        r"task_id has shape \(2, 1\), expected \(2,\)",
    ),
    "no id": (lambda o: o.replace(task_id=None), ValueError, "task_id not found in batch"),
    "an id out of range": (
        lambda o: o.replace(task_id=np.array([0, 7])),
        ValueError,
        "task_id out of range",
    ),
    "a float id": (lambda o: o.replace(task_id=np.array([0.0, 1.0])), TypeError, "task_id"),
    "a missing camera": (
        lambda o: o.replace(images={k: v for k, v in o.images.items() if "left" not in k}),
        ValueError,
        r"missing: \['left_wrist_0_rgb'\].*black image",
    ),
    "an unknown camera": (
        lambda o: with_image(o, "side", o.images["base_0_rgb"]),
        ValueError,
        r"unknown: \['side'\]",
    ),
    "an image of another size": (
        lambda o: with_image(o, "base_0_rgb", np.zeros((2, 14, 28, 3), np.float32)),
        ValueError,
        r"images\['base_0_rgb'\] has shape \(2, 14, 28, 3\), expected \(2, 28, 28, 3\)",
    ),
    "a state of another width": (
        lambda o: o.replace(state=o.state[:, :3]),
        ValueError,
        r"state has shape \(2, 3\).*zero-pad",
    ),
    "another number of prompts": (
        lambda o: o.replace(tokenized_prompt=o.tokenized_prompt[:1]),
        ValueError,
        "tokenized_prompt has shape",
    ),
    "a prompt mask of another length": (
        lambda o: o.replace(tokenized_prompt_mask=o.tokenized_prompt_mask[:, 1:]),
        ValueError,
        "tokenized_prompt_mask has shape",
    ),
}


@pytest.mark.parametrize("case", BAD_OBSERVATIONS)
def test_a_bad_observation_is_refused(policy, case):
    change, error, message = BAD_OBSERVATIONS[case]
    observation = change(observe(policy.config, task_id=np.array([0, 1])))
    actions = chunk(policy.config)
    with pytest.raises(error, match=message):
        policy.velocity(observation, actions, np.ones(2, np.float32))
    with pytest.raises(error, match=message):
        policy.sample_actions(None, observation, noise=actions)
    with pytest.raises(error, match=message):
        policy.compute_loss(jax.random.key(0), observation, actions)


def test_images_of_bytes_are_refused(policy):
    observation = observe(policy.config, task_id=np.array([0, 1]))
    images = {k: np.zeros(v.shape, np.int32) for k, v in observation.images.items()}
    bad = jax.tree.map(lambda x: x, observation)  # past the check of types in __init__
    object.__setattr__(bad, "images", images)
    with pytest.raises(TypeError, match=r"must be float32 in \[-1, 1\], got int32.*127.5"):
        policy.sample_actions(None, bad, noise=chunk(policy.config))


def test_images_of_another_batch_are_told_from_those_of_another_size(policy):
    observation = observe(policy.config, (3,), task_id=np.array([0, 1]))
    with pytest.raises(ValueError, match="its leading axes must be those of state"):
        policy.prefix_tokens(observation.replace(state=observation.state[:2]))


def test_ids_may_be_a_list(policy):
    wanted = velocity(policy, observe(policy.config, task_id=np.array([0, 2])))
    close(velocity(policy, observe(policy.config, task_id=[0, 2])), wanted)
