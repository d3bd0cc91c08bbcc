"""A directory appears when it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from taskcond.checkpoint import (
    CheckpointError,
    load_params,
    save_params,
)
from taskcond.checkpoint.storage.leftovers import Workplace
from tests.support.checkpoints import (
    assert_same,
    small,
)


@pytest.mark.parametrize("before", [True, False])
def test_a_link_is_written_through(tmp_path, before):
    if before:
        save_params(small(3), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_params(small(2), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(load_params(tmp_path / "real"), small(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_where_directories_cannot_be_exchanged_they_are_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.atomic._exchange", lambda a, b: False)
    for value in (1, 2):
        save_params({"a": np.full(1, value)}, tmp_path / "x", overwrite=True)
    assert load_params(tmp_path / "x")["a"] == 2
    assert [child.name for child in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_threads_that_write_one_output_do_not_disturb_each_other(
    tmp_path, monkeypatch, can_exchange, overwrite
):
    if not can_exchange:
        monkeypatch.setattr("taskcond.checkpoint.storage.atomic._exchange", lambda a, b: False)
    start = threading.Barrier(4)

    def save(value: int) -> int | None:
        start.wait()
        try:
            tree = {"a": np.full(1000, value), "b": np.full(1000, value)}
            save_params(tree, tmp_path / "x", overwrite=overwrite)
        except CheckpointError as error:
            assert str(tmp_path / "x") in str(error)
            return None
        return value

    with ThreadPoolExecutor(4) as pool:
        written = [value for value in pool.map(save, range(4)) if value is not None]
    assert len(written) == 1 or overwrite
    found = load_params(tmp_path / "x")
    assert found["a"][0] in written
    assert set(found["a"]) == set(found["b"]) == {found["a"][0]}
    assert [child.name for child in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["x", "x.safetensors"])
@pytest.mark.parametrize("stopped", [True, False])
def test_an_output_that_appears_while_the_old_one_is_away_is_a_complete_one(
    tmp_path, monkeypatch, name, stopped
):
    monkeypatch.setattr("taskcond.checkpoint.storage.atomic._exchange", lambda a, b: False)
    out, format = tmp_path / name, "safetensors" if "." in name else "orbax"
    save_params({"a": np.full(1, 1.0)}, out, format=format)
    move_away = Workplace.move_away

    def another_run_is_faster(place):
        monkeypatch.setattr(Workplace, "move_away", move_away)
        place.move_away()
        save_params({"a": np.full(1, 2.0)}, out, format=format)
        if stopped:
            raise KeyboardInterrupt

    monkeypatch.setattr(Workplace, "move_away", another_run_is_faster)
    with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
        save_params({"a": np.full(1, 3.0)}, out, format=format, overwrite=True)
    assert load_params(out)["a"].tolist() == [2.0 if stopped else 3.0]
    assert [child.name for child in tmp_path.iterdir()] == [name]


def test_a_working_directory_that_somebody_removed_is_an_error(tmp_path, monkeypatch):
    save_params({"a": np.ones(2)}, tmp_path / "x")
    sync = "taskcond.checkpoint.storage.atomic.sync"
    monkeypatch.setattr(sync, lambda directory: shutil.rmtree(directory.parent))
    with pytest.raises(CheckpointError, match="x cannot be written: .*No such file"):
        save_params({"a": np.zeros(2)}, tmp_path / "x", overwrite=True)
    assert load_params(tmp_path / "x")["a"].tolist() == [1, 1]


def test_what_was_moved_away_comes_back_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.atomic._exchange", lambda a, b: False)
    save_params({"a": np.ones(2)}, tmp_path / "x")
    rename = os.rename

    def fail_once_moved(source, target):
        if source.name == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("taskcond.checkpoint.storage.atomic.os.rename", fail_once_moved)
    with pytest.raises(KeyboardInterrupt):
        save_params({"a": np.zeros(2)}, tmp_path / "x", overwrite=True)
    assert load_params(tmp_path / "x")["a"].tolist() == [1, 1]
    assert [child.name for child in tmp_path.iterdir()] == ["x"]
