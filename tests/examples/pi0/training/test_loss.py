"""The weights of errors, against an independent computation."""

import jax
import numpy as np
import pytest
from flax import nnx

from examples.pi0.model import Pi0
from examples.pi0.training.configs import ActionGroup, LossConfig
from examples.pi0.training.loss import draw, is_valid, loss_weights, weighted_loss
from tests.support.tiny_pi0 import observe, tiny


def batch_of(size=3, horizon=4, dim=5, dims=4, pad=2, seed=0):
    config = tiny(num_tasks=3)
    seen = observe(config, (size,), np.arange(size) % 3)
    is_pad = np.zeros((size, horizon), bool)
    is_pad[0, horizon - pad :] = True
    rng = np.random.default_rng(seed)
    return {
        "images": {k: np.uint8(rng.integers(0, 256, x.shape)) for k, x in seen.images.items()},
        "image_masks": seen.image_masks,
        "state": seen.state,
        "tokenized_prompt": seen.tokenized_prompt,
        "tokenized_prompt_mask": seen.tokenized_prompt_mask,
        "task_id": seen.task_id,
        "actions": rng.normal(size=(size, horizon, dim)).astype(np.float32),
        "action_is_pad": is_pad,
        "action_dims": np.full(size, dims, np.int32),
    }


GROUPS = (
    ActionGroup("base", 0, 2, 1.0),
    ActionGroup("arm", 2, 4, 2.0),
    ActionGroup("pad", 4, 5, 0.0),
)


def test_weights_by_motion_are_those_of_the_recipe():
    batch = batch_of()
    config = LossConfig(mask_padding=False, groups=GROUPS, by_motion=True)
    expected = np.zeros((3, 4, 5))
    for group in GROUPS:
        part = batch["actions"][..., group.first : group.stop]
        for b in range(3):
            for t in range(4):
                moved = 0.0 if t == 0 else np.sqrt(np.sum((part[b, t] - part[b, t - 1]) ** 2))
                weight = np.clip(0.2 + min(moved, 0.5), 0.1, 3.0)
                expected[b, t, group.first : group.stop] = weight
        expected[..., group.first : group.stop] *= group.weight / expected[..., group.first].mean()
    expected /= expected.mean()
    weights = loss_weights(batch, config)
    np.testing.assert_allclose(weights * expected.size, expected, rtol=1e-5)


def test_plain_weights_give_the_mean_of_all_errors():
    weights = loss_weights(batch_of(), LossConfig(mask_padding=False))
    np.testing.assert_allclose(weights, np.full((3, 4, 5), 1 / 60), rtol=1e-6)


def test_padding_counts_for_nothing_and_the_rest_is_divided_by_what_is_left():
    batch = batch_of(pad=2, dims=4)
    weights = np.asarray(loss_weights(batch, LossConfig()))
    assert (weights[0, 2:] == 0).all()
    assert (weights[..., 4] == 0).all()
    left = (3 * 4 - 2) * 4
    np.testing.assert_allclose(weights[np.asarray(is_valid(batch))], 1 / left, rtol=1e-5)


@pytest.mark.parametrize("mask", [True, False])
def test_what_is_written_in_padding_changes_loss_and_gradient_only_without_a_mask(mask):
    graph, state = nnx.split(Pi0(tiny(num_tasks=3), rngs=nnx.Rngs(0)))
    batch = batch_of(pad=2, dims=4)
    other = {**batch, "actions": batch["actions"].copy()}
    other["actions"][0, 2:] = 5.0
    other["actions"][..., 4] = 3.0
    batch["actions"][..., 4] = 0.0
    config = LossConfig(mask_padding=mask)

    @jax.jit
    @jax.value_and_grad
    def gradient(state, batch):
        model = nnx.merge(graph, state)
        return weighted_loss(model, draw(jax.random.key(0), batch, config))

    results = [jax.tree.leaves(gradient(state, part)) for part in (batch, other)]
    same = all((a == b).all() for a, b in zip(*results, strict=True))
    assert same == mask


def test_ids_are_dropped_at_their_rate():
    batch = {**batch_of(size=3), "task_id": np.array([0, 1, 2])}
    kept = draw(jax.random.key(0), batch, LossConfig(), dropout=0.0).observation.task_id
    gone = draw(jax.random.key(0), batch, LossConfig(), dropout=1.0).observation.task_id
    assert np.asarray(kept).tolist() == [0, 1, 2]
    assert np.asarray(gone).tolist() == [-1, -1, -1]
