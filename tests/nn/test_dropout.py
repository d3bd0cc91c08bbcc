"""Dropped ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskcond import drop_ids, guide

KEY = jax.random.key(0)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_ids_become_no_task_in_any_dtype_at_their_rate(dtype):
    ids = jnp.arange(4, dtype=dtype)
    for drop in (drop_ids, jax.jit(drop_ids, static_argnums=(2, 3))):
        assert drop(KEY, ids, 1.0).tolist() == [-1] * 4
        assert drop(KEY, ids, 0.0).tolist() == [0, 1, 2, 3]
    share = (np.asarray(drop_ids(KEY, np.zeros(20_000, int), 0.3)) == -1).mean()
    assert share == pytest.approx(0.3, abs=0.02)


def test_bad_ids_stay_bad():
    dropped = jax.jit(lambda ids: drop_ids(KEY, ids, 1.0, 3))(jnp.array([2, 3, -2, -1]))
    assert dropped.tolist() == [-1, 3, -2, -1]
    with pytest.raises(ValueError, match="task_id out of range"):
        drop_ids(KEY, np.array([2**32]), 0.5)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\]"):
        drop_ids(KEY, [0], 1.5)


def test_guidance_takes_unsigned_ids():
    seen = []
    guide(lambda ids: seen.append(ids.tolist()) or ids * 1.0, 2.0)(jnp.array([3], jnp.uint8))
    assert seen == [[3, -1]]
