"""The lookup works on meshes with explicit and with automatic axes."""

import subprocess
import sys

import jax
import pytest

SCRIPT = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
import taskcond

kind, fusion = sys.argv[1:]
types = (getattr(jax.sharding.AxisType, kind),) * 2
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=types)
rows = np.random.default_rng(0).normal(size=(5, 8 if fusion == "add" else 16)).astype(np.float32)
module = taskcond.TaskConditioner(
    5, 8, fusion=fusion, dropout_rate=0.5, embedding_init=lambda *_: jnp.asarray(rows),
    rngs=nnx.Rngs(0))
graphdef, state = nnx.split(module)
emb = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
ids = np.array([4, -1, 0, 3])
expected = np.asarray(module(jnp.asarray(emb), ids, deterministic=True))

def call(state, emb, ids, key=None):
    return nnx.merge(graphdef, state)(emb, ids, deterministic=key is None, rngs=key)

for emb_spec in (P("data", None), P("data", "model"), P(("data", "model"), None), P(None, None)):
    for table_spec in (P(None, None), P(None, "model")):
        for ids_spec in (None, P("data"), P(None)):
            x = jax.device_put(emb, NamedSharding(mesh, emb_spec))
            place = NamedSharding(mesh, table_spec)
            table = jax.tree.map(lambda t: jax.device_put(t, place), state)
            i = ids if ids_spec is None else jax.device_put(ids, NamedSharding(mesh, ids_spec))
            for function in (call, jax.jit(call)):
                out = function(table, x, i)
                np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-6, atol=1e-6)
                if kind == "Explicit":
                    assert out.sharding.is_equivalent_to(x.sharding, 2), (out.sharding, emb_spec)
            loss = lambda *a: (call(*a) ** 2).sum()
            (grad,) = jax.tree.leaves(jax.jit(jax.grad(loss))(table, x, i))
            (plain,) = jax.tree.leaves(jax.grad(loss)(state, jnp.asarray(emb), ids))
            np.testing.assert_allclose(np.asarray(grad), np.asarray(plain), rtol=1e-5, atol=1e-5)
            bad = np.asarray(jax.jit(call)(table, x, jnp.array([0, 5, -2, 1])))
            assert np.isnan(bad[1:3]).all() and np.isfinite(bad[[0, 3]]).all()
            jax.jit(call)(table, x, i, jax.random.key(0))
print("ok")
"""


@pytest.mark.skipif(
    not hasattr(jax.sharding, "reshard"), reason="this jax only tries out explicit axes"
)
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("fusion", ["add", "film"])
def test_lookup_on_a_mesh(kind, fusion):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, fusion], capture_output=True, text=True
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]
