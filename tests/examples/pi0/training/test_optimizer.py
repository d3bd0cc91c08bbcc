"""The optimizer: the task table's own group, the schedule, and the average of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.pi0.training.configs import OptimizerConfig
from examples.pi0.training.optimizer import make_optimizer, make_schedule, update_average


def test_rows_without_gradient_stay_bit_for_bit_and_decay_is_for_the_rest():
    table = jax.random.normal(jax.random.key(0), (4, 8))
    params = {"task_embeddings": {"embedding": table}, "dense": {"kernel": jnp.ones((3, 3))}}
    optimizer = make_optimizer(OptimizerConfig(0.1, weight_decay=0.5, warmup_steps=0), 20)
    state = optimizer.init(params)
    average = params
    gradients = jax.tree.map(jnp.zeros_like, params)
    gradients["task_embeddings"]["embedding"] = jnp.zeros((4, 8)).at[1].set(1.0)
    for _ in range(5):
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        average = update_average(average, params, 0.9)
    for tree in (params, average):
        moved = np.asarray(tree["task_embeddings"]["embedding"] != table).any(axis=1)
        assert moved.tolist() == [False, True, False, False]
        assert (tree["dense"]["kernel"] < 1).all()


def test_the_table_has_its_own_learning_rate():
    params = {"task_embeddings": {"embedding": jnp.zeros((1, 1))}, "kernel": jnp.zeros((1, 1))}
    config = OptimizerConfig(1e-3, table_multiplier=10.0, warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.ones_like, params), optimizer.init(params), params
    )
    ratio = updates["task_embeddings"]["embedding"] / updates["kernel"]
    np.testing.assert_allclose(ratio, 10.0, rtol=1e-5)


def test_the_schedules_are_those_of_openpi():
    cosine = make_schedule(OptimizerConfig(1.0, warmup_steps=10, final_learning_rate=0.2), 110)
    for step, expected in [(0, 1 / 11), (10, 1.0), (60, 0.6), (110, 0.2), (500, 0.2)]:
        assert float(cosine(step)) == pytest.approx(expected, abs=1e-6)
    root = make_schedule(OptimizerConfig(1.0, "rsqrt", 10, timescale=100), 1)
    assert float(root(10)) == pytest.approx(1.0)
    assert float(root(310)) == pytest.approx((100 / 400) ** 0.5)
    flat = make_schedule(OptimizerConfig(1.0, "constant", 4), 1)
    assert [float(flat(step)) for step in (0, 4, 999)] == pytest.approx([0.2, 1.0, 1.0])


def test_the_end_of_the_decay_follows_the_length_of_the_run():
    for steps in (100, 5000):
        assert float(make_schedule(OptimizerConfig(1.0), steps)(steps)) == pytest.approx(0.1)


def test_an_average_of_bfloat16_weights_moves():
    params = {"w": jnp.full(4, 1.05, jnp.bfloat16)}
    average = {"w": jnp.ones(4)}
    for _ in range(3000):
        average = update_average(average, params, 0.999)
    assert average["w"].dtype == jnp.float32
    np.testing.assert_allclose(average["w"], params["w"].astype(jnp.float32), rtol=3e-3)
