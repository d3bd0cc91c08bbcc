"""A dataset that must not be trained on is refused, with the file named and the fix."""

import json
import os

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.lerobot import DatasetError, LeRobotData
from examples.lerobot.write import Recording, write_dataset, write_video

CAMERA = "observation.images.front"
VERSIONS = ("v2.1", "v3.0")


def recordings(lengths=(6, 7, 5, 8), video=False):
    result = []
    for episode, length in enumerate(lengths):
        state = np.linspace(0, 1 + episode, 3 * length, dtype=np.float32).reshape(length, 3)
        images = {CAMERA: np.zeros((length, 32, 32, 3), np.uint8)} if video else {}
        result.append(Recording(state, state, ("pour", "wipe")[episode % 2], images))
    return result


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data", recordings())


@pytest.fixture
def video_root(tmp_path):
    return write_dataset(tmp_path / "data", recordings(video=True))


def episode_file(root, episode):
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_file(root, episode):
    return root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"


def edit_column(path, key, change):
    """Replaces a column by `change` of its list of values."""
    table = pq.read_table(path)
    index = table.column_names.index(key)
    values = pa.array(change(table.column(key).to_pylist()), table.schema.field(key).type)
    pq.write_table(table.set_column(index, key, values), path)


def edit_info(root, **changes):
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def move_index_to_the_start(path):
    source = path.with_suffix(".source.mp4")
    path.rename(source)
    with (
        av.open(str(source)) as read,
        av.open(str(path), "w", options={"movflags": "faststart"}) as write,
    ):
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)


def refusal(root, **arguments):
    with pytest.raises(DatasetError) as error:
        LeRobotData(root, **arguments)
    message = str(error.value)
    assert "Fix: " in message
    return message


# --- files


def test_missing_files_are_all_named_at_once(root):
    episode_file(root, 0).unlink()
    episode_file(root, 2).unlink()
    message = refusal(root)
    assert "missing file (2)" in message
    assert "data/chunk-000/episode_000000.parquet" in message
    assert "data/chunk-000/episode_000002.parquet" in message
    assert "pass episodes=[...]" in message


def test_problems_of_several_kinds_are_reported_together(root):
    episode_file(root, 0).unlink()
    edit_column(episode_file(root, 1), "task_index", lambda values: [9] * len(values))
    message = refusal(root)
    assert "missing file (1)" in message
    assert "unlisted task_index (1)" in message


def test_a_long_list_is_cut_short_with_its_length(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(lengths=[2] * 30))
    for path in root.glob("data/*/*.parquet"):
        path.unlink()
    message = refusal(root)
    assert "missing file (30)" in message
    assert "... and 10 more" in message


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


@pytest.mark.parametrize("where", ["info.json", "episodes.jsonl", "tasks.jsonl"])
def test_malformed_metadata_is_named(root, where):
    (root / "meta" / where).write_text("{not json")
    with pytest.raises(DatasetError, match=f"meta/{where}"):
        LeRobotData(root)


@pytest.mark.parametrize("where", ["info.json", "episodes.jsonl", "tasks.jsonl"])
def test_missing_metadata_is_named(root, where):
    (root / "meta" / where).unlink()
    with pytest.raises(DatasetError, match=where):
        LeRobotData(root)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="the one that holds meta"):
        LeRobotData(tmp_path)


def test_an_unknown_version_is_refused(root):
    edit_info(root, codebase_version="v1.6")
    with pytest.raises(DatasetError, match="'v1.6' is not supported. Convert"):
        LeRobotData(root)


def test_a_missing_column_is_named_with_those_that_are_there(root):
    message = refusal(root, state="observation.joints")
    assert "['observation.joints']; its columns are ['action', 'episode_index'" in message


# --- frames


def test_a_frame_count_that_differs_from_the_metadata_is_refused(root):
    path = root / "meta/episodes.jsonl"
    path.write_text(path.read_text().replace('"length": 7', '"length": 9'))
    message = refusal(root)
    assert "episode_000001.parquet: 7 frames of episode 1, but its length" in message
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


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unlisted_task_index_is_refused_with_file_and_frame(tmp_path, version):
    root = write_dataset(tmp_path / "data", recordings(), version=version)
    path = next(iter(sorted(root.glob("data/*/*.parquet"))))
    edit_column(path, "task_index", lambda values: [*values[:4], 7, 7, *values[6:]])
    message = refusal(root)
    assert "task_index 7 in 2 frames from frame 4 of episode 0; meta/tasks lists [0, 1]" in message
    assert path.name in message


def test_a_task_index_that_is_missing_is_refused(root):
    edit_column(episode_file(root, 0), "task_index", lambda values: [*values[:-1], None])
    assert "task_index -1 in 1 frames from frame 5 of episode 0" in refusal(root)


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


def test_a_value_that_is_not_finite_is_found_on_reading_without_preflight(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(), version="v3.0", episodes_per_file=1)
    path = root / "data/chunk-000/file-001.parquet"
    edit_column(path, "action", lambda rows: [[np.nan] * 3, *rows[1:]])
    data = LeRobotData(root, preflight=False)
    data[0]
    with pytest.raises(DatasetError, match="file-001.parquet: actions of episode 1, frame 0"):
        data[6]


def test_vectors_of_several_lengths_are_refused(root):
    path = episode_file(root, 0)
    table = pq.read_table(path)
    ragged = pa.array([[0.0] * (1 + i % 2) for i in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("action"), "action", ragged), path)
    assert "action has vectors of lengths" in refusal(root)


