"""Fusions change the timestep embedding as their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import taskcond
import taskcond.linen
from taskcond.nn.fusion import FUSIONS
from taskcond.trees import flatten
from tests.support import as_untyped_code, assign

WIDTH = 6


def film(num_tasks=3, **kwargs):
    return taskcond.TaskConditioner(num_tasks, WIDTH, fusion="film", rngs=nnx.Rngs(0), **kwargs)


def embedding(*batch):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*batch, WIDTH)), jnp.float32)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", FUSIONS)
def test_all_but_add_start_as_the_identity_and_zeros_make_any_fusion_so(name, jit):
    zeros, fresh = (
        taskcond.TaskConditioner(3, WIDTH, fusion=name, embedding_init=init, rngs=nnx.Rngs(0))
        for init in (nnx.initializers.zeros, None)
    )
    emb, ids = embedding(4), jnp.array([0, 2, -1, 1])
    call = nnx.jit(lambda module, *x: module(*x)) if jit else (lambda module, *x: module(*x))
    np.testing.assert_array_equal(call(zeros, emb, ids), emb)
    assert np.array_equal(call(fresh, emb, ids), emb) == (name != "add")


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_film_scales_and_shifts_by_the_two_halves_of_a_row(scale, jit):
    rows = np.random.default_rng(1).normal(size=(3, 2 * WIDTH)).astype(np.float32)
    conditioner = film(scale=scale, embedding_init=lambda *_: jnp.asarray(rows))
    emb, ids = embedding(4), jnp.array([0, 2, -1, 1])
    call = nnx.jit(lambda module, *x: module(*x)) if jit else (lambda module, *x: module(*x))
    result = np.asarray(call(conditioner, emb, ids))
    for i, task in enumerate([0, 2, None, 1]):
        row = np.zeros(2 * WIDTH) if task is None else scale * rows[task]
        expected = np.asarray(emb[i]) * (1 + row[:WIDTH]) + row[WIDTH:]
        np.testing.assert_allclose(result[i], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result[2], emb[2])


def test_film_has_a_table_of_twice_the_width():
    assert film().embedding.shape == (3, 2 * WIDTH)
    assert film().embed(jnp.array([1])).shape == (1, 2 * WIDTH)


def test_film_makes_bad_ids_nan_and_only_theirs():
    out = jax.jit(lambda emb, ids: film()(emb, ids))(embedding(2), jnp.array([1, 3]))
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_learns_from_its_start(name):
    conditioner = taskcond.TaskConditioner(3, WIDTH, fusion=name, rngs=nnx.Rngs(0))
    emb, ids = embedding(2), jnp.array([0, 1])
    before = conditioner(emb, ids)
    for _ in range(2):  # concat's rows learn once its projection is not zero
        grads = nnx.grad(lambda module: (module(emb, ids) ** 2).sum())(conditioner)
        state = nnx.state(conditioner, nnx.Param)
        nnx.update(conditioner, jax.tree.map(lambda x, g: x - 0.1 * g, state, grads))
    (table,) = (leaf for leaf in jax.tree.leaves(grads) if len(leaf) == 3)
    assert (np.asarray(table) != 0).any(axis=1).tolist() == [True, True, False]
    assert (conditioner(emb, ids) ** 2).sum() < (before**2).sum()


def test_gate_lets_through_what_its_gate_says():
    rows = np.random.default_rng(1).normal(size=(3, 2 * WIDTH)).astype(np.float32)
    gate = taskcond.TaskConditioner(
        3, WIDTH, fusion="gate", embedding_init=lambda *_: jnp.asarray(rows), rngs=nnx.Rngs(0)
    )
    emb, ids = embedding(2), jnp.array([2, 0])
    expected = np.asarray(emb) + np.tanh(rows[ids, :WIDTH]) * rows[ids, WIDTH:]
    np.testing.assert_allclose(gate(emb, ids), expected, rtol=1e-5, atol=1e-6)


def test_concat_adds_a_linear_function_of_both():
    concat = taskcond.TaskConditioner(3, WIDTH, fusion="concat", scale=2.0, rngs=nnx.Rngs(0))
    weights = np.random.default_rng(1).normal(size=(2 * WIDTH, WIDTH)).astype(np.float32)
    assign(concat, projection=weights)
    emb, ids = embedding(2), jnp.array([2, 0])
    both = np.concatenate([emb, 2 * np.asarray(concat.embedding[...])[ids]], axis=1)
    np.testing.assert_allclose(concat(emb, ids), emb + both @ weights, rtol=1e-4, atol=1e-5)


class Multiply(taskcond.Fusion):
    """A fusion of a user."""

    embedding_init = staticmethod(nnx.initializers.zeros)

    def __call__(self, time_emb, row):
        return time_emb * jnp.exp(row)


@pytest.mark.parametrize("library", [taskcond, taskcond.linen])
def test_a_fusion_of_ones_own_works(library):
    emb, ids = embedding(3), jnp.array([2, -1, 0])
    if library is taskcond.linen:
        module = library.TaskConditioner(3, WIDTH, fusion=Multiply())
        out = module.apply(module.init(jax.random.key(0), emb, ids), emb, ids)
    else:
        module = library.TaskConditioner(3, WIDTH, fusion=Multiply(), rngs=nnx.Rngs(0))
        assert module.fusion == "Multiply"
        out = nnx.jit(lambda m, *x: m(*x))(module, emb, ids)
    np.testing.assert_array_equal(out, emb)


def test_what_is_no_fusion_is_refused():
    with as_untyped_code(), pytest.raises(TypeError, match="or an instance of .*Fusion"):
        taskcond.TaskConditioner(3, WIDTH, fusion=Multiply, rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="Fusion does not define __call__"):
        taskcond.TaskConditioner(3, WIDTH, fusion=taskcond.Fusion(), rngs=nnx.Rngs(0))(
            embedding(1), jnp.array([0])
        )


@pytest.mark.parametrize("name", FUSIONS)
def test_linen_has_the_same_fusions(name):
    ours = taskcond.TaskConditioner(3, WIDTH, fusion=name, rngs=nnx.Rngs(0))
    module = taskcond.linen.TaskConditioner(3, WIDTH, fusion=name)
    emb, ids = embedding(2), jnp.array([0, 1])
    params = {
        path: jax.random.normal(jax.random.key(x.size), x.shape)
        for path, x in flatten(nnx.state(ours, nnx.Param)).items()
    }
    shapes = jax.tree.map(jnp.shape, module.init(jax.random.key(0), emb, ids)["params"])
    assert shapes == {path: x.shape for path, x in params.items()}
    taskcond.merge_into(ours, params)
    np.testing.assert_array_equal(module.apply({"params": params}, emb, ids), ours(emb, ids))
