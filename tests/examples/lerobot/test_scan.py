"""The preflight: files that must not be trained on are refused, with the file and the fix."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.lerobot import write_dataset
from tests.support.lerobot import (
    VERSIONS,
    edit_column,
    episode_file,
    recordings,
    refusal,
    replace_column,
)


@pytest.mark.parametrize("keep", [0, 3, 200, -100])
def test_a_truncated_parquet_file_is_named(root, keep):
    path = episode_file(root, 1)
    path.write_bytes(path.read_bytes()[:keep])
    message = refusal(root)
    assert "unreadable file (1)" in message
    assert "data/chunk-000/episode_000001.parquet" in message


def test_a_truncated_parquet_file_of_v3_is_named(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(), version="v3.0", episodes_per_file=2)
    path = root / "data/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    assert "data/chunk-000/file-001.parquet" in refusal(root)


def test_a_missing_column_is_named_with_those_that_are_there(root):
    message = refusal(root, state="observation.joints")
    assert "['observation.joints']; its columns are ['action', 'episode_index'" in message


def test_a_frame_count_that_differs_from_the_metadata_is_refused(root):
    path = root / "meta/episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 5', '"length": 9'))
    message = refusal(root)
    assert "episode_000001.parquet: 5 frames of episode 1, but its length" in message
    assert "is 9" in message


def test_frames_of_another_episode_are_refused(root):
    edit_column(episode_file(root, 1), "episode_index", lambda values: [3] * len(values))
    assert "0 frames of episode 1, but" in refusal(root)
    assert "it holds episodes [3]" in refusal(root)


def test_an_episode_in_pieces_is_refused(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(), version="v3.0")
    path = root / "data/chunk-000/file-000.parquet"
    edit_column(path, "episode_index", lambda values: [values[-1], *values[1:-1], values[0]])
    assert "not in one piece" in refusal(root)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_value_that_is_not_finite_is_refused_with_episode_and_frame(tmp_path, version, value):
    root = write_dataset(tmp_path / "data", recordings(), version=version, episodes_per_file=1)
    path = sorted(root.glob("data/*/*.parquet"))[2]
    table = pq.read_table(path)
    rows = table.column("action").to_pylist()
    rows[3][1] = rows[4][0] = value
    wide = pa.array(rows, pa.list_(pa.float64()))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", wide), path)
    message = refusal(root)
    assert "action: episode 2, frame 3, dimension 1 is" in message
    assert "(and in 1 more frames)" in message


def test_vectors_of_several_lengths_are_refused(root):
    path = episode_file(root, 0)
    replace_column(path, "action", lambda rows: [[0.0] * (1 + i % 2) for i in range(rows)])
    assert "action has vectors of lengths" in refusal(root)


@pytest.mark.parametrize("key", ["action", "task_index", "episode_index"])
def test_text_where_numbers_belong_is_refused(root, key):
    path = episode_file(root, 0)
    replace_column(path, key, lambda rows: ["up"] * rows)
    assert f"episode_000000.parquet: {key} is a column of string" in refusal(root)


def test_episodes_of_several_widths_are_refused(root):
    path = episode_file(root, 2)
    replace_column(path, "action", lambda rows: [[0.0]] * rows)
    assert "episode_000002.parquet: 1 dimensions, but 3 in earlier frames" in refusal(root)


def test_vectors_that_are_none_are_refused(root):
    edit_column(episode_file(root, 0), "action", lambda rows: [None, *rows[1:]])
    assert "episode_000000.parquet: " in refusal(root)
