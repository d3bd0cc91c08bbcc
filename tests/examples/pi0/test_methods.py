"""Every method of telling tasks apart by a field of the config, and guidance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.pi0.model import Pi0
from taskcond import NULL_TASK, TaskParam, merge_into
from taskcond.trees import flatten, to_dict
from tests.support import as_untyped_code
from tests.support.tiny_pi0 import chunk, close, observe, sample, shaken, tiny, velocity

METHODS = {
    "film": {"task_fusion": "film"},
    "gate": {"task_fusion": "gate"},
    "concat": {"task_fusion": "concat"},
    "tokens": {"task_fusion": "none", "num_task_tokens": 2},
    "lora": {"task_fusion": "none", "task_lora_rank": 2},
    "heads": {"task_fusion": "none", "task_heads": True},
}
IDS = np.array([2, NULL_TASK])


def base(**changes):
    return shaken(Pi0(tiny(**changes), rngs=nnx.Rngs(0)))


def shifted(**changes):
    """A model whose task parameters are not those of the start."""
    model = base(num_tasks=3, task_dropout_rate=0.1, **changes)
    state = nnx.state(model, TaskParam)
    nnx.update(
        model, jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), state)
    )
    return model


CASES = [(name, True) for name in METHODS] + [("film", False), ("tokens", False), ("lora", False)]
both_models = pytest.mark.parametrize(("method", "pi05"), CASES)


def sampler(model, seen, **kwargs):
    """Returns the sampled actions as a function of ids, and of other arguments, compiled once."""
    graph, state = nnx.split(model)
    noise = chunk(model.config)

    @jax.jit
    def run(state, ids, traced):
        model, given = nnx.merge(graph, state), seen.replace(task_id=ids)
        return model.sample_actions(None, given, noise=noise, **kwargs, **traced)

    return lambda ids, **traced: np.asarray(run(state, ids, traced))


@both_models
def test_a_merged_model_acts_as_before_unless_it_has_tokens(method, pi05):
    plain = base(pi05=pi05)
    model = Pi0(tiny(num_tasks=3, pi05=pi05, **METHODS[method]), rngs=nnx.Rngs(1))
    report = merge_into(model, nnx.state(plain, nnx.Param))
    assert set(report.kept) == set(flatten(nnx.state(model, TaskParam)))
    assert all(path.startswith("task_") for path in report.kept)
    seen = observe(plain.config)
    wanted, found = velocity(plain, seen), velocity(model, seen.replace(task_id=IDS))
    if method == "tokens":  # masked tokens change the order of sums
        close(found[1], wanted[1], 1e-5)
        assert np.abs(found[0] - wanted[0]).max() > 1e-6
    else:
        np.testing.assert_array_equal(found, wanted)


@both_models
def test_tasks_act_apart_and_kept_modulations_hold_them(method, pi05):
    model = shifted(pi05=pi05, **METHODS[method])
    seen = observe(model.config)
    act = sampler(model, seen, num_steps=2)
    zero, two = act(np.full(2, 0)), act(np.full(2, 2))
    assert np.abs(zero - two).max() > 1e-3
    close(act(np.array([2, 0])), np.stack([two[0], zero[1]]), 1e-4)
    graph, state = nnx.split(model)
    keep = jax.jit(lambda state: nnx.merge(graph, state).modulations(2, num_steps=2))
    close(act(None, modulations=keep(state)), two, 1e-5)


@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_updates_export_as_the_plain_weights_of_one_task(num_kv_heads):
    expert = dataclasses.replace(tiny().action_expert, num_kv_heads=num_kv_heads)
    language = dataclasses.replace(tiny().paligemma, num_kv_heads=num_kv_heads)
    sizes = {"action_expert": expert, "paligemma": language}
    model = shifted(**METHODS["lora"], **sizes)
    seen = observe(model.config)
    weights = flatten(to_dict(nnx.state(model, nnx.Param)))
    alone = {path: value for path, value in weights.items() if not path.startswith("task_")}
    updates = model.task_updates
    for name, layer in {
        "action_in": "action_in_proj",
        "action_out": "action_out_proj",
        "time_in": "time_mlp_in",
        "time_out": "time_mlp_out",
    }.items():
        path = f"{layer}/kernel"
        alone[path] = getattr(updates, name).export(2, alone[path])
    layers = "PaliGemma/llm/layers"
    gating = alone[f"{layers}/mlp_1/gating_einsum"]  # [layers, 2, in, out]
    gates = [updates.layers.mlp_gate.export(2, gating[:, 0])]
    gates += [updates.layers.mlp_in.export(2, gating[:, 1])]
    alone[f"{layers}/mlp_1/gating_einsum"] = jnp.stack(gates, axis=1)
    path = f"{layers}/mlp_1/linear"
    alone[path] = updates.layers.mlp_out.export(2, alone[path])
    for name in updates.layers.names[:-3]:
        path = f"{layers}/attn/{name}_1/w"
        alone[path] = getattr(updates.layers, name).export(2, alone[path])
    plain = base(**sizes)
    merge_into(plain, alone)
    close(velocity(model, seen.replace(task_id=np.full(2, 2))), velocity(plain, seen), 1e-4)


def test_updates_are_learnt_with_a_frozen_prefix_as_without():
    model = shifted(**METHODS["lora"])
    seen = observe(model.config, task_id=IDS)
    graph, state = nnx.split(model)
    noise, time = jnp.asarray(chunk(model.config, seed=3)), jnp.array([0.3, 0.8])

    @functools.partial(jax.jit, static_argnames="frozen_prefix")
    def gradient(state, frozen_prefix):
        def loss(state):
            errors, _ = nnx.merge(graph, state).errors_and_stage_loss(
                seen, jnp.asarray(chunk(model.config)), noise, time, frozen_prefix=frozen_prefix
            )
            return errors.mean()

        return jax.grad(loss)(state)

    found, wanted = (flatten(to_dict(gradient(state, frozen))) for frozen in (True, False))
    learnt = [path for path in wanted if path.startswith("task_updates")]
    assert len(learnt) == 2 * (4 + 6)
    for path in learnt:
        close(found[path], wanted[path], 1e-4)
        assert np.abs(wanted[path][2]).max() > 0
        assert not wanted[path][:2].any()  # rows of other tasks


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("method", ["film", "tokens", "heads", "lora"])
def test_guidance_is_a_line_through_none_and_the_task(method, kept):
    model = shifted(**METHODS[method])
    graph, state = nnx.split(model)
    act = sampler(model, observe(model.config), num_steps=1)
    task, none = act(np.full(2, 2)), act(np.full(2, -1))
    ids, given = np.full(2, 2), {}
    if kept:
        pair = np.array([2, -1])
        keep = jax.jit(lambda state: nnx.merge(graph, state).modulations(pair, num_steps=1))
        ids, given = None, {"modulations": keep(state)}
    for weight in (0.0, 1.0, 3.0):
        found = act(ids, guidance=jnp.float32(weight), **given)
        close(found, none + weight * (task - none), 1e-4)


def test_guidance_of_one_is_no_guidance():
    model = shifted()
    seen = observe(model.config, task_id=IDS)
    np.testing.assert_array_equal(
        sample(model, seen, num_steps=2, guidance=1), sample(model, seen, num_steps=2)
    )


def test_a_traced_number_of_steps_is_guided_too():
    model = shifted()
    seen = observe(model.config, task_id=IDS)
    graph, state = nnx.split(model)
    noise = jnp.ones((2, 4, 5))

    @jax.jit
    def run(state, steps):
        model = nnx.merge(graph, state)
        return model.sample_actions(None, seen, num_steps=steps, noise=noise, guidance=2.0)

    close(run(state, 2), sample(model, seen, num_steps=2, noise=noise, guidance=2.0), 1e-5)


def test_guidance_that_cannot_work_is_refused_or_warned_of():
    seen = observe(tiny())
    with pytest.raises(ValueError, match="needs tasks, but the model has num_tasks=0"):
        base().sample_actions(jax.random.key(0), seen, guidance=2.0)
    untrained = base(num_tasks=3)
    with pytest.warns(UserWarning, match="trained without dropout"):
        sample(untrained, seen.replace(task_id=IDS), num_steps=1, guidance=2.0)
    with pytest.raises(ValueError, match="task_id not found in batch"):
        shifted().sample_actions(jax.random.key(0), seen, guidance=2.0)
    model = shifted()
    one = model.modulations(2, num_steps=1)
    with pytest.raises(ValueError, match="as many of NULL_TASK after them"):
        model.sample_actions(
            None, seen, num_steps=1, noise=np.zeros((2, 4, 5)), modulations=one, guidance=2.0
        )


def test_settings_that_do_not_exist_are_refused():
    with (
        as_untyped_code(),
        pytest.raises(ValueError, match="task_fusion must be one of .*got 'multiply'"),
    ):
        tiny(num_tasks=3, task_fusion="multiply")
    with pytest.raises(ValueError, match="num_task_tokens must be at least 0"):
        tiny(num_tasks=3, num_task_tokens=-1)
    with pytest.raises(ValueError, match="rank=9 exceeds"):
        Pi0(tiny(num_tasks=3, task_lora_rank=9), rngs=nnx.Rngs(0))
