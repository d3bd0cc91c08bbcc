"""Says what differs between two checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from taskcond.checkpoint import (
    diff_checkpoints,
    save_params,
)
from tests.support.checkpoints import (
    TABLE,
    TINY,
    small,
)


def test_diff_measures_relative_distance(tmp_path):
    tree = small()
    save_params(tree, tmp_path / "a")
    tree["dense"]["kernel"] = tree["dense"]["kernel"] * np.float32(1.5)
    tree["dense"]["bias"] = np.zeros(5, np.float32)
    tree["new"] = np.ones(1, np.float32)
    del tree["task_embeddings"]
    save_params(tree, tmp_path / "b", format="safetensors")
    found = diff_checkpoints(tmp_path / "a", tmp_path / "b")
    assert found.changed == {"dense/kernel": pytest.approx(0.5)}
    assert found.reshaped == {"dense/bias": ("[4] float32", "[5] float32")}
    assert (found.only_first, found.only_second) == ([TABLE], ["new"])
    assert not found.identical
    assert diff_checkpoints(TINY / "released", TINY / "trained").identical
    assert "by 50 %" in str(found)


def test_diff_tells_bits_not_values(tmp_path):
    for name, value in (("a", 0.0), ("b", -0.0), ("c", np.nan), ("d", np.nan)):
        save_params({"x": np.full(3, value)}, tmp_path / name)
    assert not diff_checkpoints(tmp_path / "a", tmp_path / "b").identical
    assert diff_checkpoints(tmp_path / "c", tmp_path / "d").identical
