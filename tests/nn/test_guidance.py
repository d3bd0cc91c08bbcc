"""Guidance: between no task and more than the task."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskcond import guide

IDS, X = jnp.array([3, 0]), jnp.ones((2, 5))


def velocity(task_id, x, more):
    return x * (task_id[:, None] + 2.0) + more["a"]


MORE = {"a": jnp.arange(10.0).reshape(2, 5)}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("weight", [0, 1, 1.5, 3.0])
def test_the_weight_leads_from_no_task_over_the_task_and_beyond(weight, jit):
    guided = guide(velocity, weight)
    guided = jax.jit(guided) if jit else guided
    task, none = velocity(IDS, X, MORE), velocity(jnp.full(2, -1), X, MORE)
    expected = none + weight * (task - none)
    np.testing.assert_allclose(guided(IDS, X, MORE), expected, rtol=1e-6)


def test_a_traced_weight_gives_the_same():
    run = jax.jit(lambda weight: guide(velocity, weight)(IDS, X, MORE))
    for weight in (0.0, 1.0, 2.5):
        np.testing.assert_allclose(run(weight), guide(velocity, weight)(IDS, X, MORE), rtol=1e-6)


def test_both_branches_run_in_one_call_and_one_where_one_is_enough():
    sizes = []

    def count(task_id, x):
        sizes.append(len(task_id))
        return x

    for weight in (2.0, 1, 0):
        guide(count, weight)(IDS, X)
    assert sizes == [4, 2, 2]


def test_a_model_that_never_acted_without_a_task_is_warned_of():
    with pytest.warns(UserWarning, match="trained without dropout"):
        guide(velocity, 2.0, dropout_rate=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide(velocity, 1.0, dropout_rate=0.0)
        guide(velocity, 2.0, dropout_rate=0.1)
        guide(velocity, 2.0)


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="weight must be finite"):
        guide(velocity, float("nan"))
