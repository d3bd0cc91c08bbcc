"""The weights of a run: which are read, which are drawn, and whose rows are whose."""

import jax
import numpy as np
import pytest
from flax import nnx

from examples.pi0.model import Pi0
from examples.pi0.training.blueprint import Blueprint
from examples.pi0.training.devices import make_mesh, state_shardings
from examples.pi0.training.weights import (
    fresh_paths,
    load_weights,
    model_vocabulary,
)
from taskcond import MergeError, TaskVocabulary
from taskcond.checkpoint import (
    CheckpointError,
    TaskConditioning,
    open_checkpoint,
    save_params,
)
from taskcond.trees import flatten
from tests.support.tiny_pi0 import TABLE, tiny

KEY = jax.random.key(7)


def load(path, config, vocabulary=(), frozen=frozenset()):
    blueprint = Blueprint(config, frozenset(frozen))
    places = state_shardings(make_mesh(1, 1, 1), blueprint.shapes)
    checkpoint = None if path is None else open_checkpoint(path)
    names = TaskVocabulary(vocabulary)
    return load_weights(checkpoint, blueprint, places, names, KEY)


def released(path, config, seed=0):
    params = flatten(nnx.state(Pi0(config, rngs=nnx.Rngs(seed)), nnx.Param))
    save_params(params, path)
    return {name: np.asarray(x) for name, x in params.items()}


def test_released_weights_lack_the_table_alone(tmp_path):
    values = released(tmp_path / "params", tiny())
    config = tiny(num_tasks=3)
    found = load(tmp_path / "params", config, ["a", "b", "c"])
    blueprint = Blueprint(config)
    assert fresh_paths(blueprint, open_checkpoint(tmp_path / "params")) == [TABLE]
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)
    assert np.abs(found[TABLE]).max() > 0


def test_frozen_parameters_get_the_dtype_of_the_computation(tmp_path):
    released(tmp_path / "params", tiny())
    found = load(tmp_path / "params", tiny(dtype="bfloat16"), frozen={"time_mlp_in/kernel"})
    assert found["time_mlp_in/kernel"].dtype == "bfloat16"
    assert found["time_mlp_out/kernel"].dtype == "float32"


def test_rows_are_matched_by_name_and_new_ones_are_drawn(tmp_path):
    config = tiny(num_tasks=2)
    params = flatten(nnx.state(Pi0(config, rngs=nnx.Rngs(0)), nnx.Param))
    about = TaskConditioning(2, 16, scale=1.0, vocabulary=TaskVocabulary(["pour", "wipe"]))
    save_params(params, tmp_path / "params", conditioning=about)
    found = load(tmp_path / "params", tiny(num_tasks=3), ["wipe", "fold", "pour"])[TABLE]
    np.testing.assert_array_equal(found[0], params[TABLE][1])
    np.testing.assert_array_equal(found[2], params[TABLE][0])
    fresh = load(None, tiny(num_tasks=3))[TABLE]
    np.testing.assert_array_equal(found[1], fresh[1])


def test_weights_of_another_size_are_refused_with_both_shapes(tmp_path):
    released(tmp_path / "params", tiny(action_dim=7))
    with pytest.raises(MergeError, match=r"action_in_proj/kernel.*\n?.*7"):
        load(tmp_path / "params", tiny(num_tasks=2), ["a", "b"])


def test_a_table_of_another_scale_is_refused(tmp_path):
    config = tiny(num_tasks=1, task_embedding_scale=2.0)
    params = nnx.state(Pi0(config, rngs=nnx.Rngs(0)), nnx.Param)
    save_params(params, tmp_path / "params", conditioning=TaskConditioning(1, 16, scale=2.0))
    with pytest.raises(CheckpointError, match=r"scale is 2.0 in the checkpoint, 1.0"):
        load(tmp_path / "params", tiny(num_tasks=1), ["a"])


def names(dataset=None, checkpoint=None, **settings):
    arguments = {"num_tasks": 0, "add_tasks": False, **settings}
    wrap = [None if x is None else TaskVocabulary(x) for x in (dataset, checkpoint)]
    return list(model_vocabulary(*wrap, arguments.pop("file", None), **arguments))


def test_the_checkpoint_names_the_rows_and_the_dataset_meets_them_by_name():
    assert names(["b"], ["a", "b"]) == ["a", "b"]
    assert names(["b", "a"]) == ["b", "a"]
    assert names(None, None, default=("x",)) == ["x"]


def test_a_task_that_nobody_knows_is_an_error_that_names_the_flag():
    with pytest.raises(ValueError, match=r"'wip' \(did you mean 'wipe'\?\).*--data.add_tasks"):
        names(["wip"], ["pour", "wipe"])
    assert names(["fold"], ["pour"], add_tasks=True) == ["pour", "fold"]


def test_rows_without_a_name_are_reserved_and_new_tasks_take_them():
    table = names(["pour"], num_tasks=3)
    assert table == ["pour", "unused task 1", "unused task 2"]
    assert names(["fold"], table, num_tasks=3, add_tasks=True) == ["pour", "fold", "unused task 2"]
    with pytest.raises(ValueError, match="--model.num_tasks=2"):
        names(["a", "b"], num_tasks=1)


def test_whatever_tasks_have_of_their_own_is_matched_by_name(tmp_path):
    methods = {"task_fusion": "none", "task_heads": True, "task_lora_rank": 2}
    config = tiny(num_tasks=2, **methods)
    names = TaskVocabulary(["pour", "wipe"])
    state = nnx.state(Pi0(config, rngs=nnx.Rngs(0)), nnx.Param)
    params = {
        path: jax.random.normal(jax.random.key(x.size), x.shape)
        for path, x in flatten(state).items()
    }
    about = Blueprint(config).conditioning(names, [5, 7])
    assert about.frames_seen == (5, 7)
    save_params(params, tmp_path / "params", conditioning=about)
    found = load(tmp_path / "params", tiny(num_tasks=3, **methods), ["wipe", "fold", "pour"])
    for path in (about.table, *about.more_tables):
        np.testing.assert_array_equal(found[path][np.array([2, 0])], params[path])
