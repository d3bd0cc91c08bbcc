"""Loads leaves into dtypes and shardings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond import MergeError, merge_params
from taskcond.checkpoint import (
    CheckpointError,
    load_params,
    save_params,
)
from tests.support.checkpoints import (
    FORMATS,
    TABLE,
    TINY,
    assert_same,
    golden,
    small,
)


def test_like_gives_dtype_structure_and_kind():
    path = TINY / "released"
    shapes = {k: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for k, v in golden("pi05_f32").items()}
    loaded = load_params(path, shapes)
    assert list(loaded) == list(shapes)
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.bfloat16 for x in loaded.values())
    host = load_params(path, golden("pi05_f32"))
    assert all(type(x) is np.ndarray for x in host.values())


def test_a_sharding_for_all_or_for_each(tmp_path):
    tree = small()
    save_params(tree, tmp_path / "x")
    mesh = jax.make_mesh((1,), ("d",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    for argument in (sharding, jax.tree.map(lambda _: sharding, tree)):
        loaded = load_params(tmp_path / "x", sharding=argument)
        assert_same(loaded, tree)
        assert all(x.sharding == sharding for x in jax.tree.leaves(loaded))


def test_nothing_is_cut_to_32_bits_in_silence(tmp_path):
    save_params({"a": np.array([2**40 + 5]), "b": np.array([1e300])}, tmp_path / "x")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(CheckpointError, match=r"'a': 'int64', 'b': 'float64'.*jax_enable_x64"):
        load_params(tmp_path / "x", sharding=device)
    assert load_params(tmp_path / "x")["a"] == 2**40 + 5


def test_a_sharding_of_no_leaf_is_refused(tmp_path):
    save_params({"a": np.ones(2)}, tmp_path / "x")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(CheckpointError, match=r"lack: \['b'\]"):
        load_params(tmp_path / "x", sharding={"b": device})


def test_an_nnx_state_can_be_the_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(3, use_bias=False, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    with pytest.raises(MergeError, match="unexpected in the checkpoint"):
        load_params(FORMATS / "orbax_0_11_13_ocdbt", state)


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    save_params(small(), tmp_path / "x")
    like = {"dense": {"kernel": np.zeros((6, 5), np.float32), "more": np.zeros(1)}}
    with pytest.raises(MergeError) as raised:
        load_params(tmp_path / "x", like)
    assert raised.value.missing == ("dense/more",)
    assert raised.value.mismatched == ("dense/kernel",)
    assert set(raised.value.unexpected) == {"dense/bias", TABLE}


def test_the_advice_works_when_it_is_followed(tmp_path):
    path = tmp_path / "x"
    save_params({"net": small()}, path)
    like = small(3)
    with pytest.raises(MergeError) as raised:
        load_params(path, like)
    (call,) = (x for x in str(raised.value).splitlines() if x.startswith("to accept this: "))
    call = call.removeprefix("to accept this: params, report = ")
    known = {"merge_params": merge_params, "load_params": load_params, "like": like, "path": path}
    params, report = eval(call, known)
    assert_same(params, {**small(), "task_embeddings": like["task_embeddings"]})
    assert (report.kept, report.dropped) == ([TABLE], ["net/" + TABLE])
