"""The command: one frame, one noise, several tasks; everything else is kept equal."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tyro
from flax import nnx
from PIL import Image

from examples.comparison.cups import write_demo_dataset
from examples.lerobot import LeRobotData
from examples.pi0 import compare_tasks
from examples.pi0.beside import load_transform, save_transform
from examples.pi0.compare_tasks import Args, find_config, own_prompts, resolve_tasks
from examples.pi0.model import Pi0, Pi0Config
from examples.pi0.policy import load_model
from examples.pi0.tokenizer import Tokenizer, train_tokenizer
from examples.pi0.transform import FrameTransform
from taskcond import NULL_TASK, TaskVocabulary
from taskcond.checkpoint import open_checkpoint, save_params
from taskcond.trees import flatten, rebuild, to_dict
from tests.support import FIXTURES
from tests.support.golden import load_golden
from tests.support.tiny_pi0 import ROBOT_CONFIG

CONFIG = dataclasses.replace(ROBOT_CONFIG, task_dropout_rate=0.1)
TASKS = TaskVocabulary(["reach cup 0", "reach cup 1", "reach cup 2"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: a dataset, a tokenizer, and a checkpoint in both layouts."""
    run = tmp_path_factory.mktemp("run")
    data = LeRobotData(
        write_demo_dataset(run / "demo", num_tasks=3, episodes_per_task=1, frames=6), horizon=4
    )
    tokenizer = Tokenizer.for_config(CONFIG, train_tokenizer(run / "tiny.model", TASKS))
    cameras = {"base_0_rgb": "observation.images.wrist"}
    transform = FrameTransform.for_dataset(data, CONFIG, tokenizer, cameras)
    # Far from the initial weights, under which all tasks act alike.
    model = nnx.eval_shape(lambda: Pi0(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype),
        to_dict(nnx.state(model, nnx.Param)),
    )
    save_params(params, run / "released" / "params")
    valued = rebuild(params, {k: {"value": v} for k, v in flatten(params).items()})
    path = run / "trained" / "1000" / "params"
    ocp.PyTreeCheckpointer().save(path, {"params": valued})
    save_transform(transform, run)
    TASKS.save(run / "tasks.json")
    return run


def make_args(run, *tasks, **changes):
    args = Args(
        checkpoint=run / "released",
        data=run / "demo",
        tokenizer=run / "tiny.model",
        tasks=tasks,
        num_steps=3,
        out=run / "plots" / "chunk.png",
    )
    return dataclasses.replace(args, **changes)


@pytest.fixture(scope="module")
def chunks(run):
    return compare_tasks.run(make_args(run, "reach cup 0", "2", "none", "reach cup 0", frame=7))


def test_tasks_differ_by_their_id_alone(chunks):
    first, other, none, again = chunks.sampled
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - none).max() > 1e-3
    assert chunks.names == ("reach cup 0", "reach cup 2", "no task", "reach cup 0")


def test_chunks_are_those_of_the_model_one_by_one(run, chunks):
    model = load_model(run / "released", CONFIG)
    data = LeRobotData(run / "demo", horizon=4)
    transform = load_transform(run, run / "tiny.model")
    noise = jax.random.normal(jax.random.key(0), (4, 6))
    observation = transform.observe(data[7]).replace(task_id=np.int32(2))
    observation = jax.tree.map(jnp.asarray, observation)
    actions = model.sample_actions(None, observation, num_steps=3, noise=noise)
    expected = transform.unnormalize_actions(actions)
    np.testing.assert_allclose(chunks.sampled[1], expected, rtol=1e-4, atol=1e-6)
    assert expected.shape == (4, 4)
    np.testing.assert_array_equal(chunks.recorded, data[7]["actions"])


