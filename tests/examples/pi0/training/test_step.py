"""A step: parts of a batch, a frozen prefix, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pi0.training.blueprint import Blueprint
from examples.pi0.training.configs import OptimizerConfig, TrainConfig
from examples.pi0.training.groups import frozen_paths
from examples.pi0.training.step import Trainer
from taskcond.trees import flatten
from tests.examples.pi0.training.test_loss import batch_of
from tests.support.tiny_pi0 import TABLE, tiny


def trainer(freeze=(), **changes):
    model = tiny(num_tasks=3, **changes.pop("model", {}))
    config = TrainConfig(
        model=model, optimizer=OptimizerConfig(1e-2, warmup_steps=0), num_train_steps=10, **changes
    )
    blueprint = Blueprint(model)
    return Trainer(config, blueprint.freeze(frozen_paths(blueprint.shapes, freeze)), None)


def start(made):
    flat = made.blueprint.initialize(jax.random.key(0), frozenset(made.blueprint.shapes))
    flat = {  # the gates of new norms are zero, with which nothing but the last layer would learn
        path: jax.random.normal(jax.random.key(len(path)), x.shape).astype(x.dtype) * 0.1
        if "Dense_0" in path
        else x
        for path, x in flat.items()
    }
    return made.start(*made.blueprint.split(flat))


def test_parts_of_a_batch_make_the_step_of_the_whole():
    batch = batch_of(size=4)
    results = []
    for count in (1, 2):
        made = trainer(batch_size=4, grad_accum=count)
        results.append(jax.jit(made.step)(start(made), batch))
    (whole, a), (parts, b) = results
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
    assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-5)
    for x, y in zip(
        jax.tree.leaves(whole.opt_state), jax.tree.leaves(parts.opt_state), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)


def test_a_frozen_prefix_is_not_differentiated():
    batch = batch_of(size=2)
    frozen, full = trainer(("vlm",)), trainer()
    state = start(frozen)
    joint = trainer(("vlm",))
    joint.frozen_prefix = False  # the same gradients, by the long way
    steps = [
        jax.jit(made.step).lower(start(made), batch).compile() for made in (frozen, joint, full)
    ]
    short, long = (step(state, batch) for step in steps[:2])
    assert float(short[1]["loss"]) == pytest.approx(float(long[1]["loss"]), rel=1e-5)
    assert float(short[1]["grad_norm"]) == pytest.approx(float(long[1]["grad_norm"]), rel=1e-4)
    flops = [step.cost_analysis()["flops"] for step in steps]
    assert flops[0] < 0.75 * flops[1] < 0.75 * flops[2] * 1.01


def test_only_what_is_not_frozen_changes():
    made = trainer(("all_but_table",), model={"task_lora_rank": 2})
    state = start(made)
    after, _ = jax.jit(made.step)(state, batch_of(size=2))
    assert set(after.params) == {"task_embeddings", "task_updates"}
    before = flatten(state.params)
    for path, value in flatten(after.params).items():
        moved = (np.asarray(value) != np.asarray(before[path])).reshape(3, -1).any(axis=1)
        # Its other factor is zero in the first step, so that `down` has no gradient yet.
        is_down = path.endswith("down")
        assert moved.tolist() == [not is_down, not is_down, False], path
    for old, new in zip(jax.tree.leaves(state.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(old, new)
    assert after.seen.tolist() == [1, 1, 0]


def test_the_computation_is_in_bfloat16_and_the_trained_parameters_in_float32():
    made = trainer(("vision",), model={"dtype": "bfloat16"}, ema_decay=0.9)
    after = jax.eval_shape(made.step, made.shapes, batch_of(size=2))[0]
    kinds = {
        name: {x.dtype for x in jax.tree.leaves(getattr(after, name))}
        for name in ("params", "average", "frozen")
    }
    assert kinds == {
        "params": {jnp.dtype("float32")},
        "average": {jnp.dtype("float32")},
        "frozen": {jnp.dtype("bfloat16")},
    }


def test_a_step_depends_on_seed_and_number_alone():
    made = trainer(model={"task_dropout_rate": 0.5})
    state, batch = start(made), batch_of(size=2)
    step = jax.jit(made.step)
    again = [jax.tree.leaves(step(state, batch)) for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*again, strict=True))
    other = dataclasses.replace(made.config, seed=1)
    different = jax.jit(Trainer(other, made.blueprint, None).step)(state, batch)
    assert float(different[1]["loss"]) != float(step(state, batch)[1]["loss"])
    assert TABLE in made.blueprint.shapes
