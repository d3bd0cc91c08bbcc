"""Training saves what plain Orbax reads, with the meaning of the task table."""

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from examples.comparison.train import save, train
from taskcond import merge_into
from taskcond.checkpoint import Checkpoint
from tests.support.policies import TINY, Tiny, weights


def test_a_conditioned_policy_is_saved_with_what_its_rows_mean(data, tmp_path):
    policy = Tiny(3, nnx.Rngs(0))
    assert train(TINY, policy, tmp_path / "p", data=data, steps=3, use_tasks=True)
    conditioning = Checkpoint(tmp_path / "p").conditioning
    assert conditioning is not None
    assert conditioning.vocabulary == data.vocabulary
    assert (conditioning.num_tasks, conditioning.features) == (3, 32)
    assert sum(n or 0 for n in conditioning.frames_seen or ()) == 3 * 16  # steps, batch


def test_a_policy_without_tasks_is_saved_without_conditioning(data, tmp_path):
    policy = Tiny(0, nnx.Rngs(0))
    assert train(TINY, policy, tmp_path / "p", data=data, steps=3, use_tasks=False)
    assert Checkpoint(tmp_path / "p").conditioning is None


def test_saving_replaces_an_older_checkpoint_whole(tmp_path):
    first, second = (Tiny(0, nnx.Rngs(seed)) for seed in (0, 1))
    save(first, tmp_path / "p")
    save(second, tmp_path / "p")
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "p" / "params")
    merge_into(first, restored)
    jax.tree.map(np.testing.assert_array_equal, weights(first), weights(second))
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
