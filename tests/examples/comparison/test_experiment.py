"""The loss of a frame is that of its chunk without padding."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.comparison.experiment import Experiment, vector_loader
from tests.support.policies import Tiny


def test_padding_does_not_count():
    steps = jnp.array([[1.0, 3.0, 100.0], [2.0, 100.0, 100.0]])
    experiment = Experiment(Tiny, lambda policy, rng, batch, task_id: steps)
    batch = {"action_is_pad": np.array([[False, False, True], [False, True, True]])}
    loss = experiment.frame_loss(Tiny(0, nnx.Rngs(0)), jax.random.key(0), batch, None)
    assert loss.tolist() == [2.0, 2.0]


def test_batches_hold_vectors_only(data):
    batch = next(iter(vector_loader(data, batch_size=4)))
    assert set(batch) == {"state", "actions", "action_is_pad", "task_id"}
