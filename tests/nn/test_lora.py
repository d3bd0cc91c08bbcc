"""TaskLoRA: the weights that it stands for, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond import TaskLoRA
from tests.support import as_untyped_code, assign

EQUATIONS = {  # the layers of a transformer: input, weight, output
    "...i,io->...o": ((2, 3, 6), (6, 5)),
    "btd,ndh->btnh": ((2, 3, 6), (4, 6, 5)),
    "btd,ckdh->cbtkh": ((2, 3, 6), (2, 3, 6, 5)),
    "btnh,nhd->btd": ((2, 3, 4, 5), (4, 5, 6)),
    "bnd,ndh->bnh": ((2, 4, 6), (4, 6, 5)),
    "r...,rs->s...": ((6, 2), (6, 5)),
}


def make(equation, shape, rank=2, num_tasks=3, **kwargs):
    lora = TaskLoRA(num_tasks, shape, rank, equation=equation, rngs=nnx.Rngs(0), **kwargs)
    assign(lora, up=jax.random.normal(jax.random.key(1), lora.up.shape))
    return lora


@pytest.mark.parametrize("ids", [jnp.array([2, 0]), jnp.array([-1, 1])])
@pytest.mark.parametrize("equation", [e for e in EQUATIONS if not e.startswith("r")])
def test_the_output_is_that_of_the_exported_weight(equation, ids):
    x_shape, shape = EQUATIONS[equation]
    lora = make(equation, shape)
    x = jax.random.normal(jax.random.key(2), x_shape)
    kernel = jax.random.normal(jax.random.key(3), shape)
    y = lora(x, ids, jnp.einsum(equation, x, kernel))
    for i, task in enumerate(np.asarray(ids).tolist()):
        alone = jnp.einsum(equation, x[i : i + 1], lora.export(task, kernel))
        at = y[:, i : i + 1] if equation.endswith("cbtkh") else y[i : i + 1]
        np.testing.assert_allclose(at, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_one_task_for_a_whole_input(equation):
    x_shape, shape = EQUATIONS[equation]
    lora = make(equation, shape)
    x = jax.random.normal(jax.random.key(2), x_shape)
    kernel = jax.random.normal(jax.random.key(3), shape)
    found = lora(x, 1, jnp.einsum(equation, x, kernel))
    exported = jnp.einsum(equation, x, lora.export(1, kernel))
    np.testing.assert_allclose(found, exported, rtol=1e-4, atol=1e-5)


def test_an_id_for_each_token_works_too():
    lora = make("...i,io->...o", (6, 5))
    x, ids = jnp.ones((2, 3, 6)), jnp.array([[0, 1, -1], [2, 2, 0]])
    y = lora(x, ids, jnp.zeros((2, 3, 5)))
    expected = jnp.stack(
        [jnp.stack([x[0, 0] @ lora.export(int(t), jnp.zeros((6, 5))) for t in row]) for row in ids]
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@nnx.split_rngs(splits=3)
@functools.partial(nnx.vmap, in_axes=0, out_axes=1)
def make_layers(rngs):
    return TaskLoRA(3, (6, 6), 2, rngs=rngs)


@pytest.mark.parametrize("ids", [np.array([2, -1]), np.array(1), np.array([[0, 1, -1], [2, 2, 0]])])
def test_updates_of_many_layers_pass_through_a_scan(ids):
    loras = make_layers(nnx.Rngs(0))
    assign(loras, up=jax.random.normal(jax.random.key(1), loras.up.shape))
    kernels = jax.random.normal(jax.random.key(2), (3, 6, 6))
    x = jax.random.normal(jax.random.key(3), (2, 3, 6))
    graph, state = nnx.split(loras)
    wanted = x
    for i, kernel in enumerate(kernels):
        lora = nnx.merge(graph, jax.tree.map(lambda p, i=i: p[:, i], state))
        wanted = lora(wanted, ids, wanted @ kernel)

    @jax.jit
    def scanned(state, ids):
        updates = nnx.merge(graph, state).select(ids, x).by_layer()
        step = lambda x, of_layer: (of_layer[1](x, x @ of_layer[0]), None)  # noqa: E731
        return jax.lax.scan(step, x, (kernels, updates))[0]

    np.testing.assert_allclose(scanned(state, ids), wanted, rtol=1e-4, atol=1e-4)
    bad = np.asarray(scanned(state, np.where(ids == 2, 3, ids)))
    is_bad = np.broadcast_to((ids == 2).reshape(*ids.shape, *[1] * (3 - ids.ndim)), bad.shape)
    np.testing.assert_array_equal(np.isnan(bad), is_bad)


def test_many_layers_are_exported_at_once():
    loras, kernels = make_layers(nnx.Rngs(0)), jnp.ones((3, 6, 6))
    assign(loras, up=jax.random.normal(jax.random.key(1), loras.up.shape))
    found = loras.export(1, kernels)
    for i in range(3):
        update = loras.down[1, i] @ loras.up[1, i]
        np.testing.assert_allclose(found[i], kernels[i] + update, rtol=1e-6, atol=1e-6)
    assert loras.export(-1, kernels) is kernels
    with pytest.raises(ValueError, match=r"the layer's is \(3, 6, 6\)"):
        loras.export(1, kernels[0])


def test_many_layers_are_not_taken_for_one():
    x, ids = jnp.ones((2, 6)), np.array([0, 1])
    loras = make_layers(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"holds many layers: scan over \.by_layer\(\)"):
        loras.select(ids, x)(x, x)
    with pytest.raises(ValueError, match=r"x has the shape \(2, 6\), but must .* \(3, 2\)"):
        loras.select(ids, x).by_layer()(x, x)
    with pytest.raises(ValueError, match=r"holds one layer: call the update, or make"):
        make("...i,io->...o", (6, 5)).select(ids, x).by_layer()


def test_a_model_without_tasks_has_no_updates():
    update = TaskLoRA(0, (6, 5), 2, rngs=nnx.Rngs(0)).select(None, jnp.ones((2, 6))).by_layer()
    y = jnp.ones((2, 5))
    assert update(jnp.ones((2, 6)), y) is y


def test_no_weight_of_an_example_is_made():
    lora = make("...i,io->...o", (64, 64), rank=2)
    x, ids = jnp.ones((32, 64)), jnp.zeros(32, jnp.int32)
    jaxpr = jax.make_jaxpr(lambda x, ids: lora(x, ids, x))(x, ids)
    sizes = [v.aval.size for eqn in jaxpr.jaxpr.eqns for v in eqn.outvars]
    assert max(sizes) <= 32 * 64 * 2 * 2


@pytest.mark.parametrize(
    ("settings", "factor"),
    [({}, 1.0), ({"alpha": 8}, 2.0), ({"alpha": 8, "rank_stabilized": True}, 4.0)],
)
def test_the_factor_is_alpha_over_rank_or_its_root(settings, factor):
    lora, plain = (make("...i,io->...o", (6, 5), rank=4, **s) for s in (settings, {}))
    zeros = jnp.zeros((6, 5))
    np.testing.assert_allclose(lora.export(0, zeros), factor * plain.export(0, zeros), rtol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        nnx.Linear(6, 5, rngs=nnx.Rngs(0)),
        nnx.Einsum("btd,ndh->btnh", (4, 6, 5), rngs=nnx.Rngs(0)),
    ],
)
def test_it_fits_flax_layers(layer):
    lora = TaskLoRA.around(layer, 3, 2, rngs=nnx.Rngs(1))
    x = jnp.ones((2, 3, 6))
    y = layer(x)
    np.testing.assert_array_equal(lora(x, jnp.array([0, 2]), y), y)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="rank=6 exceeds .* 6 inputs and 5 outputs; use at most 5"):
        TaskLoRA(3, (6, 5), 6, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must have the form"):
        TaskLoRA(3, (6, 5), 2, equation="io", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="does not fit equation"):
        TaskLoRA(3, (6, 5, 4), 2, rngs=nnx.Rngs(0))
    with as_untyped_code(), pytest.raises(TypeError, match="the layer is a LayerNorm"):
        TaskLoRA.around(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), 3, 2, rngs=nnx.Rngs(0))
    lora = TaskLoRA(3, (6, 5), 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="task_id out of range"):
        lora.export(3, jnp.zeros((6, 5)))
    with pytest.raises(ValueError, match=r"the shape \(5, 6\), but the layer's is \(6, 5\)"):
        lora.export(0, jnp.zeros((5, 6)))


def test_no_task_exports_the_layer_itself():
    kernel = jnp.ones((6, 5))
    assert make("...i,io->...o", (6, 5)).export(-1, kernel) is kernel
