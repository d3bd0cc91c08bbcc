"""A policy survives every step from merging to loading."""

import jax
import numpy as np
from flax import nnx

from examples.pi0.model import Pi0
from taskcond import merge_into
from taskcond.checkpoint import diff_checkpoints, load_params, merge_checkpoint, save_params
from taskcond.trees import flatten
from tests.support.checkpoints import (
    TABLE,
    TINY,
    assert_same,
    golden,
    load_ignoring_warnings,
    nested,
    target_with_tasks,
    with_orbax,
)
from tests.support.golden import load_golden


def fine_tune(model, inputs, observation, steps):
    def loss(model, rng):
        return model.compute_loss(rng, observation, inputs["actions"]).mean()

    gradient = nnx.jit(nnx.grad(loss))
    for step in range(steps):
        grads = gradient(model, jax.random.key(step))
        state = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda x, g: x - 0.1 * g, state, grads))


def test_round_trip_of_a_policy(tmp_path):
    published = load_golden("pi05_tasks_f32")
    merge_checkpoint(
        TINY / "released", target_with_tasks(7), tmp_path / "merged" / "params", keep=TABLE
    )
    merged = flatten(load_ignoring_warnings(tmp_path / "merged"))
    table = merged.pop(TABLE)
    assert_same(merged, golden("pi05_f32"))
    config = published.config(num_tasks=7, dtype="float32")
    model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))  # every leaf is loaded
    merge_into(model, load_ignoring_warnings(tmp_path / "merged"))
    fine_tune(model, published.inputs, published.observation(), steps=2)
    tuned = {path: np.asarray(x) for path, x in flatten(nnx.state(model, nnx.Param)).items()}
    assert (tuned[TABLE] != table).any()
    save_params(tuned, tmp_path / "tuned" / "params")
    assert_same(with_orbax(tmp_path / "tuned" / "params")["params"], nested(tuned))
    save_params(load_params(tmp_path / "tuned"), tmp_path / "safe", format="safetensors")
    save_params(load_params(tmp_path / "safe"), tmp_path / "back")
    assert_same(with_orbax(tmp_path / "back")["params"], nested(tuned))
    assert diff_checkpoints(tmp_path / "tuned", tmp_path / "back").identical
