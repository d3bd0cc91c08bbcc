"""Nothing is overwritten that should not be."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from taskcond.checkpoint import (
    CheckpointError,
    load_params,
    merge_checkpoint,
    save_params,
)
from tests.support.checkpoints import (
    FORMATS,
    TABLE,
    TINY,
    assert_same,
    golden,
    small,
    target_with_tasks,
)


def test_nothing_is_overwritten_unasked(tmp_path):
    save_params({"a": np.ones(1)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_params({"a": np.zeros(1)}, tmp_path / "x")
    assert load_params(tmp_path / "x")["a"] == 1
    save_params({"a": np.zeros(1)}, tmp_path / "x", overwrite=True)
    assert load_params(tmp_path / "x")["a"] == 0
    assert [child.name for child in tmp_path.iterdir()] == ["x"]


def test_what_is_no_checkpoint_is_never_overwritten(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="is not a checkpoint and will not be overwritten"):
        save_params({"a": np.ones(1)}, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years"


def test_files_that_are_no_checkpoints_are_not_lost(tmp_path):
    save_params(small(), tmp_path / "x", format="safetensors")
    (tmp_path / "x/thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"also holds \['thesis.tex'\]"):
        save_params(small(), tmp_path / "x", overwrite=True)
    assert (tmp_path / "x/thesis.tex").read_text() == "years of work"


def test_the_target_must_not_lie_in_the_source(tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    source, target = tmp_path / "tiny" / "released", target_with_tasks(5)
    (tmp_path / "link").symlink_to(source)
    for given_source, out in [
        (source, source),
        (source, source / "params"),
        (source, source / "new"),
        (source / "params", source / "params" / "new"),
        (source / "params", source),
        (source, tmp_path / "link" / "new"),
        (tmp_path / "link", source / "new"),
        (source, tmp_path / "tiny"),
    ]:
        with pytest.raises(CheckpointError, match="the same or one lies within the other"):
            merge_checkpoint(given_source, target, out, keep=TABLE, overwrite=True)
    assert_same(load_params(source), golden("pi05_f32"))


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
@pytest.mark.parametrize(
    "name",
    ["d/thesis.tex", "array_metadatas/a/b.txt", "ocdbt.process_0/notes", "photos/1", "x/y/z.md"],
)
def test_foreign_files_at_any_depth_are_not_lost(tmp_path, format, name):
    save_params(small(), tmp_path / "x", format=format)
    file = tmp_path / "x" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("years of work")
    with pytest.raises(CheckpointError, match=rf"also holds \['{name}'\], which would be lost"):
        save_params(small(), tmp_path / "x", overwrite=True)
    assert file.read_text() == "years of work"
    file.unlink()
    save_params(small(), tmp_path / "x", overwrite=True)


def test_a_linked_directory_is_not_taken_for_a_part(tmp_path):
    save_params(small(), tmp_path / "x")
    (tmp_path / "far").mkdir()
    (tmp_path / "x/photos").symlink_to(tmp_path / "far")
    with pytest.raises(CheckpointError, match=r"also holds \['photos'\]"):
        save_params(small(), tmp_path / "x", overwrite=True)


@pytest.mark.parametrize("source", [*FORMATS.iterdir(), TINY / "released/params"])
def test_what_every_release_wrote_can_be_overwritten(tmp_path, source):
    shutil.copytree(source, tmp_path / "x")
    save_params(small(), tmp_path / "x", overwrite=True)
    assert_same(load_params(tmp_path / "x"), small())
