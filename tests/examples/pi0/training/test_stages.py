"""Stage 2 begins with a run of stage 1, and a run goes on with what it began with."""

import dataclasses
import json

import numpy as np
import pytest

from examples.comparison.cups import write_demo_dataset
from examples.pi0.training.configs import WeightLoaderConfig
from examples.pi0.training.plan import make_plan
from taskcond.checkpoint import load_params, open_checkpoint
from tests.support.runs import content, run

TASK = "reach cup 1"
TABLE = "state/task_embeddings/embedding"


def table(folder):
    return np.asarray(load_params(folder)["task_embeddings"]["embedding"])


@pytest.fixture(scope="module")
def second_stage(finished, make_config):
    """The settings of a stage 2 on one task."""

    def make(exp_name, **changes):
        weights = WeightLoaderConfig(str(finished.folder))
        data = {"tasks": (TASK,), **changes.pop("data", {})}
        return make_config(exp_name, weight_loader=weights, data=data, **changes)

    return make


@pytest.fixture(scope="module")
def ended(second_stage):
    config = second_stage("stage_2", save_interval=2, max_to_keep=3)
    assert run(config) == 6
    return config


def test_the_rows_of_other_tasks_stay_bit_for_bit(finished, ended):
    before, after = table(finished.folder), table(ended.folder)
    about = open_checkpoint(ended.folder).conditioning
    row = about.vocabulary.id(TASK)
    np.testing.assert_array_equal(np.delete(before, row, 0), np.delete(after, row, 0))
    assert not np.array_equal(before[row], after[row])
    earlier = open_checkpoint(finished.folder).conditioning.frames_seen
    seen = np.subtract(about.frames_seen, earlier)
    assert seen[row] == seen.sum() == 24


def test_the_statistics_and_the_tokenizer_are_those_of_stage_1(finished, ended):
    for name in ("norm_stats.json", "tokenizer.model"):
        old, new = (c.folder / "6/assets" / name for c in (finished, ended))
        assert old.read_bytes() == new.read_bytes()


def test_a_resumed_stage_2_trains_the_same_row(ended, second_stage):
    config = second_stage("stage_2_resumed", save_interval=2, max_to_keep=3, ema_decay=0.9)
    run(config)
    whole = content(config.folder, 6)
    for name in ("6", "4"):
        (config.folder / name).rename(config.folder.parent / f"{name}_of_{config.exp_name}")
    assert run(dataclasses.replace(config, resume=True)) == 6
    again = content(config.folder, 6)
    assert whole.keys() == again.keys()
    for path, value in whole.items():
        np.testing.assert_array_equal(value, again[path], err_msg=path)


def test_another_normalization_is_refused_with_all_that_differs(second_stage):
    config = second_stage("other", data={"norm": "zscore", "min_range": 0.5})
    with pytest.raises(ValueError, match=r"data.norm is quantile.*\n.*data.min_range is 0.01"):
        make_plan(config)
    config = second_stage("other", data={"norm": "zscore", "stats": "dataset"})
    assert make_plan(config).data.transform.mode == "zscore"


def test_statistics_of_nobody_are_refused(make_config):
    with pytest.raises(ValueError, match="pass --data.stats dataset|Pass --data.stats dataset"):
        make_plan(make_config("alone", data={"stats": "checkpoint"}))


def test_a_run_does_not_go_on_with_other_frames(finished, dataset, tmp_path):
    other = write_demo_dataset(
        tmp_path / "data", num_tasks=3, episodes_per_task=3, frames=7, video=False
    )
    file = finished.folder / "train_config.json"
    before = file.read_text()
    file.write_text(before.replace(json.dumps(str(dataset)), json.dumps(str(other))))
    try:
        data = dataclasses.replace(finished.data, root=(str(other),))
        with pytest.raises(ValueError, match="the run began with 48 frames, and the dataset now"):
            make_plan(dataclasses.replace(finished, resume=True, data=data))
    finally:
        file.write_text(before)
