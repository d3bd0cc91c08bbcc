"""A finished run as a policy: measured on a dataset, and asked for actions."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from examples.lerobot import LeRobotData
from examples.pi0.evaluate import Args, main, measure
from examples.pi0.policy import load_policy


@pytest.fixture(scope="module")
def result(finished, dataset):
    return measure(Args(str(finished.folder), str(dataset), frames=12, batch_size=4))


def test_every_task_has_its_loss_and_error(result, dataset):
    tasks = list(LeRobotData(dataset, horizon=1).vocabulary)
    for values in (result.losses, result.action_errors):
        assert list(values) == ["all", *tasks]
        assert values["all"] == pytest.approx(np.mean([values[task] for task in tasks]))
    assert sum(result.frames.values()) == 12
    assert result.diagnosis.measurements.confusion.counts.sum() == 12
    assert result.prompts["right"] == pytest.approx(result.losses["all"])
    assert result.prompts["wrong"] != result.prompts["right"]


def test_the_step_and_its_parameters_are_the_run(finished, dataset, result):
    for path in (finished.folder / "6", finished.folder / "6/params"):
        again = measure(Args(str(path), str(dataset), frames=12, batch_size=4))
        assert again.losses == result.losses


def test_numbers_and_picture_are_written(finished, dataset, tmp_path, capsys):
    args = Args(str(finished.folder), str(dataset), frames=8, batch_size=4, held_out=True)
    args = dataclasses.replace(args, json=tmp_path / "a.json", plot=tmp_path / "a.png")
    main(args)
    printed = capsys.readouterr().out
    assert "action error" in printed
    assert "with the prompt of another task" in printed
    found = json.loads(args.json.read_text())
    assert {"losses", "action_errors", "frames", "diagnosis", "prompts"} == set(found)
    assert args.plot.stat().st_size > 1000


def test_parameters_without_what_belongs_to_them_are_refused(finished, dataset, tmp_path):
    shutil.copytree(finished.folder / "6/params", tmp_path / "params")
    with pytest.raises(FileNotFoundError, match="Copy that folder, too"):
        measure(Args(str(tmp_path / "params"), str(dataset)))


def test_a_policy_acts_by_the_name_of_its_task(finished, dataset):
    policy = load_policy(finished.folder)
    frame = LeRobotData(dataset, horizon=1)[0]
    chunks = [policy.act(frame, task, seed=1) for task in (*policy.vocabulary, None)]
    assert chunks[0].shape == (finished.model.action_horizon, frame["actions"].shape[-1])
    assert len({chunk.tobytes() for chunk in chunks}) == len(chunks)
    with pytest.raises(KeyError, match="did you mean"):
        policy.act(frame, "reach cup", seed=1)
