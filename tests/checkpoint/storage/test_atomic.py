"""A directory appears when it is complete."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from taskcond.checkpoint import (
    CheckpointError,
    load_params,
    save_params,
)
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
