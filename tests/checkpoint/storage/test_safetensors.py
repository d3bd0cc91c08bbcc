"""Reads and writes the safetensors format."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import numpy as np
import pytest
import safetensors.numpy

from taskcond import TaskVocabulary
from taskcond.checkpoint import (
    CheckpointError,
    TaskConditioning,
    load_params,
    open_checkpoint,
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


def named():
    tree = {
        "dense": {"kernel": np.ones((4, 4), np.float32)},
        "task_embeddings": {"embedding": np.arange(8, dtype=np.float32).reshape(2, 4)},
    }
    vocabulary = TaskVocabulary(["pour", "wipe"])
    return tree, TaskConditioning(2, 4, 0.5, "add", vocabulary, (10, 0))


def test_an_output_that_is_named_as_a_file_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.safetensors.SHARD_BYTES", 20)
    tree, about = named()
    path = tmp_path / "policy.safetensors"
    save_params(tree, path, conditioning=about, format="safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]
    theirs = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(theirs["dense.kernel"], tree["dense"]["kernel"])
    checkpoint = open_checkpoint(path)
    assert checkpoint.conditioning == about
    with pytest.raises(CheckpointError, match="exists; overwrite=True"):
        save_params(tree, path, format="safetensors")
    save_params({"other": np.zeros(3)}, path, format="safetensors", overwrite=True)
    assert list(load_params(path)) == ["other"]
    assert open_checkpoint(path).conditioning is None
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]


def test_a_file_appears_on_a_disk_without_second_names(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    tree, _ = named()
    save_params(tree, tmp_path / "policy.safetensors", format="safetensors")
    np.testing.assert_array_equal(
        load_params(tmp_path / "policy.safetensors")["dense"]["kernel"], tree["dense"]["kernel"]
    )


def test_a_name_of_another_format_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="--format safetensors"):
        save_params(named()[0], tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_everything_as_it_was(tmp_path):
    tree, about = named()
    path = tmp_path / "policy.safetensors"
    save_params(tree, path, conditioning=about, format="safetensors")
    before = path.read_bytes()
    long = TaskVocabulary(["a" * 600_000, "b" * 600_000])
    too_long = dataclasses.replace(about, vocabulary=long)
    with pytest.raises(CheckpointError, match="more than a header has room"):
        save_params(tree, path, conditioning=too_long, format="safetensors", overwrite=True)
    assert path.read_bytes() == before
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "folder.safetensors/thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        save_params(tree, tmp_path / "folder.safetensors", format="safetensors", overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"policy.safetensors", "folder.safetensors"}


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    tree, about = named()
    path = tmp_path / "policy.safetensors"
    save_params(tree, path, conditioning=about, format="safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        open_checkpoint(path)
