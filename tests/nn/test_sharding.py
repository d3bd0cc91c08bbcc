"""The lookup works on meshes with explicit and with automatic axes."""

import subprocess
import sys

import jax
import pytest

from taskcond.nn.fusion import FUSIONS

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
rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
module = taskcond.TaskConditioner(
    5, 8, fusion=fusion, dropout_rate=0.5,
    embedding_init=lambda key, shape, dtype: jnp.asarray(rows[:, :shape[1]]),
    rngs=nnx.Rngs(0))
graphdef, state = nnx.split(module)
emb = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
ids = np.array([4, -1, 0, 3])
expected = np.asarray(module(jnp.asarray(emb), ids, deterministic=True))

def call(state, emb, ids, key=None):
    return nnx.merge(graphdef, state)(emb, ids, deterministic=key is None, rngs=key)

# Each place of an array once, with all others where they are most likely to be.
usual = P("data", None), P(None, None), None
odd = P("data", "model"), P(("data", "model"), None), P(None, None)
places = [(spec, *usual[1:]) for spec in odd]
places += [usual, (usual[0], P(None, "model"), P("data")), (P("data", "model"), usual[1], P(None))]
for emb_spec, table_spec, ids_spec in places:
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
    grads = jax.tree.leaves(jax.jit(jax.grad(loss))(table, x, i))
    for grad, plain in zip(grads, jax.tree.leaves(jax.grad(loss)(state, jnp.asarray(emb), ids))):
        np.testing.assert_allclose(np.asarray(grad), np.asarray(plain), rtol=1e-5, atol=1e-5)
    bad = np.asarray(jax.jit(call)(table, x, jnp.array([0, 5, -2, 1])))
    assert np.isnan(bad[1:3]).all() and np.isfinite(bad[[0, 3]]).all()
    jax.jit(call)(table, x, i, jax.random.key(0))
print("ok")
"""

METHODS = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from taskcond import (
    StageConditioner, StageVocabulary, TaskLinear, TaskLoRA, TaskParam, TaskTokens
)

types = (getattr(jax.sharding.AxisType, sys.argv[1]),) * 2
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=types)
rngs = nnx.Rngs(0)
stages = StageConditioner(StageVocabulary((2,) * 5), 8, rngs=rngs)
in_layers = nnx.vmap(lambda rngs: TaskLoRA(5, (8, 8), 2, rngs=rngs), in_axes=0, out_axes=1)

def scan(m, x, i):
    return jax.lax.scan(lambda x, own: (own(x, x), None), x, m.select(i, x).by_layer())[0]

methods = {
    "lora in layers": (nnx.split_rngs(splits=3)(in_layers)(rngs), scan),
    "lora": (TaskLoRA(5, (8, 8), 2, rngs=rngs), lambda m, x, i: m(x, i, x)),
    "head": (TaskLinear(5, 8, 8, rngs=rngs), lambda m, x, i: m(x, i, x)),
    "stages": (stages, lambda m, x, i: m(x[:, 0], i, 1)),
    "tokens": (TaskTokens(5, 8, 2, rngs=rngs), lambda m, x, i: m(x, None, i)[0]),
}
x = np.random.default_rng(1).normal(size=(4, 3, 8)).astype(np.float32)
ids = np.array([4, -1, 0, 3])
for name, (module, call) in methods.items():
    graph, state = nnx.split(module)
    state = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), state)
    run = lambda state, x, i: call(nnx.merge(graph, state), x, i)
    loss = lambda *a: (run(*a) ** 2).sum()
    expected, slope = run(state, jnp.asarray(x), ids), jax.grad(loss)(state, jnp.asarray(x), ids)
    placed = jax.device_put(x, NamedSharding(mesh, P("data", None, None)))
    place = lambda p: P(None, None, "model") if p.ndim > 2 and p.shape[2] % 2 == 0 else P()
    here = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, place(p))), state)
    i = jax.device_put(ids, NamedSharding(mesh, P("data")))
    out = jax.jit(run)(here, placed, i)
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-5, atol=1e-5)
    grads = jax.jit(jax.grad(loss))(here, placed, i)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(slope)):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
print("ok")
"""


NEEDS_AXES = pytest.mark.skipif(
    not hasattr(jax.sharding, "reshard"),
    reason="explicit axes need jax.sharding.reshard, which this jax does not have",
)


def check(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


@NEEDS_AXES
@pytest.mark.parametrize(
    ("kind", "fusion"), [("Auto", "add"), *(("Explicit", name) for name in FUSIONS)]
)
def test_fusions_on_a_mesh(kind, fusion):
    check(SCRIPT, kind, fusion)


@NEEDS_AXES
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_other_methods_on_a_mesh(kind):
    check(METHODS, kind)
