"""An episode in another file than the metadata names is found, and warned of."""

import numpy as np
import pytest

from examples.lerobot import LeRobotData, write_dataset
from tests.support.lerobot import edit_episodes, given, recordings, refusal


@pytest.fixture
def v3_root(tmp_path):
    return write_dataset(tmp_path / "data", recordings(), version="v3.0", episodes_per_file=1)


def name_file(root, episode, number):
    def change(row):
        if row["episode_index"] == episode:
            row["data/file_index"] = number

    edit_episodes(root, change)


@pytest.mark.parametrize("number", [2, 9])
def test_an_episode_with_a_stale_file_number_is_found(v3_root, number):
    name_file(v3_root, 3, number)
    data = LeRobotData(v3_root)
    states = np.concatenate([recording.state for recording in recordings()])
    np.testing.assert_array_equal([data[i]["state"] for i in range(len(data))], states)
    assert (
        "the file numbers of 1 episodes in meta/episodes are wrong; their data was found by its "
        "episode_index: episode 3 in data/chunk-000/file-003.parquet, not in "
        f"data/chunk-000/file-00{number}.parquet"
    ) in data.report.warnings


def test_an_episode_that_is_nowhere_is_refused(v3_root):
    name_file(v3_root, 3, 2)
    (v3_root / "data/chunk-000/file-003.parquet").unlink()
    assert "file-002.parquet: 0 frames of episode 3" in refusal(v3_root)


def test_the_given_stale_dataset_is_read():
    data = LeRobotData(given("stale_file"), state="action", cameras=[])
    first = [
        100 * int(f["episode_index"]) + int(f["frame_index"])
        for f in map(data.__getitem__, range(98))
    ]
    assert [float(data[i]["state"][0]) for i in range(98)] == first
    assert any("episode 3 in data/chunk-000/file-003.parquet" in w for w in data.report.warnings)
