"""A directory appears when it is complete."""

from __future__ import annotations

import numpy as np
import pytest

from taskcond.checkpoint import (
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
