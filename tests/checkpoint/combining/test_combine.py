"""The result does not depend on how inputs are stored or leaves are cut."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from taskcond.checkpoint import (
    CheckpointError,
    Recipe,
    Rule,
    Specialist,
    combine_checkpoints,
    save_params,
)
from taskcond.checkpoint.storage import leaf as leaf_module
from taskcond.trees import flatten
from tests.support.specialists import (
    BIAS,
    KERNEL,
    about,
    combine,
    parts,
    recipe,
    tree,
)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["mean", "task_arithmetic", "ties", "dare"])
def test_how_leaves_are_cut_does_not_matter(saved, tmp_path, monkeypatch, method):
    whole = combine(saved, tmp_path, method=method)
    monkeypatch.setattr(leaf_module, "PIECE_BYTES", 160)
    cut = combine(saved, tmp_path, method=method)
    for path, x in whole.items():
        assert cut[path].tobytes() == x.tobytes()


@pytest.mark.parametrize("method", ["mean", "task_arithmetic", "ties", "dare"])
@pytest.mark.parametrize("limit", [160, 1 << 22])
def test_how_inputs_are_stored_does_not_matter(
    saved, tmp_path, monkeypatch, write_chunked, method, limit
):
    wanted = combine(saved, tmp_path, method=method)
    hashes = json.loads((tmp_path / "out/recipe.json").read_text())["inputs"]
    monkeypatch.setattr(leaf_module, "PIECE_BYTES", limit)
    # As from one device, from several along either axis, and from a grid of them.
    for name, seed, chunk in (("base", None, (30, 20)), ("a", 1, (10, 20)), ("b", 2, (15, 5))):
        shutil.rmtree(saved[name])
        write_chunked(Path(saved[name]), flatten(tree(seed)), {KERNEL: chunk})
        frames = {"base": (0, 0, 0), "a": (9, 0, 0), "b": (0, 7, 0)}[name]
        about(frames).save(saved[name])
    result = combine(saved, tmp_path, method=method)
    for path, x in wanted.items():
        assert result[path].tobytes() == x.tobytes(), path
    if limit == 1 << 22:  # pieces are the same
        assert json.loads((tmp_path / "out/recipe.json").read_text())["inputs"] == hashes


def test_what_is_not_floating_point_must_be_equal(tmp_path):
    for name, extra in (("a", 0), ("b", 1)):
        save_params({"w": np.array([1, 2 + extra * 1j], np.complex64)}, tmp_path / name)
    both = tuple(Specialist(str(tmp_path / name)) for name in "ab")
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match=r"w differs, and is complex64"):
        combine_checkpoints(Recipe(both, check_base=False), tmp_path / "out")
    assert threading.active_count() == threads  # or Python could not exit
    combine_checkpoints(Recipe(both[:1]), tmp_path / "out")


def test_nan_is_reported(saved, tmp_path):
    broken = tree(1)
    broken["dense"]["kernel"][0, :2] = np.nan
    save_params(broken, saved["a"], conditioning=about((9, 0, 0)), overwrite=True)
    with pytest.warns(UserWarning, match="NaN or Inf"):
        report = combine_checkpoints(recipe(saved), tmp_path / "out")
    assert report.nonfinite == {saved["a"]: {KERNEL: 2}}


def test_rules_choose_a_method_by_path(saved, tmp_path):
    rules = (
        Rule("norm/.*", "task_arithmetic", (2.0, 0.0), 0.5),
        Rule(".*kernel", "mean", (0.0, 1.0)),
    )
    result = combine(saved, tmp_path, rules=rules)
    base, a, _ = parts(BIAS)
    close(result[BIAS], base + a)
    np.testing.assert_array_equal(result[KERNEL], flatten(tree(2))[KERNEL])


def test_a_dry_run_writes_nothing(saved, tmp_path):
    report = combine_checkpoints(recipe(saved), tmp_path / "out", dry_run=True)
    assert report.owners["pour"] == saved["a"]
    assert not (tmp_path / "out").exists()
