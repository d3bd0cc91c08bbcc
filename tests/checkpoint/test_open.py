"""Finds out what a path is, and reads every layout."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from taskcond.checkpoint import (
    Checkpoint,
    CheckpointError,
    TaskConditioning,
    load_params,
    open_checkpoint,
    save_params,
)
from taskcond.checkpoint.storage.orbax import OrbaxReader
from taskcond.trees import plain_paths
from tests.support.checkpoints import (
    FORMATS,
    TABLE,
    TASKS,
    TINY,
    assert_same,
    golden,
    small,
)


@pytest.mark.parametrize(
    ("checkpoint", "layout", "weights"),
    [
        (TINY / "released", "released", "pi05_f32"),
        (TINY / "released" / "params", "released", "pi05_f32"),
        (TINY / "trained", "trained", "pi05_f32"),
        (TINY / "trained" / "1000", "trained", "pi05_f32"),
        (TINY / "trained" / "1000" / "params", "trained", "pi05_f32"),
        (TASKS / "released" / "params", "released", "pi05_tasks_f32"),
        (TASKS / "trained", "trained", "pi05_tasks_f32"),
    ],
)
def test_every_layout_gives_the_golden_weights(checkpoint, layout, weights):
    assert Checkpoint(checkpoint).layout == layout
    assert_same(load_params(checkpoint), golden(weights))


@pytest.mark.parametrize("name", sorted(path.name for path in FORMATS.iterdir() if path.is_dir()))
def test_reads_what_every_release_wrote(name):
    expected = {
        "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
        "dense/bias": np.arange(4).astype(jnp.bfloat16),
        "norm/scale": np.arange(3, dtype=np.int32),
        TABLE: np.arange(8, dtype=np.float32).reshape(2, 4),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of them says that a task was never trained
        assert_same(load_params(FORMATS / name), expected)


def test_the_last_step_is_taken(tmp_path):
    for step in (5, 40, 100):
        save_params({"x": np.full(3, step, np.float32)}, tmp_path / str(step) / "params")
    (tmp_path / "notes").mkdir()
    assert load_params(tmp_path)["x"].tolist() == [100, 100, 100]


def test_steps_may_be_padded_with_zeros(tmp_path):
    for step in (100, 2000):
        save_params(small(), tmp_path / f"{step:08}" / "params")
    assert open_checkpoint(tmp_path).root.parent.name == "00002000"


def test_a_single_item_of_a_checkpoint_manager_is_found(tmp_path):
    with ocp.CheckpointManager(tmp_path.resolve()) as manager:
        manager.save(3, args=ocp.args.StandardSave({"x": jnp.arange(3.0)}))
    assert load_params(tmp_path)["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["state", "train_state", "pytree", "step_3", "checkpoint_7"])
@pytest.mark.parametrize("below", ["", "arrays"])
def test_a_single_item_of_any_name_is_found(tmp_path, name, below):
    tree = small(3)
    save_params(tree, tmp_path / "run" / "5" / name / below)
    (tmp_path / "run/5/assets/droid").mkdir(parents=True)
    (tmp_path / "run/5/assets/droid/norm_stats.json").write_text("{}")
    (tmp_path / "run/5/metrics").mkdir()
    about = TaskConditioning(3, 4, scale=2.0)
    about.save(tmp_path / "run" / "5")
    for path in (tmp_path / "run", tmp_path / "run/5", tmp_path / "run/5" / name):
        assert_same(load_params(path), tree)
    assert open_checkpoint(tmp_path / "run").conditioning == about
    assert open_checkpoint(tmp_path / "run/5").conditioning == about


def test_several_items_are_listed_with_a_path_to_give(tmp_path):
    for name in ("step_3", "step_7"):
        save_params(small(), tmp_path / name / "params")
    save_params(small(), tmp_path / "step_9.orbax-checkpoint-tmp-1")
    save_params(small(), tmp_path / ".step_8.partial")
    message = rf"several checkpoints, \['step_3', 'step_7'\]; .*{tmp_path}/step_7$"
    with pytest.raises(CheckpointError, match=message):
        load_params(tmp_path)
    assert_same(load_params(tmp_path / "step_7"), small())


def test_leaves_without_an_array_are_passed_over(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path.resolve() / "x", {"a": np.ones(2), "empty": {}, "none": None})
    assert list(load_params(tmp_path / "x")) == ["a"]


def test_the_table_of_a_pytorch_port_is_found(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    safetensors.numpy.save_file({"task_embeddings.weight": table}, tmp_path / "x.safetensors")
    assert_same(load_params(tmp_path / "x.safetensors"), {TABLE: table})


def test_unwrap_knows_the_layouts_that_are_written(tmp_path):
    save_params(small(), tmp_path / "x")
    assert plain_paths(OrbaxReader(Checkpoint(tmp_path / "x").root).leaves)["dense/bias"] == (
        "params/dense/bias"
    )


def test_the_file_may_lie_beside_the_step_or_the_run(tmp_path):
    save_params(small(3), tmp_path / "7" / "params")
    for place in (tmp_path, tmp_path / "7", tmp_path / "7" / "params"):
        about = TaskConditioning(3, 4, scale=float(len(place.parts)))
        about.save(place)
        assert Checkpoint(tmp_path / "7" / "params").conditioning == about
