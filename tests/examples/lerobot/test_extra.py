"""Frames with the time and with further columns of a dataset, in the types that are stored."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.lerobot import DatasetError, LeRobotData, make_loader, mix, write_dataset
from tests.support.lerobot import (
    VERSIONS,
    add_columns,
    edit_column,
    episode_file,
    given,
    recordings,
    refusal,
    replace_column,
)


def reward(table):
    """A number that is different in each row of a file."""
    return np.arange(len(table), dtype=np.float32) + 100 * table["episode_index"][0].as_py()


def force(table):
    return pa.FixedSizeListArray.from_arrays(np.arange(3 * len(table), dtype=np.float64), 3)


def pose(table):
    return [[[row, 1], [2, 3]] for row in range(len(table))]


def note(table):
    return [f"row {row}" for row in range(len(table))]


COLUMNS = {"reward": reward, "force": force, "pose": pose, "note": note}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_time_of_a_frame_is_the_stored_one(tmp_path, version):
    root = write_dataset(tmp_path / "data", recordings(), version=version, fps=20)
    data = LeRobotData(root)
    times = [data[i]["timestamp"] for i in range(7 + 5)]
    assert {time.dtype for time in times} == {np.dtype(np.float32)}
    expected = np.array([*np.arange(7) / 20, *np.arange(5) / 20], np.float32)
    np.testing.assert_array_equal(times, expected)


def test_the_time_is_not_computed_where_one_is_stored(root):
    edit_column(episode_file(root, 0), "timestamp", lambda values: [v + 0.125 for v in values])
    assert LeRobotData(root)[0]["timestamp"] == np.float32(0.125)


def test_without_a_stored_time_the_frame_gives_it(root):
    for episode in range(5):
        path = episode_file(root, episode)
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["timestamp"]), path)
    assert LeRobotData(root)[3]["timestamp"] == np.float32(3 / 20)


@pytest.mark.parametrize(
    ("version", "preflight"), [*((version, True) for version in VERSIONS), ("v3.0", False)]
)
def test_extra_columns_keep_their_names_types_and_values(tmp_path, version, preflight):
    root = write_dataset(tmp_path / "data", recordings(), version=version, episodes_per_file=1)
    add_columns(root, **COLUMNS)
    item = LeRobotData(root, extra=list(COLUMNS), preflight=preflight)[7 + 3]
    assert item["reward"] == np.float32(103)
    assert item["reward"].dtype == np.float32
    np.testing.assert_array_equal(item["force"], [9.0, 10.0, 11.0])
    assert item["force"].dtype == np.float64
    np.testing.assert_array_equal(item["pose"], [[3, 1], [2, 3]])
    assert item["pose"].dtype == np.int64
    assert item["note"] == "row 3"


def test_without_extra_no_frame_has_more_keys(root):
    add_columns(root, **COLUMNS)
    assert LeRobotData(root)[0].keys() == {
        *("state", "actions", "action_is_pad", "images", "task", "task_index", "task_id"),
        *("episode_index", "frame_index", "timestamp"),
    }


def test_changing_an_extra_array_does_not_change_the_next_reading(root):
    add_columns(root, force=force)
    data = LeRobotData(root, extra="force")
    data[1]["force"][:] = 99
    assert data[1]["force"].tolist() == [3, 4, 5]


def test_a_loader_batches_extra_columns(root):
    add_columns(root, **COLUMNS)
    data = LeRobotData(root, extra=list(COLUMNS))
    loader = make_loader(data, batch_size=7, shuffle=False, normalize_by="quantile")
    batch = next(iter(loader))
    assert batch["reward"].tolist() == list(range(7))
    assert batch["force"].shape == (7, 3)
    assert batch["pose"].shape == (7, 2, 2)
    assert batch["note"].tolist() == [f"row {i}" for i in range(7)]
    assert batch["timestamp"].dtype == np.float32


def test_an_unknown_column_is_refused_with_the_nearest_and_all(root):
    add_columns(root, reward=reward, note=note)
    with pytest.raises(ValueError, match="no extra columns") as error:
        LeRobotData(root, extra=["rewards", "note"])
    assert str(error.value) == (
        "The dataset has no extra columns ['rewards']. Did you mean one of ['reward']? Its columns "
        "are ['action', 'index', 'note', 'observation.state', 'reward']. Correct extra=[...]."
    )


def test_a_column_that_each_frame_has_is_refused(root):
    with pytest.raises(ValueError, match=r"extra names \['timestamp', 'task'\], but each frame"):
        LeRobotData(root, extra=["timestamp", "index", "task"])


def test_a_column_that_one_file_lacks_is_refused(root):
    add_columns(root, reward=reward)
    path = episode_file(root, 2)
    pq.write_table(pq.read_table(path).drop_columns(["reward"]), path)
    message = refusal(root, extra=["reward"])
    assert "missing column (1):\n    data/chunk-000/episode_000002.parquet: ['reward']" in message


def test_all_columns_that_cannot_be_batched_are_refused_at_once(root):
    add_columns(root, reward=reward, force=force, note=note)
    replace_column(episode_file(root, 1), "reward", lambda count: np.arange(count))
    replace_column(episode_file(root, 2), "force", lambda count: [[1.0, 2.0]] * count)
    edit_column(episode_file(root, 3), "note", lambda values: [None, None, *values[2:]])
    message = refusal(root, extra=["reward", "force", "note"])
    assert "reward is float32 [] in episode 0, int64 [] in episode 1" in message
    assert "force is float64 [3] in episode 0, float64 [2] in episode 2" in message
    assert (
        "data/chunk-000/episode_000003.parquet: episode 3: note is a column of string and lacks 2 "
        "of 9 values. Only floats may be missing."
    ) in message


def test_without_preflight_an_unsuitable_column_is_refused_on_reading(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(), version="v3.0", episodes_per_file=1)
    add_columns(root, note=lambda table: [None] * (len(table) - 1) + ["end"])
    data = LeRobotData(root, extra="note", preflight=False)
    with pytest.raises(DatasetError, match=r"file-000.parquet: episode 0: note .* lacks 6 of 7"):
        data[0]


def test_mixing_needs_the_same_extra_columns(tmp_path):
    roots = [write_dataset(tmp_path / name, recordings()) for name in ("a", "b", "c")]
    add_columns(roots[0], x=reward)
    add_columns(roots[1], x=reward)
    add_columns(roots[2], x=force)
    first, second, other = (LeRobotData(root, extra="x") for root in roots)
    mixed = mix([first, second])
    assert [mixed[i]["x"] for i in (3, 35 + 4)] == [3, 4]
    with pytest.raises(ValueError, match=r"'extra': {'x': \('float32', \(\)\)}(.|\n)*float64"):
        mix([first, other])
    with pytest.raises(ValueError, match=r"'extra': {}"):
        mix([first, LeRobotData(roots[1])])


def test_annotations_of_the_given_groot_dataset_are_read():
    key = "annotation.human.action.task_description"
    data = LeRobotData(given("groot"), cameras=[], task_key=key, extra=key)
    for i in range(0, len(data), 7):
        assert np.ravel(data[i][key]).tolist() == [data[i]["task_index"]]
