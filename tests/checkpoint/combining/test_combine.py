"""The result does not depend on how inputs are stored or leaves are cut."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from taskcond.checkpoint import (
    CheckpointError,
    Recipe,
    Rule,
    Specialist,
    combine_checkpoints,
    load_params,
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


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize(
    ("with_base", "dtype", "wanted"),
    [(True, None, "float32"), (False, None, "float32"), (True, "bfloat16", "bfloat16")],
)
def test_the_order_of_specialists_does_not_decide_the_dtype(
    tmp_path, order, with_base, dtype, wanted
):
    for name, kind, value in (("base", "float32", 1), ("a", jnp.bfloat16, 3), ("b", "float32", 5)):
        save_params({"w": np.full((2, 2), value, kind)}, tmp_path / name)
    paths = {name: str(tmp_path / name) for name in ("base", "a", "b")}
    mixed = Recipe(
        tuple(Specialist(paths[name]) for name in order),
        base=paths["base"] if with_base else None,
        method="task_arithmetic" if with_base else "mean",
        scale=2**-9 if with_base else 1.0,
        dtype=dtype,
    )
    report = combine_checkpoints(mixed, tmp_path / "out")
    value = load_params(tmp_path / "out")["w"]
    exact = 1 + 2**-9 * (2 + 4) if with_base else 4
    np.testing.assert_array_equal(value, np.full((2, 2), exact).astype(value.dtype))
    assert value.dtype == jnp.dtype(wanted)
    if wanted == "float32":
        assert report.cast == {paths["a"]: {"w": ("bfloat16", "float32")}}
        assert f"bfloat16 -> float32, from {paths['a']}" in str(report)
    else:
        changed = {"w": ("float32", "bfloat16")}
        assert report.cast == {paths["b"]: changed, paths["base"]: changed}


def test_what_overflows_in_the_results_dtype_is_counted(tmp_path):
    for name, values in (("a", [1e5, 1.0, np.nan, 2.0]), ("b", [1e5, 1.0, 1.0, 2.0])):
        save_params({"w": np.array(values, np.float32)}, tmp_path / name)
    both = tuple(Specialist(str(tmp_path / name)) for name in "ab")
    with pytest.warns(UserWarning, match=r"finite values became NaN or Inf .*\{'w': 1\}"):
        report = combine_checkpoints(Recipe(both, dtype="float16"), tmp_path / "out")
    assert report.overflowed == {"w": 1}
    assert report.nonfinite == {str(tmp_path / "a"): {"w": 1}}