def test_the_plot_is_an_image(run, chunks):
    with Image.open(run / "plots" / "chunk.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_both_checkpoint_layouts_are_the_same_model(run):
    released = nnx.state(load_model(run / "released", CONFIG), nnx.Param)
    trained = nnx.state(load_model(run / "trained", CONFIG), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, to_dict(released), to_dict(trained))


def test_published_layouts_load_with_the_published_values():
    golden = load_golden("pi05_tasks_f32")
    for layout in ("released", "trained"):
        path = FIXTURES / "checkpoints" / "pi05_tasks_tiny" / layout
        model = load_model(path, golden.config())
        loaded = flatten(nnx.state(model, nnx.Param))
        assert loaded.keys() == golden.params.keys()
        for name, value in loaded.items():
            np.testing.assert_array_equal(value, golden.params[name])


def test_a_chunk_at_the_end_of_an_episode_is_compared_without_its_padding(run):
    chunks = compare_tasks.run(make_args(run, "0", "1", frame=5))
    assert chunks.recorded.shape == (1, 4)
    assert chunks.sampled.shape == (2, 4, 4)
    assert np.isfinite(chunks.errors).all()


def test_own_prompts_change_the_text_too(run):
    same = compare_tasks.run(make_args(run, "0", "1", frame=0))
    own = compare_tasks.run(make_args(run, "0", "1", frame=0, own_prompts=True))
    np.testing.assert_allclose(same.sampled[0], own.sampled[0], rtol=1e-5)  # its own task
    assert np.abs(same.sampled[1] - own.sampled[1]).max() > 1e-5


def test_a_checkpoint_that_stands_alone_needs_a_config(run, tmp_path):
    alone = tmp_path / "far" / "from" / "everything" / "params"
    shutil.copytree(run / "released" / "params", alone)
    args = make_args(run, "0", "1", checkpoint=alone)
    with pytest.raises(ValueError, match=r"nothing beside .*pass --config"):
        compare_tasks.run(args)
    given = dataclasses.replace(
        args,
        config=str(run / "config.json"),
        cameras={"base_0_rgb": "observation.images.wrist"},
    )
    beside = compare_tasks.run(dataclasses.replace(args, checkpoint=run / "released"))
    np.testing.assert_allclose(compare_tasks.run(given).sampled, beside.sampled, rtol=1e-5)


def test_named_sizes_take_their_tasks_from_the_checkpoint():
    path = FIXTURES / "checkpoints" / "pi05_tasks_tiny" / "released"
    config, _ = find_config(Args(path, path, path, (), config="pi05"), open_checkpoint(path))
    assert config == Pi0Config(num_tasks=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("reach cup 9", "0", "7")}, r"no tasks \['reach cup 9', '7'\].*reach cup 2"),
        ({"tasks": ("0",)}, "needs two tasks or more"),
        ({"frame": 18}, "--frame 18 must be below 18"),
        ({"frame": -1}, "--frame -1"),
        ({"cameras": {"base_0_rgb": "top"}}, "the frame has no image of camera 'top'"),
        ({"cameras": {"top": "observation.images.wrist"}}, r"no cameras \['top'\]"),
        ({"tokenizer": Path("none.model")}, "gs://big_vision"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_right(run, changes, message):
    with pytest.raises((ValueError, KeyError, FileNotFoundError), match=message):
        compare_tasks.run(dataclasses.replace(make_args(run, "0", "1"), **changes))


def test_a_model_without_tasks_has_nothing_to_compare():
    with pytest.raises(ValueError, match="no task table"):
        resolve_tasks(["0", "1"], TASKS, 0)


def test_tasks_are_named_numbered_or_none():
    assert resolve_tasks(["reach cup 2", "1", "none"], TASKS, 3) == [2, 1, NULL_TASK]
    assert resolve_tasks(["0", "1"], None, 2) == [0, 1]
    assert resolve_tasks(["1", "0"], TaskVocabulary(["1", "0"]), 2) == [0, 1]  # names first
    with pytest.raises(ValueError, match="the vocabulary has 3 tasks, the model num_tasks=2"):
        resolve_tasks(["0", "1"], TASKS, 2)
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        resolve_tasks(["0", "2"], None, 2)


def test_prompts_need_names():
    with pytest.raises(ValueError, match="--own-prompts needs them; write tasks.json"):
        own_prompts([0, 1], None)


def test_the_command_line_takes_several_tasks():
    line = "--checkpoint a --data b --tokenizer c --tasks x y --frame 3 --cameras base_0_rgb top"
    args = tyro.cli(Args, args=line.split())
    assert (args.tasks, args.frame) == (("x", "y"), 3)
    assert args.cameras == {"base_0_rgb": "top"}
