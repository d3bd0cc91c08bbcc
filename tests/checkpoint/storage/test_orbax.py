"""Reads and writes the Orbax format."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from taskcond.checkpoint import (
    Checkpoint,
    CheckpointError,
    TaskConditioning,
    load_params,
    save_params,
)
from taskcond.checkpoint.storage import leaf as leaf_module
from taskcond.checkpoint.storage.leaf import read_leaf
from tests.support.checkpoints import (
    FORMATS,
    assert_same,
    load_ignoring_warnings,
    small,
    with_orbax,
)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("chunk", [(12, 10, 8), (12, 10, 4), (6, 10, 4), (5, 10, 8)])
def test_large_chunks_are_decoded_in_pieces(
    tmp_path, monkeypatch, write_chunked, chunk, compressed
):
    monkeypatch.setattr(leaf_module, "PIECE_BYTES", 300)
    value = np.random.default_rng(0).standard_normal((12, 10, 8)).astype(np.float32)
    write_chunked(tmp_path / "x", {"a": value}, {"a": chunk}, compressed)
    checkpoint = Checkpoint(tmp_path / "x")
    boxes = [*checkpoint.leaves["a"].pieces()]
    assert len(boxes) > 3
    assert read_leaf(checkpoint, "a").tobytes() == value.tobytes()
    # Also out of order, and twice.
    for box in boxes[::-2] * 2:
        np.testing.assert_array_equal(checkpoint.read("a", box), value[box])
    for box in (np.s_[3:9, 3:9, 3:8], np.s_[0:12, 0:10, 4:8], np.s_[2:11, 0:10, 0:8]):
        np.testing.assert_array_equal(checkpoint.read("a", box), value[box])
        np.testing.assert_array_equal(read_leaf(checkpoint, "a", box), value[box])


def test_a_chunk_that_is_missing_is_found(tmp_path):
    shutil.copytree(FORMATS / "orbax_0_11_13_files", tmp_path / "x")
    (tmp_path / "x/params.dense.bias/0").unlink()
    with pytest.raises(CheckpointError, match="dense/bias is damaged"):
        load_params(tmp_path / "x")


def test_plain_orbax_of_this_release_reads_what_another_wrote_with_taskcond():
    restored = with_orbax(FORMATS / "taskcond_orbax")
    assert_same(restored["params"], load_ignoring_warnings(FORMATS / "taskcond_orbax"))


def test_plain_orbax_restores_in_every_style(tmp_path):
    tree = small()
    path = (tmp_path / "x").resolve()
    save_params(tree, path, conditioning=TaskConditioning(2, 4))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    specs = {"params": jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )}  # fmt: skip
    host = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(restore_type=np.ndarray), specs)
    device = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), specs)
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(path)["params"], tree)
        for restore_args in (host, device):
            args = ocp.args.PyTreeRestore(item=specs, restore_args=restore_args)
            assert_same(checkpointer.restore(path, args)["params"], tree)
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(path, specs)["params"], tree)


def test_arrays_without_entries_and_ambiguous_names_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"without entries.*\['a'\]"):
        save_params({"a": np.zeros((0, 3))}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"same name.*\['a\.b'\]"):
        save_params({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, tmp_path / "x")
    for strange in ({"a": np.ones(1), "a/b": np.ones(1)}, {"a/../b": np.ones(1)}, {}):
        with pytest.raises(CheckpointError, match="Orbax cannot hold these leaves"):
            save_params(strange, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"these leaves are not arrays: \['a'\]"):
        save_params({"a": 1.0}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="a dot, which cannot be told"):
        save_params({"a.b": np.ones(1)}, tmp_path / "x", format="safetensors")
    with pytest.raises(CheckpointError, match="no dtype for .*complex64"):
        save_params({"a": np.ones(1, np.complex64)}, tmp_path / "x", format="safetensors")
    with pytest.raises(CheckpointError, match="format is .pickle., but must be one of"):
        save_params({"a": np.ones(1)}, tmp_path / "x", format="pickle")
    assert list(tmp_path.iterdir()) == []
