"""Pi0: the published parameters, tasks in training and sampling, and what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import taskcond
from examples.pi0.model import Pi0, Pi0Config
from examples.pi0.sampling import integrate
from taskcond import NULL_TASK, merge_into
from taskcond.trees import flatten, to_dict
from tests.support import FIXTURES
from tests.support.golden import load_golden
from tests.support.tiny_pi0 import TABLE, chunk, close, observe, sample, tiny, velocity


@pytest.mark.parametrize(
    ("tree", "pi05", "num_tasks"), [("pi0", False, 0), ("pi05", True, 0), ("pi05_b1k", True, 50)]
)
def test_full_size_parameters_are_the_published_ones(tree, pi05, num_tasks):
    wanted = json.loads((FIXTURES / f"param_trees/{tree}.json").read_text())
    config = Pi0Config(pi05=pi05, num_tasks=num_tasks)
    model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))
    ours = {
        path: {"shape": list(x.shape), "dtype": str(x.dtype)}
        for path, x in flatten(to_dict(nnx.state(model, nnx.Param))).items()
    }
    assert ours == wanted


@pytest.mark.parametrize("layout", ["released/params", "trained/1000/params"])
def test_both_layouts_of_a_checkpoint_load(layout):
    source = ocp.PyTreeCheckpointer().restore(FIXTURES / "checkpoints/pi05_tiny" / layout)
    golden = load_golden("pi05_f32")
    model = Pi0(golden.config(), rngs=nnx.Rngs(1))
    report = merge_into(model, source)
    assert not report.kept
    ours = flatten(to_dict(nnx.state(model, nnx.Param)))
    assert set(ours) == set(golden.params)
    for path, x in ours.items():
        np.testing.assert_array_equal(x, golden.params[path])


def test_loading_into_a_model_of_fifty_tasks_keeps_the_table_alone_and_acts_as_before():
    source = ocp.PyTreeCheckpointer().restore(FIXTURES / "checkpoints/pi05_tiny/released/params")
    golden = load_golden("pi05_f32")
    before = Pi0(golden.config(), rngs=nnx.Rngs(1))
    config = golden.config(num_tasks=50, task_embedding_init="zeros")
    after = Pi0(config, rngs=nnx.Rngs(2))
    merge_into(before, source)
    assert merge_into(after, source).kept == [TABLE]
    observation = observe(config)
    tasks = observation.replace(task_id=np.array([0, 49]))
    np.testing.assert_array_equal(velocity(after, tasks), velocity(before, observation))
    close(sample(after, tasks), sample(before, observation))  # there, the base has one row for all


def test_null_rows_are_those_of_a_model_without_tasks(policy):
    config = dataclasses.replace(policy.config, num_tasks=0)
    without = Pi0(config, rngs=nnx.Rngs(5))
    merge_into(without, nnx.state(policy, nnx.Param), drop=(TABLE,))
    observation = observe(config)
    with_null = sample(policy, observation.replace(task_id=np.array([NULL_TASK, 2])))
    base = sample(without, observation)
    close(with_null[0], base[0])
    assert np.abs(with_null[1] - base[1]).max() > 1e-3


def test_every_row_has_its_own_task(policy):
    observation = observe(policy.config, (3,))
    mixed = sample(policy, observation.replace(task_id=np.array([4, 0, 6])))
    for row, task in enumerate((4, 0, 6)):
        same = sample(policy, observation.replace(task_id=np.full(3, task)))
        close(mixed[row], same[row])


def test_only_the_rows_of_the_batch_get_a_gradient(policy):
    observation = observe(policy.config, task_id=np.array([1, 5]))
    graph, state = nnx.split(policy)

    def loss(state):
        model = nnx.merge(graph, state)
        actions = chunk(policy.config)
        return model.compute_loss(jax.random.key(0), observation, actions).mean()

    gradients = flatten(to_dict(jax.jit(jax.grad(loss))(state)))
    assert np.flatnonzero(np.abs(gradients[TABLE]).max(-1)).tolist() == [1, 5]


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_the_loss_has_the_leading_axes_and_the_horizon(policy, batch):
    observation = observe(policy.config, batch, task_id=np.zeros(batch, np.int32))
    graph, state = nnx.split(policy)

    @jax.jit
    def run(state, observation, actions):
        model = nnx.merge(graph, state)
        return (
            model.compute_loss(jax.random.key(0), observation, actions),
            model.compute_loss(jax.random.key(0), observation, actions, train=True),
            model.velocity(observation, actions, jnp.full(batch, 0.5)),
        )

    actions = chunk(policy.config, batch)
    loss, training, velocity = run(state, observation, actions)
    assert loss.shape == training.shape == (*batch, policy.config.action_horizon)
    assert velocity.shape == actions.shape
    np.testing.assert_array_equal(loss, run(state, observation, actions)[0])
    assert not np.array_equal(loss, training)  # images are augmented


def test_an_empty_batch_works(policy):
    observation = observe(policy.config, (0,), task_id=np.zeros(0, np.int32))
    shape = chunk(policy.config, (0,)).shape
    assert sample(policy, observation).shape == shape
    loss = policy.compute_loss(jax.random.key(0), observation, np.zeros(shape, np.float32))
    assert loss.shape == shape[:-1]


def sample_step_by_step(model, observation):
    """Samples in ten steps, each of which computes its own modulations."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, observation, noise):
        model = nnx.merge(graph, state)
        denoise = model.denoiser(observation)
        task_id = observation.task_id
        return integrate(
            lambda x, step, time: denoise(x, model.condition_at(time, task_id)), noise, 10
        )

    return np.asarray(run(state, observation, chunk(model.config)))


