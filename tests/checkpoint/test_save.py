"""Saves any tree so that it can be loaded."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskcond.checkpoint import (
    load_params,
    save_params,
)
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


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_tree_survives_both_formats(tmp_path_factory, data):
    names = st.text("abcxyz_0123", min_size=1, max_size=5)
    arrays = st.lists(st.integers(1, 4), max_size=3).map(
        lambda shape: np.random.default_rng(len(shape)).standard_normal(shape)
    )
    tree = data.draw(
        st.dictionaries(names, st.one_of(arrays, st.dictionaries(names, arrays, min_size=1)),
                        min_size=1, max_size=3)
    )  # fmt: skip
    if "params" in tree or any("value" in x for x in tree.values() if isinstance(x, dict)):
        return
    folder = tmp_path_factory.mktemp("any")
    save_params(tree, folder / "a")
    save_params(load_params(folder / "a"), folder / "b", format="safetensors")
    assert_same(load_params(folder / "b"), tree)
