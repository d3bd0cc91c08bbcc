"""load_into: a table goes into a model only if it means the same there."""

import warnings

import jax
import numpy as np
import pytest
from flax import nnx

import taskcond
from taskcond import TaskVocabulary
from taskcond.checkpoint import CheckpointError, TaskConditioning, load_into, save_params

OLD = TaskVocabulary(["pour", "wipe", "cut"])


class Model(nnx.Module):
    def __init__(self, num_tasks, seed, name="task_embeddings", **about):
        rngs = nnx.Rngs(seed)
        self.dense = nnx.Linear(4, 2, rngs=rngs)
        setattr(self, name, taskcond.TaskConditioner(num_tasks, 4, rngs=rngs, **about))


@pytest.fixture
def saved(tmp_path):
    model = Model(3, 0, scale=0.5)
    about = TaskConditioning(3, 4, scale=0.5, fusion="add", vocabulary=OLD)
    save_params(nnx.state(model, nnx.Param), tmp_path / "x", conditioning=about)
    return model, tmp_path / "x"


def table_of(model):
    return np.asarray(model.task_embeddings.embedding[...])


def test_equal_conditioning_loads(saved):
    old, path = saved
    model = Model(3, 1, scale=0.5)
    report = load_into(model, path, vocabulary=OLD)
    assert not report.resized
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(old))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"scale": 1.0}, "scale is 0.5 in the checkpoint, 1.0 in the model"),
        (
            {"scale": 0.5, "fusion": "film"},
            "fusion is 'add' in the checkpoint, 'film' in the model",
        ),
    ],
)
def test_another_scale_or_fusion_is_refused_and_the_model_stays(saved, about, message):
    model = Model(3, 1, **about)
    before = nnx.state(model)
    with pytest.raises(CheckpointError, match=message):
        load_into(model, saved[1])
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_rows_are_matched_by_name(saved):
    old, path = saved
    model = Model(4, 1, scale=0.5)
    fresh = table_of(model)
    report = load_into(model, path, vocabulary=TaskVocabulary(["cut", "stir", "pour", "wipe"]))
    rows = table_of(old)
    np.testing.assert_array_equal(table_of(model), [rows[2], fresh[1], rows[0], rows[1]])
    assert report.resized


def test_a_checkpoint_without_tasks_leaves_the_table(tmp_path):
    base, model = Model(0, 0), Model(3, 1, scale=2.0)
    save_params(nnx.state(base, nnx.Param), tmp_path / "x")
    before = table_of(model)
    assert load_into(model, tmp_path / "x", vocabulary=OLD).kept == ["task_embeddings/embedding"]
    np.testing.assert_array_equal(table_of(model), before)


def test_of_two_conditioners_the_one_at_the_recorded_path_is_compared(tmp_path):
    class Two(nnx.Module):
        def __init__(self, seed, scale):
            self.cond = taskcond.TaskConditioner(3, 4, scale=scale, rngs=nnx.Rngs(seed))
            self.other = taskcond.TaskConditioner(3, 4, scale=9.0, rngs=nnx.Rngs(seed + 1))

    about = TaskConditioning(3, 4, scale=0.5, table="cond/embedding")
    old = Two(0, 0.5)
    save_params(nnx.state(old, nnx.Param), tmp_path / "x", conditioning=about)
    model = Two(5, 0.5)
    load_into(model, tmp_path / "x")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(old))
    with pytest.raises(CheckpointError, match="scale"):
        load_into(Two(5, 9.0), tmp_path / "x")


def test_a_task_that_the_checkpoint_does_not_know_is_warned_of_by_name(saved):
    path = saved[1]
    new = TaskVocabulary(["pour", "Wipe", "cut"])
    with pytest.warns(UserWarning, match=r"no rows of 'Wipe' \(did you mean 'wipe'\?\)"):
        load_into(Model(3, 1, scale=0.5), path, vocabulary=new)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*no rows of.*")
        load_into(Model(3, 1, scale=0.5), path, vocabulary=new, new_rows="mean")
        load_into(Model(3, 1, scale=0.5), path, vocabulary=OLD)