def test_precomputed_modulations_change_nothing(policy):
    observation = observe(policy.config, task_id=np.array([2, NULL_TASK]))
    plain = sample_step_by_step(policy, observation)
    close(sample(policy, observation), plain)
    for task_id in (np.array([2, NULL_TASK]), jnp.array([2, NULL_TASK])):
        kept = policy.modulations(task_id, num_steps=10)
        close(sample(policy, observation.replace(task_id=None), modulations=kept), plain)


def test_modulations_of_one_task_serve_any_batch(policy):
    kept = policy.modulations(4, num_steps=3)
    for rows in (1, 3):
        observation = observe(policy.config, (rows,), task_id=np.full(rows, 4))
        wanted = sample(policy, observation, num_steps=3)
        observation = observation.replace(task_id=None)
        close(sample(policy, observation, num_steps=3, modulations=kept), wanted)


def test_a_traced_number_of_steps_is_the_static_one(policy):
    observation = observe(policy.config, task_id=np.array([2, 3]))
    graph, state = nnx.split(policy)
    noise = chunk(policy.config)

    @jax.jit
    def traced(state, num_steps):
        model = nnx.merge(graph, state)
        return model.sample_actions(None, observation, num_steps=num_steps, noise=noise)

    for num_steps in (1, 7):
        close(traced(state, num_steps), sample(policy, observation, num_steps=num_steps))
    assert np.isnan(traced(state, 0)).all()


def test_a_key_draws_the_noise(policy):
    observation = observe(policy.config, task_id=np.array([2, 3]))
    shape = chunk(policy.config).shape
    graph, state = nnx.split(policy)

    @jax.jit
    def draw(state, seed):
        model = nnx.merge(graph, state)
        return model.sample_actions(jax.random.key(seed), observation, num_steps=2)

    assert draw(state, 0).shape == shape
    np.testing.assert_array_equal(draw(state, 0), draw(state, 0))
    assert not np.array_equal(draw(state, 0), draw(state, 1))


