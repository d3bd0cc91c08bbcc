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
