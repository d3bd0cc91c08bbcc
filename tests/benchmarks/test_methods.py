"""The comparison of methods: the same policy for all, and how its numbers are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.methods.policy import METHODS, MethodPolicy, embed_texts
from benchmarks.methods.report import other_task, rate
from benchmarks.methods.study import ALL_TASKS, texts_of
from examples.metaworld.hard import LATER
from taskcond import TaskParam
from taskcond.trees import flatten


def velocity(policy, ids):
    rng = np.random.default_rng(0)
    text = jnp.asarray(texts_of(policy.method)[:1]).repeat(len(ids), 0)
    state, noisy = rng.normal(size=7), rng.normal(size=(16, 4))
    rows = [jnp.asarray(np.stack([x] * len(ids)), jnp.float32) for x in (state, noisy)]
    time = jnp.full(len(ids), 0.3)
    graph, weights = nnx.split(policy)
    run = jax.jit(lambda w: nnx.merge(graph, w).velocity(jnp.asarray(ids), text, *rows, time))
    return np.asarray(run(weights))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_all_methods_share_the_policy_and_differ_in_what_tasks_have(method):
    plain = MethodPolicy(METHODS[0], 3, nnx.Rngs(0))
    policy = MethodPolicy(method, 3, nnx.Rngs(0))
    ours, shared = (flatten(nnx.state(p, nnx.Param)) for p in (policy, plain))
    for path, value in shared.items():
        np.testing.assert_array_equal(ours[path], value)
    added = nnx.state(policy, TaskParam)
    assert set(ours) - set(shared) == set(flatten(added))
    assert bool(flatten(added)) == method.reads_ids
    # The gates of blocks start at zero, so that conditions do nothing at first.
    noise = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
        nnx.state(policy, nnx.Param),
    )
    nnx.update(policy, noise)
    a, b, none = velocity(policy, [0, 2, -1])
    assert (np.abs(a - b).max() > 1e-4) == method.reads_ids
    assert (np.abs(a - none).max() > 1e-4) == method.reads_ids


def test_equal_texts_have_equal_vectors_and_others_have_others():
    a, b, c = embed_texts(["move the hand", "move the hand", "push the puck"])
    np.testing.assert_array_equal(a, b)
    assert a @ c < 0.9
    prefixed = texts_of(next(m for m in METHODS if m.prefix))
    assert len(np.unique(prefixed, axis=0)) == len(ALL_TASKS)


def test_rates_count_what_was_done_over_all_seeds():
    names = [task.name for task in LATER]
    done = [name for name in names for _ in range(2)]
    wrong = [*done]
    wrong[0], wrong[5] = None, names[0]
    seeds = [{"later": done}, {"later": wrong}]
    assert (rate(seeds, "later", LATER).hits, rate(seeds, "later", LATER).total) == (18, 20)
    assert rate(seeds, "later", LATER, wanted=other_task).hits == 1
    assert rate(seeds, "later", LATER, lambda task: task == LATER[2]).hits == 3
