"""The command tells whether a checkpoint does what it is told."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.lerobot.write import Recording, write_dataset
from examples.metaworld.diagnose import Args, main
from examples.metaworld.policy import Policy
from examples.metaworld.tasks import TEN, vocabulary_of
from examples.metaworld.train import read, save, train

TASKS = TEN[:3]
VOCABULARY = vocabulary_of(TASKS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Episodes of three tasks in one scene, each of which always acts in the same way."""
    rng = np.random.default_rng(0)
    recordings = []
    for episode in range(12):
        # The more the hand is to one side, the more it moves to the other one.
        state = rng.uniform(0, 0.5, (20, 7)).astype(np.float32)
        actions = np.tile(np.eye(4)[episode % 3], (20, 1)) - 2 * state[:1, :1]
        recordings.append(Recording(state, actions.astype(np.float32), TASKS[episode % 3].name))
    root = tmp_path_factory.mktemp("data") / "dataset"
    return write_dataset(root, recordings, version="v3.0")


@pytest.fixture(scope="module")
def frames(dataset):
    return read(dataset, VOCABULARY)


@pytest.fixture(scope="module")
def base(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "params"
    policy = Policy(0, nnx.Rngs(0))
    train(policy, frames, 3, use_tasks=False)
    save(policy, path, VOCABULARY, frames)
    return path


def run(tmp_path, *args, **kwargs):
    code = main(Args(*args, frames=60, draws=2, json=tmp_path / "out.json", **kwargs))
    result = json.loads((tmp_path / "out.json").read_text())
    return code, sorted({finding["kind"] for finding in result["findings"]}), result


def test_a_base_without_a_table_is_told_to_be_trained(base, dataset, tmp_path, capsys):
    code, kinds, result = run(tmp_path, base, dataset)
    assert (code, kinds) == (1, ["id ignored", "row untrained"])
    confusion = result["measurements"]["confusion"]
    assert (confusion["accuracy"], confusion["effect"]) == (pytest.approx(1 / 3), 0)
    assert "3 of 3 rows of the table saw no frame" in capsys.readouterr().out


def test_a_trained_policy_is_healthy(frames, dataset, tmp_path, capsys):
    policy, path = Policy(3, nnx.Rngs(0)), tmp_path / "params"
    save(policy, tmp_path / "start", VOCABULARY, frames)
    train(policy, frames, 150, use_tasks=True)
    save(policy, path, VOCABULARY, frames)
    plot = tmp_path / "matrix.png"
    code, kinds, result = run(tmp_path, path, dataset, base=tmp_path / "start", plot=plot)
    assert (code, kinds) == (0, [])
    assert result["measurements"]["confusion"]["names"] == list(VOCABULARY)
    assert result["measurements"]["learning"]["kind"] == "change"
    assert "No fault was found" in capsys.readouterr().out
    assert plot.stat().st_size > 10_000


def test_frames_are_evenly_spaced(frames, dataset):
    few = read(dataset, VOCABULARY, 60)
    np.testing.assert_array_equal(few["episode_index"], np.repeat(np.arange(12), 5))
    np.testing.assert_array_equal(few["state"], frames["state"][::4])
    assert len(read(dataset, VOCABULARY, 1000)["state"]) == 240


def test_the_losses_of_frames_are_that_of_the_batch(frames):
    policy = Policy(3, nnx.Rngs(0))
    policy.eval()
    batch = {key: jnp.asarray(values[:40]) for key, values in frames.items()}
    key, ids = jax.random.key(0), batch["task_id"]
    steps = np.sum(~frames["action_is_pad"][:40], axis=1)
    mean = np.average(policy.frame_losses(key, batch, ids), weights=steps)
    np.testing.assert_allclose(mean, policy.loss(key, batch, ids), rtol=1e-6)
