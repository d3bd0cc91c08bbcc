import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.comparison.cups import write_demo_dataset
from examples.lerobot import LeRobotData
from examples.lerobot.write import Recording, write_dataset
from taskcond import TaskVocabulary


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo_dataset(tmp_path_factory.mktemp("demo") / "data")


def frames(root, **arguments):
    data = LeRobotData(root, **arguments)
    return [data[i] for i in range(len(data))]


def nearest_neighbor_accuracy(features, labels, seed=0):
    """How often the nearest of one half of the frames has the same label, for the other half."""
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


def test_the_pictures_of_the_demo_are_the_same_for_every_task(demo):
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


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_tasks_are_where_other_readers_look_for_them(tmp_path, version):
    x = np.zeros((3, 1), np.float32)
    recordings = [Recording(x, x, name) for name in ("wipe", "pour", "wipe")]
    root = write_dataset(tmp_path / "data", recordings, version=version)
    assert TaskVocabulary.from_lerobot(root).names == ("wipe", "pour")


def test_a_v3_file_holds_several_episodes_and_says_where_each_begins(tmp_path):
    x, pictures = np.zeros((6, 1)), np.zeros((6, 16, 16, 3), np.uint8)
    recordings = [Recording(x[:n], x[:n], "pour", {"cam": pictures[:n]}) for n in (4, 5, 6)]
    root = write_dataset(tmp_path / "data", recordings, version="v3.0", episodes_per_file=2, fps=10)
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in rows] == [0, 0, 1]
    assert [row["dataset_from_index"] for row in rows] == [0, 4, 9]
    assert [row["videos/cam/from_timestamp"] for row in rows] == [0, 0.4, 0]
    assert [row["videos/cam/to_timestamp"] for row in rows] == [0.4, 0.9, 0.6]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        write_demo_dataset(tmp_path)


def test_recordings_of_several_shapes_are_refused(tmp_path):
    x = np.zeros((3, 1))
    with pytest.raises(ValueError, match="same keys and sizes"):
        write_dataset(tmp_path / "a", [Recording(x, x, "a"), Recording(np.zeros((3, 2)), x, "a")])
    with pytest.raises(ValueError, match="one row per frame"):
        write_dataset(tmp_path / "b", [Recording(x, x, ["a", "b"])])


def test_info_counts_what_was_written(tmp_path):
    x = np.zeros((3, 1))
    root = write_dataset(tmp_path / "data", [Recording(x, x, "a"), Recording(x, x, "b")])
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (2, 6, 2)
