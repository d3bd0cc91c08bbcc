"""The training loop and the before-and-after experiment, at a size that takes seconds."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from examples.comparison.cups import write_demo_dataset
from examples.comparison.experiment import Experiment, vector_loader
from examples.comparison.run import run
from examples.comparison.train import save
from examples.lerobot import LeRobotData
from examples.quickstart import Policy
from examples.training import fit
from taskcond import TaskConditioner, TaskVocabulary, merge_into
from taskcond.checkpoint import Checkpoint


class Tiny(nnx.Module):
    """A policy that compiles in no time."""

    def __init__(self, num_tasks, rngs):
        width = 8 * 4  # horizon, action_dim
        self.task_embeddings = TaskConditioner(num_tasks, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def compute_loss(self, rng, batch, task_id):
        noise = jax.random.normal(rng, batch["actions"].shape)
        time_emb = self.task_embeddings(noise.reshape(len(noise), -1), task_id)
        velocity = self.out(time_emb).reshape(noise.shape)
        return jnp.mean((velocity - (noise - batch["actions"])) ** 2, axis=-1)


TINY = Experiment(Tiny, Tiny.compute_loss, base_steps=3, task_steps=3, batch_size=16, draws=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "demo"
    write_demo_dataset(root, num_tasks=3, episodes_per_task=4, video=False)
    return LeRobotData(root, horizon=8)


def batches():
    rng = np.random.default_rng(0)
    while True:
        yield {
            "state": rng.normal(size=(16, 4)).astype(np.float32),
            "actions": np.tile(rng.normal(size=(16, 1, 1)), (1, 8, 4)).astype(np.float32),
        }


def loss(model, rng, batch):
    return model.compute_loss(rng, batch, None).mean()


def weights(model):
    return jax.tree.map(np.asarray, nnx.state(model, nnx.Param))


def interrupted(iterator, after):
    yield from itertools.islice(iterator, after)
    raise KeyboardInterrupt


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


def test_without_ids_a_policy_is_at_chance_and_everything_is_written(data, tmp_path):
    before, after = run(TINY, data, tmp_path)
    assert before.accuracy == pytest.approx(1 / 3)
    np.testing.assert_allclose(before.matrix, before.matrix.mean(1, keepdims=True).repeat(3, 1))
    assert before.matrix.sum() == pytest.approx(after.matrix.sum()) == 64
    assert TaskVocabulary.load(tmp_path / "tasks.json") == data.vocabulary
    assert (tmp_path / "confusion.png").stat().st_size > 10_000
    restored = ocp.PyTreeCheckpointer().restore((tmp_path / "conditioned" / "params").resolve())
    report = merge_into(Tiny(3, nnx.Rngs(9)), restored)
    assert not report.kept
    assert not report.dropped
    conditioning = Checkpoint(tmp_path / "conditioned").conditioning
    assert conditioning is not None
    assert conditioning.vocabulary == data.vocabulary
    assert sum(n or 0 for n in conditioning.frames_seen or ()) == 3 * 16  # steps, batch


@pytest.mark.parametrize(
    ("stage", "results", "kept"),
    [
        (0, 0, ["base"]),
        (1, 0, ["base", "without"]),
        (2, 1, ["base", "without", "conditioned"]),
    ],
)
def test_ctrl_c_leaves_a_checkpoint_that_loads(data, tmp_path, stage, results, kept):
    calls = itertools.count()

    def loader(*args, **kwargs):
        iterator = vector_loader(*args, **kwargs)
        evaluating = "num_epochs" in kwargs
        return iterator if evaluating or next(calls) != stage else interrupted(iterator, 1)

    confusions = run(dataclasses.replace(TINY, make_loader=loader), data, tmp_path)
    assert len(confusions) == results
    for name in kept:
        restored = ocp.PyTreeCheckpointer().restore((tmp_path / name / "params").resolve())
        num_tasks = 3 if name == "conditioned" else 0
        merge_into(Tiny(num_tasks, nnx.Rngs(1)), restored)


def test_saving_replaces_an_older_checkpoint_whole(tmp_path):
    first, second = (Tiny(0, nnx.Rngs(seed)) for seed in (0, 1))
    save(first, tmp_path / "p")
    save(second, tmp_path / "p")
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "p" / "params")
    merge_into(first, restored)
    jax.tree.map(np.testing.assert_array_equal, weights(first), weights(second))
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_the_quickstart_policy_equals_its_base_where_the_table_is_zero():
    base, model = (Policy(4, 4, 8, n, nnx.Rngs(n)) for n in (0, 3))
    merge_into(model, nnx.state(base, nnx.Param))
    table = {"task_embeddings": {"embedding": jnp.zeros((3, 96))}}
    merge_into(model, table, keep=".*")
    state, x_t, t = jnp.ones((2, 4)), jnp.ones((2, 8, 4)), jnp.array([0.2, 0.9])
    velocity = nnx.jit(lambda model, task_id: model.velocity(state, x_t, t, task_id))
    np.testing.assert_array_equal(velocity(model, jnp.array([0, 2])), velocity(base, None))
