"""taskcond.functional: the functions equal the module."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import taskcond
from taskcond import NULL_TASK, functional
from taskcond.nn.fusion import FUSIONS, FusionName
from tests.support import assign

IDS = jnp.array([2, NULL_TASK, 0])
TIME = jax.random.normal(jax.random.key(1), (3, 8))


def test_the_types_list_every_fusion():
    assert typing.get_args(FusionName) == tuple(FUSIONS)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
def test_the_functions_equal_the_module_bit_for_bit(fusion, dropout_rate):
    key = jax.random.key(0)
    init = nnx.initializers.normal(1.0)
    table = functional.init_table(key, 3, 8, fusion=fusion, embedding_init=init)
    module = taskcond.TaskConditioner(
        3,
        8,
        scale=0.3,
        fusion=fusion,
        dropout_rate=dropout_rate,
        embedding_init=lambda *_: table,
        rngs=nnx.Rngs(0),
    )
    projection = None
    if module.projection is not None:
        projection = init(key, module.projection.shape)
        assign(module, projection=projection)
    about = {
        "projection": projection,
        "scale": 0.3,
        "fusion": fusion,
        "dropout_rate": dropout_rate,
        "dropout_key": key,
    }
    result = functional.condition(table, TIME, IDS, **about)
    np.testing.assert_array_equal(result, module(TIME, IDS, rngs=key))
    np.testing.assert_array_equal(result[1], TIME[1])
    np.testing.assert_array_equal(functional.embed(table, IDS, scale=0.3), module.embed(IDS))


def test_without_a_key_no_id_is_dropped():
    table = jnp.ones((3, 8))
    dropped = functional.condition(
        table, TIME, IDS, dropout_rate=1.0, dropout_key=jax.random.key(0)
    )
    np.testing.assert_array_equal(dropped, TIME)
    kept = functional.condition(table, TIME, IDS, dropout_rate=1.0)
    np.testing.assert_array_equal(kept, functional.condition(table, TIME, IDS))


def test_a_bad_id_is_nan_under_jit_and_raises_outside():
    table = jnp.ones((3, 8))
    with pytest.raises(ValueError, match=r"out of range: got \[3\]"):
        functional.condition(table, TIME, [0, 1, 3])
    result = jax.jit(functional.condition)(table, TIME, jnp.array([0, 1, 3]))
    assert np.isnan(result[2]).all()
    assert np.isfinite(result[:2]).all()


@pytest.mark.parametrize(
    ("shape", "fusion", "message"),
    [
        ((3, 4), "add", r"table has shape \(3, 4\), .* width 8 needs \(3, 8\)"),
        ((3, 8), "film", r"table has shape \(3, 8\), .* width 8 needs \(3, 16\)"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(shape, fusion, message):
    with pytest.raises(ValueError, match=message):
        functional.condition(jnp.ones(shape), TIME, IDS, fusion=fusion)


def test_a_table_needs_a_task():
    with pytest.raises(ValueError, match="num_tasks must be at least 1, got 0"):
        functional.init_table(jax.random.key(0), 0, 8)


def test_a_projection_that_does_not_fit_is_refused():
    table = jnp.ones((3, 8))
    with pytest.raises(ValueError, match=r"projection=jnp.zeros\(\(16, 8\)\) at first"):
        functional.condition(table, TIME, IDS, fusion="concat")
    with pytest.raises(ValueError, match="pass no projection"):
        functional.condition(table, TIME, IDS, projection=jnp.zeros((16, 8)))