def test_a_masked_camera_and_padding_are_not_seen(policy):
    observation = observe(policy.config, task_id=np.array([0, 1]))
    key = policy.config.image_keys[1]
    masks = {**observation.image_masks, key: np.zeros(2, bool)}
    observation = observation.replace(image_masks=masks)
    tokens = observation.tokenized_prompt.copy()
    tokens[..., -2:] = 63  # where the mask is false
    other = observation.replace(
        images={**observation.images, key: -observation.images[key]}, tokenized_prompt=tokens
    )
    close(sample(policy, other, num_steps=2), sample(policy, observation, num_steps=2))


def test_the_fused_attention_agrees_in_bfloat16_too(policy):
    configs = [
        dataclasses.replace(policy.config, attention=attention, dtype="bfloat16")
        for attention in ("plain", "xla")
    ]
    observation = observe(policy.config, task_id=np.array([0, 1]))
    samples = []
    for config in configs:
        model = Pi0(config, rngs=nnx.Rngs(0))
        merge_into(model, nnx.state(policy, nnx.Param), keep=())
        samples.append(sample(model, observation, num_steps=4))
    close(samples[0], samples[1], 3e-2)


BAD_SAMPLING = {
    "no steps": ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
    "half steps": ({"num_steps": 1.5}, TypeError, "num_steps must be an integer, got 1.5"),
    "a bool": ({"num_steps": True}, TypeError, "num_steps must be an integer, got True"),
    "no noise and no key": ({"noise": None}, ValueError, "pass a key as rng, or the noise"),
    "noise of another shape": (
        {"noise": np.zeros((2, 3, 5), np.float32)},
        ValueError,
        r"noise has shape \(2, 3, 5\), expected \(2, 4, 5\)",
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLING)
def test_bad_arguments_of_sampling_are_refused(policy, case):
    kwargs, error, message = BAD_SAMPLING[case]
    observation = observe(policy.config, task_id=np.array([0, 1]))
    with pytest.raises(error, match=message):
        policy.sample_actions(None, observation, **{"noise": chunk(policy.config), **kwargs})


def test_kept_modulations_must_fit(policy):
    observation = observe(policy.config, (3,), task_id=np.array([0, 1, 2]))
    kept = policy.modulations(np.array([0, 1]), num_steps=5)
    noise = chunk(policy.config, (3,))

    def run(observation, num_steps):
        policy.sample_actions(None, observation, noise=noise, num_steps=num_steps, modulations=kept)

    with pytest.raises(ValueError, match="have their task already"):
        run(observation, 5)
    with pytest.raises(ValueError, match="are those of 5 steps, but num_steps=10"):
        run(observation.replace(task_id=None), 10)
    with pytest.raises(ValueError, match="are those of 2 tasks, but there are 3"):
        run(observation.replace(task_id=None), 5)
    with pytest.raises(ValueError, match="task_id out of range"):
        policy.modulations(7, num_steps=5)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        policy.modulations(0, num_steps=0)


def test_kept_modulations_of_the_other_model_are_refused(policy):
    other = Pi0(tiny(num_tasks=3, pi05=not policy.config.pi05), rngs=nnx.Rngs(0))
    names = ("π0", "π0.5") if policy.config.pi05 else ("π0.5", "π0")
    message = "modulations are those of {}, but the model is {}: make them".format(*names)
    with pytest.raises(ValueError, match=message):
        policy.sample_actions(
            None,
            observe(policy.config),
            noise=chunk(policy.config),
            num_steps=2,
            modulations=other.modulations(0, num_steps=2),
        )


def test_negative_num_tasks_is_refused():
    with pytest.raises(ValueError, match="num_tasks"):
        Pi0(tiny(num_tasks=-1), rngs=nnx.Rngs(0))


def test_ids_out_of_range_under_jit_give_nan_in_their_row_alone(policy):
    result = velocity(policy, observe(policy.config, task_id=jnp.array([0, 7])))
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1]).all()


def test_task_params_select_the_table():
    model = Pi0(tiny(num_tasks=3), rngs=nnx.Rngs(0))
    assert set(flatten(to_dict(nnx.state(model, taskcond.TaskParam)))) == {TABLE}
