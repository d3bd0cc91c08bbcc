"""Fusions change the timestep embedding as their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import taskcond
import taskcond.linen
from taskcond.nn.fusion import FUSIONS

WIDTH = 6


def film(num_tasks=3, **kwargs):
    return taskcond.TaskConditioner(num_tasks, WIDTH, fusion="film", rngs=nnx.Rngs(0), **kwargs)


def embedding(*batch):
    return jnp.asarray(np.random.default_rng(0).normal(size=(*batch, WIDTH)), jnp.float32)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", FUSIONS)
def test_film_starts_as_the_identity_and_zeros_make_any_fusion_so(name, jit):
    conditioner = taskcond.TaskConditioner(
        3, WIDTH, fusion=name, embedding_init=nnx.initializers.zeros, rngs=nnx.Rngs(0)
    )
    emb, ids = embedding(4), jnp.array([0, 2, -1, 1])
    call = nnx.jit(lambda module, *x: module(*x)) if jit else (lambda module, *x: module(*x))
    np.testing.assert_array_equal(call(conditioner, emb, ids), emb)
    np.testing.assert_array_equal(call(film(), emb, ids), emb)


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


def test_film_learns():
    conditioner, emb, ids = film(), embedding(2), jnp.array([0, 1])
    grads = nnx.grad(lambda module: (module(emb, ids) ** 2).sum())(conditioner)
    (table,) = jax.tree.leaves(grads)
    assert (np.asarray(table)[:2] != 0).all()
    assert (np.asarray(table)[2] == 0).all()


def test_linen_has_the_same_film():
    module = taskcond.linen.TaskConditioner(3, WIDTH, fusion="film")
    emb, ids = embedding(2), jnp.array([0, 1])
    table = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2 * WIDTH)), jnp.float32)
    assert module.init(jax.random.key(0), emb, ids)["params"]["embedding"].shape == table.shape
    nnx_module = film(embedding_init=lambda *_: table)
    out = module.apply({"params": {"embedding": table}}, emb, ids)
    np.testing.assert_array_equal(out, nnx_module(emb, ids))