@pytest.mark.parametrize("key", ["action", "task_index", "episode_index"])
def test_text_where_numbers_belong_is_refused(root, key):
    path = episode_file(root, 0)
    table = pq.read_table(path)
    text = pa.array(["up"] * len(table))
    pq.write_table(table.set_column(table.column_names.index(key), key, text), path)
    assert f"episode_000000.parquet: {key} is a column of string" in refusal(root)


def test_a_dataset_without_episodes_is_refused(root):
    (root / "meta/episodes.jsonl").write_text("")
    assert "meta/episodes lists no episode" in refusal(root)


def test_episodes_of_several_widths_are_refused(root):
    path = episode_file(root, 2)
    table = pq.read_table(path)
    wide = pa.array([[0.0]] * len(table))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", wide), path)
    assert "episode_000002.parquet: 1 dimensions, but 3 in earlier frames" in refusal(root)


def test_vectors_that_are_none_are_refused(root):
    edit_column(episode_file(root, 0), "action", lambda rows: [None, *rows[1:]])
    assert "episode_000000.parquet: " in refusal(root)


# --- videos


def test_a_video_shorter_than_its_episode_is_refused(video_root):
    write_video(video_file(video_root, 3), np.zeros((5, 32, 32, 3), np.uint8), 20)
    message = refusal(video_root)
    assert "video shorter than its episode (1)" in message
    assert "episode_000003.mp4: 5 frames of episode 3, which has 8" in message


def test_a_video_of_v3_that_ends_early_names_the_episode(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True), version="v3.0")
    path = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    write_video(path, np.zeros((6 + 7 + 2, 32, 32, 3), np.uint8), 20)
    message = refusal(root)
    assert "file-000.mp4: 2 frames of episode 2, which has 5" in message
    assert "file-000.mp4: 0 frames of episode 3, which has 8" in message


def test_a_missing_video_is_named(video_root):
    video_file(video_root, 2).unlink()
    assert f"videos/chunk-000/{CAMERA}/episode_000002.mp4" in refusal(video_root)


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("index", ["at the end", "at the start"])
def test_a_truncated_video_is_named(tmp_path, kept, index):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (30, 32, 32, 3), np.uint8)
    x = np.arange(30, dtype=np.float32)[:, None]
    root = write_dataset(tmp_path / "data", [Recording(x, x, "pour", {CAMERA: noise})])
    path = video_file(root, 0)
    if index == "at the start":  # the header promises every frame, whatever is cut off
        move_index_to_the_start(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert f"videos/chunk-000/{CAMERA}/episode_000000.mp4" in refusal(root)


def test_a_video_at_another_rate_is_refused(video_root):
    write_video(video_file(video_root, 1), np.zeros((20, 32, 32, 3), np.uint8), 30)
    assert "episode_000001.mp4: 30 fps, but the data 20" in refusal(video_root)


def test_videos_of_several_sizes_are_refused(video_root):
    write_video(video_file(video_root, 1), np.zeros((7, 48, 64, 3), np.uint8), 20)
    message = refusal(video_root)
    assert "32x32 in " in message
    assert "48x64 in " in message


# --- paths


@pytest.mark.parametrize(
    "template",
    [
        "../other/episode_{episode_index:06d}.parquet",
        "data/../../other/episode_{episode_index:06d}.parquet",
        "/etc/episode_{episode_index:06d}.parquet",
    ],
)
def test_a_template_that_leads_outside_is_refused(root, template):
    edit_info(root, data_path=template)
    message = refusal(root)
    assert "path outside the dataset's folder" in message
    assert template in message


def test_a_camera_whose_name_leads_outside_is_refused(video_root):
    info = json.loads((video_root / "meta/info.json").read_text())
    info["features"]["../../../../x"] = info["features"][CAMERA]
    edit_info(video_root, features=info["features"])
    assert "path outside the dataset's folder" in refusal(video_root)


def test_a_symbolic_link_that_leads_outside_is_refused(tmp_path, root):
    outside = tmp_path / "outside.parquet"
    os.rename(episode_file(root, 1), outside)
    episode_file(root, 1).symlink_to(outside)
    assert f"gives {outside}" in refusal(root)


def test_the_links_of_a_hugging_face_cache_are_followed(tmp_path, root):
    snapshot, blobs = tmp_path / "cache/snapshots/abc", tmp_path / "cache/blobs"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    os.rename(root, snapshot)
    os.rename(episode_file(snapshot, 1), blobs / "1234")
    episode_file(snapshot, 1).symlink_to(blobs / "1234")
    assert len(LeRobotData(snapshot)) == 26


@pytest.mark.parametrize(
    "template",
    [
        "data/{episode_index.__class__}.parquet",
        "data/{episode_index:0999999999d}.parquet",
        "data/{episode_index!r}.parquet",
        "data/{0}.parquet",
        "data/{unknown}.parquet",
        "data/{episode_index",
    ],
)
def test_a_template_does_nothing_but_insert_numbers(root, template):
    edit_info(root, data_path=template)
    assert "meta/info.json: data_path" in refusal(root)


# --- arguments


def test_unknown_episodes_and_cameras_are_refused(root):
    with pytest.raises(ValueError, match="no episodes \\[8, 9\\]. It has 4, up to 3"):
        LeRobotData(root, episodes=[1, 8, 9])
    with pytest.raises(ValueError, match="no cameras \\['wrist'\\]\\. Its cameras are \\[\\]"):
        LeRobotData(root, cameras=["wrist"])


def test_no_episodes_are_refused(root):
    with pytest.raises(ValueError, match="Select at least one episode"):
        LeRobotData(root, episodes=[])


def test_a_horizon_of_nothing_is_refused(root):
    with pytest.raises(ValueError, match="horizon is 0, but must be at least 1"):
        LeRobotData(root, horizon=0)
