"""A state is saved and restored, with and without ids."""

import jax
import numpy as np
import pytest

from examples.pi0.training.devices import state_shardings
from examples.pi0.training.loop import open_checkpoints
from examples.pi0.training.plan import make_plan
from examples.pi0.training.step import Trainer
from taskcond.checkpoint import open_checkpoint


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_what_is_saved_is_restored(condition, decay, make_config, tmp_path):
    config = make_config("saved", condition=condition, ema_decay=decay, runs_dir=str(tmp_path))
    plan = make_plan(config)
    trainer = Trainer(plan.config, plan.blueprint, None)
    shardings = state_shardings(plan.mesh, trainer.shapes)
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: jax.numpy.asarray(rng.uniform(0, 9, leaf.shape).astype(leaf.dtype)),
        trainer.shapes,
    )
    config.folder.mkdir(parents=True)
    with open_checkpoints(config.folder, plan) as checkpoints:
        checkpoints.save(state, {"about.txt": b"text"})
        checkpoints.wait()
        restored = checkpoints.restore(trainer.shapes, shardings)
    jax.tree.map(np.testing.assert_array_equal, state, restored)
    step = config.folder / str(int(state.step))
    assert (step / "assets/about.txt").read_bytes() == b"text"
    assert ("task_embeddings/embedding" in open_checkpoint(step / "params").leaves) == condition
