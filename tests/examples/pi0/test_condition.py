"""Where time and task enter: the embedding of the time, and task dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.pi0.condition import sincos
from examples.pi0.model import Pi0
from taskcond import NULL_TASK
from tests.support.tiny_pi0 import chunk, close, observe, shaken, tiny


def test_the_task_enters_at_the_timestep_embedding(policy):
    time = jnp.array([0.1, 0.9])
    plain = policy.time_embedding(time, np.array([NULL_TASK, NULL_TASK]))
    given = policy.time_embedding(time, np.array([3, NULL_TASK]))
    np.testing.assert_array_equal(given[1], plain[1])
    close(given[0] - plain[0], 3.0 * policy.task_embeddings.embedding[...][3], 1e-5)


def test_task_dropout_of_one_acts_without_a_task_in_training_alone():
    config = tiny(num_tasks=3, task_dropout_rate=1.0, task_embedding_scale=5.0)
    model = shaken(Pi0(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    actions, key = chunk(config), jax.random.key(0)

    @partial(jax.jit, static_argnames="train")
    def loss(state, task_id, train):
        observation = observe(config, task_id=task_id)
        return nnx.merge(graph, state).compute_loss(key, observation, actions, train=train)

    ids, none = np.array([0, 2]), np.full(2, NULL_TASK)
    np.testing.assert_array_equal(loss(state, ids, True), loss(state, none, True))
    assert np.abs(loss(state, ids, False) - loss(state, none, False)).max() > 0.001


def test_the_condition_takes_one_of_two_ways(policy):
    time, task_id = jnp.array([0.3, 0.7]), np.array([0, 4])
    condition = policy.condition(time, task_id)
    if policy.config.pi05:
        assert condition.tokens is None
        np.testing.assert_array_equal(condition.norms, policy.adarms_cond(time, task_id))
    else:
        assert condition.norms is None
        np.testing.assert_array_equal(condition.tokens, policy.time_embedding(time, task_id))


def test_the_condition_at_one_time_is_that_of_every_row(policy):
    for task_id in (np.array([0, 4]), np.array([NULL_TASK])):
        ours = policy.condition_at(jnp.float32(0.3), task_id)
        wanted = policy.condition(jnp.full(len(task_id), 0.3, jnp.float32), task_id)
        jax.tree.map(np.testing.assert_array_equal, ours, wanted)


def test_without_tasks_one_row_stands_for_all():
    model = Pi0(tiny(pi05=False), rngs=nnx.Rngs(0))
    condition = model.condition_at(jnp.float32(0.3), None)
    np.testing.assert_array_equal(condition.tokens, model.time_embedding(jnp.array([0.3])))


def test_sincos_has_geometric_periods():
    time = np.array([0.0, 0.3, 1.0], np.float32)
    periods = np.geomspace(4e-3, 4.0, 8)
    angle = 2 * np.pi * time[:, None] / periods
    wanted = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(sincos(jnp.asarray(time), 16), wanted, atol=2e-4)
