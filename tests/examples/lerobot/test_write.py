"""Written datasets have the layout that other readers expect."""

import json

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.lerobot import Recording, write_dataset
from taskcond import TaskVocabulary


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_tasks_are_where_other_readers_look_for_them(tmp_path, version):
    x = np.zeros((3, 1), np.float32)
    recordings = [Recording(x, x, name) for name in ("wipe", "pour", "wipe")]
    root = write_dataset(tmp_path / "data", recordings, version=version)
    assert TaskVocabulary.from_lerobot(root).names == ("wipe", "pour")


def test_the_names_of_tasks_are_the_index_of_the_frame_that_pandas_reads(tmp_path):
    x = np.zeros((3, 1), np.float32)
    write_dataset(tmp_path / "data", [Recording(x, x, "wipe")], version="v3.0")
    about = pq.read_schema(tmp_path / "data/meta/tasks.parquet").pandas_metadata
    (index,) = about["index_columns"]
    (column,) = (each for each in about["columns"] if each["field_name"] == index)
    assert (column["name"], column["pandas_type"]) == (None, "unicode")
    rows = pq.read_table(tmp_path / "data/meta/tasks.parquet").to_pylist()
    assert rows == [{"task_index": 0, index: "wipe"}]


def test_a_v3_file_holds_several_episodes_and_says_where_each_begins(tmp_path):
    x, images = np.zeros((6, 1)), np.zeros((6, 16, 16, 3), np.uint8)
    recordings = [Recording(x[:n], x[:n], "pour", {"cam": images[:n]}) for n in (4, 5, 6)]
    root = write_dataset(tmp_path / "data", recordings, version="v3.0", episodes_per_file=2, fps=10)
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in rows] == [0, 0, 1]
    assert [row["dataset_from_index"] for row in rows] == [0, 4, 9]
    assert [row["videos/cam/from_timestamp"] for row in rows] == [0, 0.4, 0]
    assert [row["videos/cam/to_timestamp"] for row in rows] == [0.4, 0.9, 0.6]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        write_dataset(tmp_path, [])


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


def test_key_frames_come_as_often_as_asked(tmp_path):
    x, images = np.zeros((12, 1), np.float32), np.zeros((12, 32, 32, 3), np.uint8)
    recording = Recording(x, x, "wipe", {"top": images})
    root = write_dataset(tmp_path / "data", [recording], keyframe_every=3)
    (path,) = root.rglob("*.mp4")
    with av.open(str(path)) as container:
        keys = [frame.key_frame for frame in container.decode(video=0)]
    assert [i for i, is_key in enumerate(keys) if is_key] == [0, 3, 6, 9]


def test_pictures_of_an_odd_size_are_refused_with_the_reason(tmp_path):
    x, images = np.zeros((3, 2), np.float32), np.zeros((3, 5, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="5 x 4 pixels, but video encoders need even numbers"):
        write_dataset(tmp_path / "data", [Recording(x, x, "pour", {"cam": images})])
