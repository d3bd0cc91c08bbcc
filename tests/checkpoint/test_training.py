"""Training states: their parameters are found, and their task tables change as a whole."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from taskcond import TaskConditioner
from taskcond.checkpoint import (
    Checkpoint,
    CheckpointError,
    change_tasks,
    diff_checkpoints,
    inspect_checkpoint,
    load_params,
    merge_checkpoint,
    save_params,
)
from taskcond.trees import flatten, to_dict
from tests.support.checkpoints import TABLE, assert_same, small

ROWS = [2, -1, 0]


class Policy(nnx.Module):
    """A dense layer and a conditioner."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.task_embeddings = TaskConditioner(3, 4, rngs=rngs)


@flax.struct.dataclass
class OpenpiState:
    """The fields of openpi's training state."""

    step: int
    params: nnx.State
    opt_state: optax.OptState
    ema_params: nnx.State | None = None


def numbered(tree):
    """Gives every array of a tree values of its own."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    filled = [jnp.asarray(rng.uniform(1, 2, np.shape(x)), jnp.asarray(x).dtype) for x in leaves]
    return jax.tree.unflatten(structure, filled)


def flax_state():
    tx = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    params = jax.tree.map(jnp.asarray, small(3))
    return numbered(TrainState.create(apply_fn=print, params=params, tx=tx))


def openpi_state():
    params = nnx.state(Policy(nnx.Rngs(0)), nnx.Param)
    opt_state = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params)
    return numbered(OpenpiState(3, params, opt_state, params))


def nnx_state():
    model = Policy(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    state = numbered({"policy": nnx.state(model), "optimizer": nnx.state(optimizer)})
    if "model" in state["optimizer"]:  # older releases of flax also save the model here
        state["optimizer"]["model"] = state["policy"]
    return state


STATES = {"flax": flax_state, "openpi": openpi_state, "nnx": nnx_state}


@pytest.fixture(params=STATES)
def saved(request, tmp_path):
    """Writes a training state; returns it, its parameters, and its path."""
    state = STATES[request.param]()
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path.resolve() / "state", state)
    params = state["policy"] if isinstance(state, dict) else state.params
    return state, to_dict(params), tmp_path / "state"


def leaves_of(state):
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def test_parameters_of_a_training_state_are_found(saved, tmp_path):
    _, params, path = saved
    assert_same(load_params(path), params)
    save_params(params, tmp_path / "params")
    assert diff_checkpoints(path, tmp_path / "params").identical
    found = inspect_checkpoint(path)
    assert (found.layout, found.table) == ("training state", (TABLE, (3, 4)))
    assert set(found.beside) >= {"opt_state"} or found.beside["optimizer"] >= 4
    report = merge_checkpoint(path, params, tmp_path / "merged", vocabulary=None)
    assert_same(load_params(tmp_path / "merged"), params)
    assert [line.split(" ")[0] for line in report.dropped] == list(found.beside)


def test_tables_moments_and_averages_change_together(saved, tmp_path):
    state, _, path = saved
    report = change_tasks(path, tmp_path / "new", rows=ROWS, new_rows="mean")
    expected = {}
    for name, leaf in leaves_of(state).items():
        if "task_embeddings" in name and leaf.shape == (3, 4):
            new = np.zeros(4) if "opt_state" in name else leaf.astype(np.float64).mean(0)
            leaf = np.stack([leaf[2], new.astype(leaf.dtype), leaf[0]])
        expected[name] = leaf
    # Plain Orbax restores it into the training state of the new model.
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore((tmp_path / "new").resolve(), item=state)
    found = leaves_of(restored)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    moments = [text for name, text in report.resized.items() if "opt_state" in name]
    assert (
        moments == ["3 -> 3 rows, 2 from the checkpoint, 1 new (zeros), old rows [1] left out"] * 2
    )
    assert Checkpoint(tmp_path / "new").layout == "training state"


def test_a_whole_training_state_can_be_loaded(tmp_path):
    tree = {
        "step": np.asarray(3),
        "params": small(3),
        "opt_state": {"0": {"mu": small(3)}},
        "batch_stats": {"norm": {"mean": np.ones(4, np.float32)}},
    }
    save_params(tree, tmp_path / "x")
    assert_same(load_params(tmp_path / "x", like=tree), tree)
    assert_same(load_params(tmp_path / "x"), small(3))
    assert inspect_checkpoint(tmp_path / "x").beside == {
        "batch_stats": 1, "opt_state": 3, "step": 1,
    }  # fmt: skip


def test_moments_of_another_shape_are_refused(tmp_path):
    moments = {"v_row": np.ones(3), "v_col": np.ones(4), "v": np.ones(1)}
    mirrors = {name: {"task_embeddings": {"embedding": x}} for name, x in moments.items()}
    save_params(
        {"step": np.asarray(3), "params": small(3), "opt_state": {"0": mirrors}}, tmp_path / "x"
    )
    with pytest.raises(CheckpointError, match=r"v_row/.*\[3\].*v_col/.*\[4\]") as raised:
        change_tasks(tmp_path / "x", tmp_path / "y", rows=ROWS)
    assert "opt_state/0/v/" not in str(raised.value)
    assert not (tmp_path / "y").exists()


def test_an_optimizers_state_without_parameters_is_refused(tmp_path):
    state = {"step": np.asarray(3), "opt_state": {"0": {"mu": small(3), "nu": small(3)}}}
    save_params(state, tmp_path / "x")
    assert_same(load_params(tmp_path / "x"), state)
    with pytest.raises(CheckpointError, match="without parameters"):
        change_tasks(tmp_path / "x", tmp_path / "y", rows=ROWS)


def test_a_model_with_two_conditioners_is_saved_and_loaded(tmp_path):
    tree = {name: small(rows) for name, rows in (("arm", 2), ("hand", 3))}
    for format in ("orbax", "safetensors"):
        save_params(tree, tmp_path / format, format=format)
        assert_same(load_params(tmp_path / format, like=tree), tree)
    found = inspect_checkpoint(tmp_path / "orbax")
    assert (found.table, found.tables) == (None, [f"arm/{TABLE}", f"hand/{TABLE}"])
    with pytest.raises(CheckpointError, match=r"several task tables: .*arm.*hand.*table=\.\.\."):
        change_tasks(tmp_path / "orbax", tmp_path / "y", rows=[0])
    change_tasks(tmp_path / "orbax", tmp_path / "y", rows=[1], table=f"hand/{TABLE}")
    changed = flatten(load_params(tmp_path / "y"))
    wanted = flatten(tree)
    wanted[f"hand/{TABLE}"] = wanted[f"hand/{TABLE}"][[1]]
    assert_same(changed, wanted)
    assert inspect_checkpoint(tmp_path / "y").table == (f"hand/{TABLE}", (1, 4))
