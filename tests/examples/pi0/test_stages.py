"""Stages of tasks in π0 and π0.5: the model is told them, and predicts them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.pi0.model import Pi0, Pi0Config
from taskcond import NULL_TASK, TaskParam, merge_into
from tests.support.tiny_pi0 import chunk, close, observe, sample, shaken, tiny, velocity

STAGES = (2, 4, 3)
IDS, STAGE = np.array([1, 2]), np.array([3, NULL_TASK])


def make(**changes):
    config = tiny(num_tasks=3, task_dropout_rate=0.1, **changes)
    return shaken(Pi0(config, rngs=nnx.Rngs(0)))


def trained(**changes):
    """A model whose task parameters are not those of the start."""
    model = make(task_stages=STAGES, **changes)
    state = nnx.state(model, TaskParam)
    nnx.update(
        model, jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), state)
    )
    return model


@pytest.mark.parametrize("pi05", [True, False])
def test_a_model_with_stages_starts_as_the_one_without(pi05):
    plain, model = make(pi05=pi05), make(pi05=pi05, task_stages=STAGES)
    merge_into(model, nnx.state(plain, nnx.Param), keep=["task_stage.*"])
    seen = observe(plain.config, task_id=IDS)
    for_stages = seen.replace(stage=STAGE)
    np.testing.assert_array_equal(velocity(plain, seen), velocity(model, for_stages))


@pytest.mark.parametrize("pi05", [True, False])
def test_a_mixed_batch_equals_one_stage_at_a_time(pi05):
    model = trained(pi05=pi05)
    seen = observe(model.config, task_id=IDS).replace(stage=STAGE)
    both = velocity(model, seen)
    for row in range(2):
        one = jax.tree.map(lambda leaf, row=row: np.stack([leaf[row]] * 2), seen)
        close(velocity(model, one)[row], both[row])
    other = velocity(model, seen.replace(stage=np.array([0, NULL_TASK])))
    assert np.abs(other[0] - both[0]).max() > 1e-3
    np.testing.assert_array_equal(other[1], both[1])


def test_without_stages_in_the_observation_none_is_told():
    model = trained()
    seen = observe(model.config, task_id=IDS)
    none = seen.replace(stage=np.array([NULL_TASK] * 2))
    np.testing.assert_array_equal(velocity(model, seen), velocity(model, none))


def test_sampling_is_told_the_stage_with_guidance_and_with_kept_modulations():
    model, noise = trained(), chunk(tiny())
    seen = observe(model.config, task_id=IDS).replace(stage=STAGE)
    told = sample(model, seen, noise=noise)
    assert np.abs(told[0] - sample(model, seen.replace(stage=None), noise=noise)[0]).max() > 1e-3
    kept = model.modulations(IDS, stage=STAGE, num_steps=10)
    without = seen.replace(task_id=None, stage=None)
    close(sample(model, without, noise=noise, modulations=kept), told)
    guided = sample(model, seen, noise=noise, guidance=1.5)
    none = sample(model, seen, noise=noise, guidance=0.0)
    close(none, sample(model, seen.replace(task_id=np.array([-1, -1])), noise=noise))
    assert np.abs(guided - told).max() > 1e-3
    with pytest.raises(ValueError, match="task_id=None, stage=None"):
        model.sample_actions(None, seen.replace(task_id=None), noise=noise, modulations=kept)


def test_the_prediction_reads_images_and_prompt_and_not_the_stage():
    model = trained()
    seen = observe(model.config, task_id=IDS)
    logits = np.asarray(model.stage_logits(seen.replace(stage=STAGE)))
    np.testing.assert_array_equal(logits, model.stage_logits(seen))
    assert np.isfinite(logits).sum(1).tolist() == [4, 3]
    images = {key: -image for key, image in seen.images.items()}
    assert np.abs(model.stage_logits(seen.replace(images=images))[0] - logits[0]).max() > 1e-4


@pytest.mark.parametrize("frozen_prefix", [False, True])
def test_the_loss_of_the_prediction_is_its_cross_entropy(frozen_prefix):
    model = trained()
    seen = observe(model.config, task_id=IDS).replace(stage=STAGE)
    x, time = chunk(model.config), jnp.array([0.3, 0.8])
    errors, loss = model.errors_and_stage_loss(
        seen, x, jnp.asarray(chunk(model.config, seed=2)), time, frozen_prefix=frozen_prefix
    )
    expected = -jax.nn.log_softmax(model.stage_logits(seen))[0, 3]
    np.testing.assert_allclose(loss, [expected, 0], rtol=1e-4)
    assert errors.shape == x.shape


def test_bad_stages_are_errors():
    with pytest.raises(ValueError, match="task_stages has 2 numbers, but num_tasks=3"):
        tiny(num_tasks=3, task_stages=(2, 4))
    with pytest.raises(ValueError, match="task_stages must be at least 1"):
        tiny(num_tasks=1, task_stages=(0,))
    model = trained()
    seen = observe(model.config, task_id=IDS)
    with pytest.raises(ValueError, match=r"stage has shape \(1,\), expected \(2,\)"):
        model.stage_logits(seen.replace(stage=np.array([1])))
    with pytest.raises(ValueError, match="stage outside its task"):
        model.modulations(IDS, stage=np.array([4, 0]))
    assert np.isnan(velocity(model, seen.replace(stage=np.array([4, 0])))[0]).all()
    with pytest.raises(ValueError, match="this model has no stages"):
        make().stage_logits(seen)


def test_a_config_with_stages_is_read_from_json():
    config = Pi0Config.small(num_tasks=2, task_stages=(5, 6))
    values = dataclasses.asdict(config)
    values["task_stages"] = list(values["task_stages"])
    assert Pi0Config.from_dict(values) == config
