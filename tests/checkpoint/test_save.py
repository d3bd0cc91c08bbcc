"""Saves any tree so that it can be loaded."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskcond.checkpoint import (
    CheckpointError,
    load_params,
    merge_checkpoint,
    save_params,
)
from taskcond.trees import flatten
from tests.support.checkpoints import (
    assert_same,
)


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.int32, np.bool_])
def test_what_is_saved_is_loaded(tmp_path, format, dtype):
    rng = np.random.default_rng(1)
    tree = {
        "a": {"b": rng.integers(0, 2, (3, 5, 2)).astype(dtype)},
        "scalar": np.asarray(1).astype(dtype),
        "zeros": np.zeros((4, 4), dtype),
    }
    save_params(tree, tmp_path / "x", format=format)
    assert_same(load_params(tmp_path / "x"), tree)
    assert not [child for child in tmp_path.iterdir() if child.name != "x"]


names = st.sampled_from(["params", "value"]) | st.text(min_size=1, max_size=4).map(
    lambda name: name.replace(".", "_").replace("/", "_")  # those are refused, or other levels
)
trees = st.recursive(
    st.integers(0, 3).map(lambda rank: np.full((2,) * rank, rank, np.float32)),
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=4,
).filter(lambda node: isinstance(node, dict))


def without_layout(tree):
    """Takes away a level `params` around all leaves, and then one `value` at each of them."""
    if set(tree) == {"params"} and isinstance(tree["params"], dict):
        tree = tree["params"]
    paths = {path: keys for path in flatten(tree) if (keys := path.split("/"))}
    if all(len(keys) > 1 and keys[-1] == "value" for keys in paths.values()):
        return {"/".join(keys[:-1]): flatten(tree)[path] for path, keys in paths.items()}
    return tree


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
@settings(max_examples=25, deadline=None)
@given(tree=trees)
@example(tree={"params": {"params": {"params": {"a": np.ones(2)}}}})
@example(tree={"a": {"value": {"value": np.ones(2)}}, "b": {"value": {"value": np.ones(1)}}})
@example(tree={"value": np.ones(2), "a": {"value": np.ones(1)}})
@example(tree={"params": {"value": np.ones(2), "a": {"value": np.ones(1)}}})
@example(tree={"params": {"a": np.ones(2), "params": {"b": np.ones(1)}}})
def test_any_names_survive(tmp_path_factory, format, tree):
    path = tmp_path_factory.mktemp("any") / "x"
    save_params(tree, path, format=format)
    assert_same(load_params(path), without_layout(tree))
    assert_same(load_params(path, like=tree), tree)
    loaded = load_params(path)
    assert_same(load_params(path, like=loaded), loaded)
    merge_checkpoint(path, loaded, path.with_name("y"))
    assert_same(load_params(path.with_name("y")), loaded)


def test_a_leaf_below_another_is_refused(tmp_path):
    tree = {"a": np.ones(1), "a/b": np.ones(1), "a/c": np.ones(1)}
    for format in ("orbax", "safetensors"):
        with pytest.raises(CheckpointError, match=r"leaves below other leaves: \['a/b', 'a/c'\]"):
            save_params(tree, tmp_path / "x", format=format)
