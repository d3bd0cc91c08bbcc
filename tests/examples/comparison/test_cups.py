"""The generated dataset: its tasks look alike, and only the actions tell them apart."""

import time

import numpy as np
import pytest

from examples.comparison.cups import write_demo_dataset
from examples.lerobot import LeRobotData


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "data")


def frames(root, **arguments):
    data = LeRobotData(root, **arguments)
    return [data[i] for i in range(len(data))]


def nearest_neighbor_accuracy(features, labels, seed=0):
    """Returns how often the nearest frame of the other half has the same label."""
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    train = np.random.default_rng(seed).random(len(features)) < 0.5
    distance = ((features[~train][:, None] - features[train][None]) ** 2).sum(-1)
    return (labels[train][distance.argmin(1)] == labels[~train]).mean()


def test_the_demo_has_eight_tasks_with_the_same_number_of_frames(demo):
    data = LeRobotData(demo, cameras=[])
    assert len(data.vocabulary) == 8
    assert len(set(data.task_frames.values())) == 1


def test_a_state_of_the_demo_does_not_tell_the_task_but_an_action_does(demo):
    items = frames(demo, cameras=[], horizon=1)
    tasks = np.array([item["task_id"] for item in items])
    states = np.stack([item["state"] for item in items])
    actions = np.stack([item["actions"][0] for item in items])
    assert nearest_neighbor_accuracy(states, tasks) < 0.22  # chance is 0.125
    assert nearest_neighbor_accuracy(actions, tasks) > 0.8


def test_the_images_of_the_demo_are_the_same_for_every_task(demo):
    data = LeRobotData(demo)
    camera = data.cameras[0]
    first, last = data[5], data[7 * 24 + 5]  # the same start, the first and the last task
    assert first["task_id"] != last["task_id"]
    np.testing.assert_array_equal(first["images"][camera], last["images"][camera])


def test_the_demo_is_the_same_for_the_same_seed(tmp_path):
    first, again, other = (
        LeRobotData(write_demo_dataset(tmp_path / name, seed=seed, video=False))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    np.testing.assert_array_equal(first[99]["actions"], again[99]["actions"])
    assert not np.array_equal(first[99]["actions"], other[99]["actions"])


def test_the_demo_is_written_within_seconds(tmp_path):
    begin = time.perf_counter()
    write_demo_dataset(tmp_path / "data", video=False)
    assert time.perf_counter() - begin < 5
