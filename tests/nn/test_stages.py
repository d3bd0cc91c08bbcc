"""The head that predicts the stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond import StageHead, StageVocabulary

STAGES = StageVocabulary((2, 4, 3))


def head():
    return StageHead(STAGES, 6, rngs=nnx.Rngs(0))


def test_stages_that_a_task_does_not_have_are_impossible():
    x, ids = jnp.ones((4, 6)), jnp.array([0, 1, 2, -1])
    logits = jax.jit(lambda x, ids: head()(x, ids))(x, ids)
    assert np.isfinite(logits).sum(1).tolist() == [2, 4, 3, 4]
    np.testing.assert_allclose(jax.nn.softmax(logits).sum(1), 1, rtol=1e-6)


def test_the_loss_is_the_cross_entropy_and_unknown_stages_count_nothing():
    x, ids, stage = jnp.ones((3, 6)), jnp.array([0, 1, 1]), jnp.array([1, 3, -1])
    loss = head().loss(x, ids, stage)
    probabilities = np.asarray(jax.nn.softmax(head()(x, ids)))
    expected = [-np.log(probabilities[0, 1]), -np.log(probabilities[1, 3]), 0]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_gradients_are_finite():
    graph, state = nnx.split(head())
    x, ids, stage = jnp.ones((3, 6)), jnp.array([0, 1, 2]), jnp.array([1, 3, -1])
    grads = jax.grad(lambda s: nnx.merge(graph, s).loss(x, ids, stage).sum())(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_it_learns_the_stage():
    made, rng = head(), np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 3, 200))
    stage = jnp.asarray([rng.integers(STAGES.counts[i]) for i in np.asarray(ids)])
    x = jax.nn.one_hot(stage, 6)
    graph, state = nnx.split(made)
    step = jax.jit(jax.grad(lambda s: nnx.merge(graph, s).loss(x, ids, stage).mean()))
    for _ in range(100):
        state = jax.tree.map(lambda p, g: p - 3 * g, state, step(state))
    predicted = nnx.merge(graph, state)(x, ids).argmax(-1)
    assert (predicted == stage).all()


def test_a_bad_id_raises_and_is_nan_under_jit():
    with pytest.raises(ValueError, match="task_id out of range"):
        head()(jnp.ones((1, 6)), jnp.array([3]))
    assert np.isnan(jax.jit(lambda i: head()(jnp.ones((1, 6)), i))(jnp.array([3]))).all()
