"""docs/howto/openpi.md: its lines, applied to stand-ins with the interfaces of openpi."""

import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import taskcond
from taskcond.checkpoint import TaskConditioning, inspect_checkpoint, save_params
from taskcond.trees import flatten

PAGE = Path(__file__).parents[2] / "docs/howto/openpi.md"
STAND_INS = Path(__file__).parent / "openpi_standin"
MODULES = ("model", "pi0", "pi0_config", "libero_policy", "config", "weight_loaders")
TABLE = "task_embeddings/embedding"


def added_lines() -> dict[str, list[str]]:
    """Returns the hunks of the page's diff, each as the text that it adds, by file."""
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    hunks: dict[str, list[str]] = {}
    for part in re.split(r"^--- .*\n", diff, flags=re.MULTILINE)[1:]:
        name, *rest = re.split(r"^@@ .*\n", part, flags=re.MULTILINE)
        hunks[Path(name.strip()).stem] = [
            "".join(line[1:] for line in hunk.splitlines(keepends=True) if line.startswith("+"))
            for hunk in rest
        ]
    return hunks


@pytest.fixture(scope="module")
def openpi():
    """The stand-ins with the page's lines in them."""
    hunks, package = added_lines(), types.ModuleType("openpi_standin")
    before = dict(sys.modules)
    sys.modules[package.__name__] = package
    for name in MODULES:
        source = (STAND_INS / f"{name}.py.in").read_text()
        places = re.split(r"^ *# hunk\n", source, flags=re.MULTILINE)
        assert len(places) == len(hunks[name]) + 1, f"{name}: not one place for each hunk"
        code = "".join(map("".join, zip(places, [*hunks[name], ""], strict=True)))
        module = types.ModuleType(f"openpi_standin.{name}")
        sys.modules[module.__name__] = module
        exec(compile(code, f"{name}.py", "exec"), vars(module))
        setattr(package, name, module)
    yield package
    for name in set(sys.modules) - set(before):
        if name.startswith("openpi_standin"):
            del sys.modules[name]


def make(openpi, num_tasks=5, seed=0):
    config = openpi.pi0_config.Pi0Config(num_tasks=num_tasks, task_embedding_scale=0.5)
    return config, config.create(jax.random.key(seed))


def batch(openpi, task_id):
    data = {"image": {}, "image_mask": {}, "state": jnp.ones((2, 2))}
    if task_id is not None:
        data["task_id"] = jnp.array(task_id, jnp.int32)
    return openpi.model.Observation.from_dict(data), jnp.ones((2, 3))


def loss(model, observation, actions):
    return model.compute_loss(jax.random.key(7), observation, actions).mean()


def test_the_page_adds_18_lines():
    hunks = added_lines()
    lines = [line for parts in hunks.values() for part in parts for line in part.splitlines()]
    assert len(lines) == 18
    assert set(hunks) == {*MODULES, "pyproject"}


def test_an_observation_carries_the_task(openpi):
    observation, _ = batch(openpi, [3, -1])
    np.testing.assert_array_equal(openpi.model.preprocess_observation(observation).task_id, [3, -1])
    assert batch(openpi, None)[0].task_id is None
    spec = make(openpi)[0].inputs_spec(batch_size=4).task_id
    assert (tuple(spec.shape), spec.dtype) == ((4,), jnp.int32)
    assert make(openpi, 0)[0].inputs_spec().task_id is None


def test_the_task_changes_the_loss_and_its_row_alone_is_trained(openpi):
    _, model = make(openpi)
    assert model.task_embeddings.scale == 0.5
    values = {i: float(loss(model, *batch(openpi, [i, i]))) for i in (0, 1, -1)}
    assert len(set(values.values())) == 3
    grads = nnx.grad(loss)(model, *batch(openpi, [3, -1]))
    rows = np.abs(flatten(grads)[TABLE]).sum(1)
    assert (rows > 0).tolist() == [False, False, False, True, False]
    with pytest.raises(ValueError, match="task_id not found in batch"):
        loss(model, *batch(openpi, None))


def test_without_tasks_nothing_changes(openpi):
    _, model = make(openpi, 0)
    assert TABLE not in flatten(nnx.state(model, nnx.Param))
    _, conditioned = make(openpi)
    observation, actions = batch(openpi, [-1, -1])
    taskcond.merge_into(conditioned, nnx.state(model, nnx.Param))
    expected = loss(model, *batch(openpi, None))
    np.testing.assert_array_equal(loss(conditioned, observation, actions), expected)


def test_released_weights_load_and_leave_the_table_to_its_initializer(openpi):
    released = flatten(nnx.state(make(openpi, 0)[1], nnx.Param))
    shapes = flatten(nnx.state(nnx.eval_shape(lambda: make(openpi)[1]), nnx.Param))
    loaded = openpi.weight_loaders.load(released, shapes)
    assert set(loaded) == set(shapes)
    assert isinstance(loaded[TABLE], jax.ShapeDtypeStruct)
    assert all(loaded[path] is leaf for path, leaf in released.items())


def test_ids_reach_the_model_in_training_and_at_inference(openpi):
    config, _ = make(openpi)
    repack, transforms = openpi.config.create(config)
    frame = {"state": np.ones(2), "actions": np.ones(3), "prompt": "pour", "task_index": 3}
    trained, served = repack(frame), {"observation/state": np.ones(2), "task_id": 2}
    for transform in transforms:
        trained, served = transform(trained), transform(served)
    assert (trained["task_id"], served["task_id"]) == (3, 2)
    assert trained["task_id"].dtype == np.int32

    repack, transforms = openpi.config.create(make(openpi, 0)[0])
    plain, told_nothing = repack(frame), {"observation/state": np.ones(2)}
    for transform in transforms:
        plain, told_nothing = transform(plain), transform(told_nothing)
    assert "task_id" not in plain
    assert "task_id" not in told_nothing


def test_the_table_is_frozen_and_averaged_as_any_parameter(openpi):
    _, model = make(openpi)
    frozen = nnx.All(nnx.Param, nnx.Not(taskcond.TaskParam))
    trainable = nnx.state(model, nnx.All(nnx.Param, nnx.Not(frozen)))
    assert set(flatten(trainable)) == {TABLE}
    state = nnx.state(model)
    averaged = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state, state)
    np.testing.assert_allclose(flatten(averaged)[TABLE], flatten(state)[TABLE], rtol=1e-6)


def test_a_saved_run_can_be_inspected(openpi, tmp_path):
    vocabulary = taskcond.TaskVocabulary(["pour", "wipe", "cut", "stir", "lift"])
    save_params(nnx.state(make(openpi)[1], nnx.Param), tmp_path / "params")
    TaskConditioning(5, 8, scale=0.5, vocabulary=vocabulary).save(tmp_path / "params")
    assert "stir" in str(inspect_checkpoint(tmp_path / "params"))
