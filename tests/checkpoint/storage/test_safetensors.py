"""Reads and writes the safetensors format."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy

from taskcond.checkpoint import (
    CheckpointError,
    load_params,
    save_params,
)
from tests.support.checkpoints import (
    TASKS,
    assert_same,
    golden,
)


def test_the_safetensors_library_reads_and_writes_what_we_do(tmp_path):
    tree = {path.replace("/", "."): x for path, x in golden("pi05_tasks_f32").items()}
    save_params(load_params(TASKS / "trained"), tmp_path / "x", format="safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "x" / "model.safetensors")
    assert_same({name.replace(".", "/"): x for name, x in theirs.items()}, golden("pi05_tasks_f32"))
    safetensors.numpy.save_file(tree, tmp_path / "theirs.safetensors")
    assert_same(load_params(tmp_path / "theirs.safetensors"), golden("pi05_tasks_f32"))


def test_safetensors_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.safetensors.SHARD_BYTES", 50_000)
    save_params(golden("pi05_f32"), tmp_path / "x", format="safetensors")
    index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in golden("pi05_f32").values())
    merged = {}
    for name in files:
        merged |= safetensors.numpy.load_file(tmp_path / "x" / name)
    assert {name: index["weight_map"][name] for name in merged} == index["weight_map"]
    for path in ("x", "x/model.safetensors.index.json"):
        assert_same(load_params(tmp_path / path), golden("pi05_f32"))


def test_incomplete_safetensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.safetensors.SHARD_BYTES", 20_000)
    save_params(golden("pi05_f32"), tmp_path / "x", format="safetensors")
    shard = next((tmp_path / "x").glob("model-00001-of-*.safetensors"))
    with pytest.raises(CheckpointError, match="is one of .* files; pass their index"):
        load_params(shard)
    index = tmp_path / "x/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lost"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"lack \['lost'\]"):
        load_params(tmp_path / "x")
    safetensors.numpy.save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="has no leaves"):
        load_params(tmp_path / "empty.safetensors")


def test_arrays_without_entries_survive_safetensors(tmp_path):
    tree = {"a": np.zeros((0, 3), np.float32), "b": np.float32(1).reshape(())}
    save_params(tree, tmp_path / "x", format="safetensors")
    assert_same(load_params(tmp_path / "x"), tree)
