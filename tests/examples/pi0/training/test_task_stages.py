"""Stages of tasks in training: their numbers, their labels, and what is learned of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from examples.lerobot import LeRobotData
from examples.pi0.model import Pi0
from examples.pi0.policy import Policy, load_policy
from examples.pi0.training.configs import WeightLoaderConfig
from examples.pi0.training.log import read_metrics
from examples.pi0.training.loss import draw
from examples.pi0.training.plan import make_plan
from examples.pi0.training.task_stages import choose_stages, mean_lengths, stage_labels
from examples.pi0.training.weights import fresh_paths
from taskcond import NULL_TASK, StageVocabulary
from taskcond.checkpoint import load_params, open_checkpoint
from tests.support import as_untyped_code
from tests.support.pages import run as run_page
from tests.support.runs import run
from tests.support.tiny_pi0 import tiny

STAGES = {"frames_per_stage": 3, "stage_limits": (2, 4)}


@pytest.fixture(scope="module")
def told(make_config):
    config = make_config("with_stages", data=STAGES)
    assert run(config) == 6
    return config


def test_each_frame_has_the_stage_of_its_share_of_the_episode(dataset):
    data = LeRobotData(dataset, horizon=4)
    assert mean_lengths(data).tolist() == [8, 8, 8]
    counts = choose_stages(data, 3, (2, 4), {})
    assert counts == (2, 2, 2)
    labels = stage_labels(data, StageVocabulary(counts))
    np.testing.assert_array_equal(labels, [0, 0, 0, 0, 1, 1, 1, 1] * 9)
    assert stage_labels(data, StageVocabulary(())) is None


def test_tasks_of_a_checkpoint_keep_their_stages_and_new_ones_fit_its_table(dataset):
    data = LeRobotData(dataset, horizon=4)
    names = list(data.vocabulary)
    assert choose_stages(data, 1, (2, 8), {names[1]: 3}) == (3, 3, 3)
    assert choose_stages(data, 1, (5, 8), {names[0]: 2, names[1]: 4}) == (2, 4, 4)


def test_the_plan_and_the_batches_have_them(make_config):
    plan = make_plan(make_config("planned_stages", data=STAGES))
    assert plan.config.model.task_stages == (2, 2, 2)
    (batch,) = plan.data.val_batches(6, 1)
    expected = batch["frame_index"] * 2 // 8
    np.testing.assert_array_equal(batch["stage"], expected)


def test_a_frame_whose_task_is_dropped_has_no_stage(make_config):
    import jax

    config = make_config("dropped", data=STAGES)
    (batch,) = make_plan(config).data.val_batches(6, 1)
    drawn = draw(jax.random.key(0), batch, config.loss, dropout=0.5)
    dropped = np.asarray(drawn.observation.task_id) == NULL_TASK
    assert 0 < dropped.sum() < 6
    assert (np.asarray(drawn.observation.stage)[dropped] == NULL_TASK).all()
    known = np.asarray(drawn.stage_weight) > 0
    np.testing.assert_array_equal(known, ~dropped)
    np.testing.assert_allclose(drawn.stage_weight.sum(), 0.1, rtol=1e-6)


def test_training_moves_the_rows_of_the_stages_and_the_head(told):
    params = load_params(told.folder)
    assert (np.abs(params["task_stages"]["embedding"]).sum(-1) > 0).all()
    assert np.abs(params["task_stage_head"]["bias"]).sum() > 0
    about = open_checkpoint(told.folder).conditioning
    assert "task_stages/embedding" in about.more_tables
    accuracy = next(row for row in read_metrics(told.folder) if "val" in row)["val_stage_accuracy"]
    assert 0 <= accuracy["all"] <= 1
    assert accuracy.keys() == {"all", "reach cup 0", "reach cup 1", "reach cup 2"}


def test_a_second_stage_keeps_the_numbers_of_the_first(told, make_config):
    weights = WeightLoaderConfig(str(told.folder))
    data = {"tasks": ("reach cup 1",), **STAGES, "frames_per_stage": 1}
    config = make_config("stages_2", weight_loader=weights, data=data)
    plan = make_plan(config)
    assert plan.config.model.task_stages == (2, 2, 2)
    assert not fresh_paths(plan.blueprint, plan.checkpoint)


def test_a_loaded_policy_is_told_and_predicts_the_stage(told, dataset):
    policy = load_policy(told.folder)
    frame = dict(LeRobotData(dataset, horizon=4)[0])
    tracker = policy.tracker("reach cup 1")
    stage = tracker.update(policy.predict_stage(frame, "reach cup 1"))
    assert stage in (0, 1)
    first, second, none = (policy.act(frame, "reach cup 1", 0, s) for s in (0, 1, NULL_TASK))
    assert np.abs(first - second).max() > 0
    assert np.abs(first - none).max() > 0
    with pytest.raises(ValueError, match="stage outside its task"):
        policy.act(frame, "reach cup 1", 0, 2)


def test_the_page_of_training_shows_how_to_act_with_them(told, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs/pi0/debug"
    runs.mkdir(parents=True)
    (runs / "default").symlink_to(told.folder)
    data = LeRobotData(dataset, horizon=4)
    names = run_page("docs/howto/train.md", frames=[dict(data[i]) for i in range(2)])
    assert names["actions"].shape == (4, 4)  # the robot's
    assert names["stage"] in (0, 1)


def test_a_policy_without_stages_says_so():
    with as_untyped_code():  # which lets the transform be absent
        model = nnx.eval_shape(lambda: Pi0(tiny(num_tasks=3), rngs=nnx.Rngs(0)))
        policy = Policy(model, None, None, None, Path())
        for call in (lambda: policy.act({}, "pour", 0, 1), lambda: policy.tracker("pour")):
            with pytest.raises(ValueError, match="this policy has no stages"):
                call()


def test_bad_settings_are_named_together(make_config):
    config = make_config("bad_stages")
    data = dataclasses.replace(config.data, frames_per_stage=-1, stage_limits=(3, 2))
    with pytest.raises(ValueError, match=r"frames_per_stage=-1(.|\n)*stage_weight is -1"):
        dataclasses.replace(
            config, data=data, loss=dataclasses.replace(config.loss, stage_weight=-1.0)
        )
