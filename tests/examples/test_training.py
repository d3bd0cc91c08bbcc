"""The training loop: it repeats to the bit, and an interrupt loses nothing."""

import jax
import numpy as np
from flax import nnx

from examples.training import fit
from tests.support.policies import Tiny, interrupted, weights


def batches():
    rng = np.random.default_rng(0)
    while True:
        yield {
            "state": rng.normal(size=(16, 4)).astype(np.float32),
            "actions": np.tile(rng.normal(size=(16, 1, 1)), (1, 8, 4)).astype(np.float32),
        }


def loss(model, rng, batch):
    return model.compute_loss(rng, batch, None).mean()


def test_training_lowers_the_loss_and_repeats_to_the_bit():
    models = [Tiny(0, nnx.Rngs(0)) for _ in range(2)]
    batch, rng = next(batches()), jax.random.key(0)
    before = loss(models[0], rng, batch)
    for model in models:
        assert fit(model, loss, batches(), steps=40, learning_rate=3e-3) == 40
    assert loss(models[0], rng, batch) < before
    jax.tree.map(np.testing.assert_array_equal, weights(models[0]), weights(models[1]))


def test_an_interrupt_leaves_the_weights_of_the_last_finished_step():
    stopped, again = (Tiny(0, nnx.Rngs(0)) for _ in range(2))
    assert fit(stopped, loss, interrupted(batches(), 2), steps=5, learning_rate=1e-2) == 2
    assert fit(again, loss, interrupted(batches(), 2), steps=5, learning_rate=1e-2) == 2
    jax.tree.map(np.testing.assert_array_equal, weights(stopped), weights(again))
    fresh = weights(Tiny(0, nnx.Rngs(0)))
    assert not np.array_equal(fresh["out"]["kernel"], weights(stopped)["out"]["kernel"])
