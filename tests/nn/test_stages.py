"""Stages in a model: what tells it the stage, and the head that predicts the stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond import StageConditioner, StageHead, StageVocabulary, merge_into
from taskcond.checkpoint import TaskConditioning
from taskcond.trees import flatten

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


def conditioner(features=6, **settings):
    return StageConditioner(STAGES, features, rngs=nnx.Rngs(0), **settings)


def shaken(**settings):
    return conditioner(embedding_init=nnx.initializers.normal(1.0), **settings)


def test_it_starts_as_the_identity_and_adds_the_vector_of_a_stage_of_a_task():
    x, ids, stage = jnp.ones((4, 6)), jnp.array([0, 1, 1, 2]), jnp.array([1, 3, -1, 0])
    np.testing.assert_array_equal(conditioner()(x, ids, stage), x)
    made = shaken(scale=0.5)
    table = np.asarray(made.embedding[...])
    expected = 1 + 0.5 * np.stack([table[0, 1], table[1, 3], 0 * table[0, 0], table[2, 0]])
    for run in (made, nnx.jit(lambda m, *a: m(*a)).__get__(made)):
        np.testing.assert_allclose(run(x, ids, stage), expected, rtol=1e-6)


def test_without_a_task_or_a_stage_the_output_is_the_input_bit_for_bit():
    made, x = shaken(), jnp.full((3, 6), 0.1, jnp.bfloat16)
    for ids, stage in (([-1] * 3, [0, 5, -1]), ([0, 1, 2], [-1] * 3), ([0, 1, 2], None)):
        out = made(x, ids, stage)
        assert out.dtype == x.dtype
        np.testing.assert_array_equal(out, x)
    none = StageConditioner(StageVocabulary(()), 6, rngs=nnx.Rngs(0))
    assert none.embedding is None
    assert none(x, None, None) is x


@pytest.mark.parametrize(
    ("ids", "stage", "match"),
    [
        ([0], [2], r"stage outside its task: got \(task, stage\) \[\(0, 2\)\]"),
        ([3], [0], "task_id out of range"),
        ([0], [-2], "stage out of range"),
        ([0, 1], [0], r"task_id has shape \(2,\), but stage has \(1,\)"),
    ],
)
def test_a_bad_stage_raises(ids, stage, match):
    with pytest.raises(ValueError, match=match):
        shaken()(jnp.ones((len(ids), 6)), ids, stage)


def test_a_bad_concrete_task_raises_within_jit_without_a_stage():
    with pytest.raises(ValueError, match="task_id out of range"):
        jax.jit(lambda x: shaken()(x, [3], None))(jnp.ones((1, 6)))


def test_a_bad_stage_is_nan_under_jit_and_no_other_row():
    made, graph = shaken(), nnx.split(shaken())
    run = jax.jit(lambda s, i, t: nnx.merge(graph[0], s)(jnp.ones((5, 6)), i, t))
    ids, stage = jnp.array([0, 3, 1, 1, -1]), jnp.array([2, -1, -2, 3, 9])
    out = run(nnx.split(made)[1], ids, stage)
    assert np.isnan(out).all(1).tolist() == [True, True, True, False, False]
    with pytest.raises(TypeError, match="stage"):
        run(nnx.split(made)[1], ids, stage * 1.0)


def test_only_the_rows_of_the_stages_in_the_batch_get_a_gradient():
    graph, state = nnx.split(shaken())
    x, ids, stage = jnp.ones((2, 6)), jnp.array([1, 2]), jnp.array([3, -1])
    grads = jax.grad(lambda s: nnx.merge(graph, s)(x, ids, stage).sum())(state)
    moved = np.abs(flatten(grads)["embedding"]).sum(-1) > 0
    assert np.argwhere(moved).tolist() == [[1, 3]]


def test_a_file_knows_its_table_and_new_tasks_get_rows():
    about = TaskConditioning.of(shaken())
    assert (about.table, about.num_tasks) == ("embedding", 3)
    larger = StageConditioner(StageVocabulary((2, 4, 3, 4)), 6, rngs=nnx.Rngs(0))
    merge_into(larger, nnx.state(shaken()), task_rows=[0, 1, 2, -1], new_rows="target")
    np.testing.assert_array_equal(larger.embedding[:3], shaken().embedding[...])
    np.testing.assert_array_equal(larger.embedding[3], 0)
