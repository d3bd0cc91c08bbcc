"""Frames are those that were written, for every version and every way of selecting them."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.lerobot import (
    DatasetError,
    LeRobotData,
    Recording,
    mix,
    reader,
    write_dataset,
)
from taskcond import TaskVocabulary
from tests.support.lerobot import (
    CAMERA,
    VERSIONS,
    add_columns,
    add_feature,
    edit_column,
    gray,
    names_and_numbers,
    png,
    recordings,
)


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_of_every_version_are_those_that_were_written(tmp_path, version):
    written = recordings(video=True)
    root = write_dataset(tmp_path / "data", written, version=version, episodes_per_file=2)
    data = LeRobotData(root, horizon=3)
    index = 0
    for episode, recording in enumerate(written):
        for frame in range(len(recording.state)):
            item = data[index]
            assert (item["episode_index"], item["frame_index"]) == (episode, frame)
            assert item["task"] == recording.task
            assert data.vocabulary.names[item["task_id"]] == recording.task
            np.testing.assert_array_equal(item["state"], recording.state[frame])
            np.testing.assert_array_equal(item["actions"][0], recording.actions[frame])
            level = recording.images[CAMERA][frame].mean()
            assert abs(item["images"][CAMERA].mean() - level) < 2
            index += 1
    assert len(data) == index


def test_the_dtypes_of_a_frame_are_those_of_the_contract(root):
    item = LeRobotData(root, horizon=4)[0]
    assert item["state"].dtype == np.float32
    assert item["actions"].dtype == np.float32
    assert item["actions"].shape == (4, 3)
    assert item["action_is_pad"].dtype == bool
    assert item["task_id"].dtype == np.int32
    assert item["task_id"].shape == ()


def test_a_chunk_past_the_end_repeats_the_last_action_and_says_so(root):
    data = LeRobotData(root, horizon=4)
    item = data[5]  # the last but one of episode 0
    np.testing.assert_array_equal(item["actions"][:, 0], [5, 6, 6, 6])
    np.testing.assert_array_equal(item["action_is_pad"], [False, False, True, True])


def test_a_chunk_longer_than_the_episode_is_padded(root):
    item = LeRobotData(root, horizon=50)[0]
    assert item["action_is_pad"].sum() == 50 - 7


@pytest.mark.parametrize("index", [-1, 35, 10**9])
def test_an_index_outside_raises_index_error(root, index):
    with pytest.raises(IndexError):
        LeRobotData(root)[index]


def test_several_keys_are_concatenated(root):
    item = LeRobotData(root, state=("observation.state", "action"))[1]
    np.testing.assert_allclose(item["state"], [1, np.sin(1), 1, -1, np.cos(1)], rtol=1e-6)


def test_selected_episodes_need_no_other_files(root):
    for path in (root / "data/chunk-000").glob("*00[0124].parquet"):
        path.unlink()
    data = LeRobotData(root, episodes=[3])
    assert len(data) == 9
    assert data.episode_indices == (3,)


def test_a_task_within_an_episode_is_read_by_frame(tmp_path):
    state = np.arange(6, dtype=np.float32)[:, None]
    tasks = ["reach"] * 2 + ["lift"] * 3 + ["reach"]
    root = write_dataset(tmp_path / "data", [Recording(state, state, tasks)])
    data = LeRobotData(root, horizon=2)
    assert [data[i]["task"] for i in range(6)] == tasks
    lift = LeRobotData(root, horizon=2, tasks=["lift"])
    assert [int(lift[i]["frame_index"]) for i in range(len(lift))] == [2, 3, 4]


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_of_one_and_two_frames_are_read(tmp_path, version):
    root = write_dataset(
        tmp_path / "data", recordings(lengths=(1, 2, 1), video=True), version=version
    )
    data = LeRobotData(root, horizon=2)
    levels = [round(data[i]["images"][CAMERA].mean()) for i in range(4)]
    np.testing.assert_allclose(levels, [20, 60, 64, 100], atol=2)
    assert [data[i]["action_is_pad"].tolist()[1] for i in range(4)] == [True, False, True, True]


def test_changing_a_frame_does_not_change_the_next_reading(root):
    data = LeRobotData(root)
    data[3]["state"][:] = data[3]["actions"][:] = 99
    assert data[3]["state"][0] == 3
    assert data[3]["actions"][0, 0] == 3


def test_ids_follow_the_models_vocabulary_by_name(root):
    model = TaskVocabulary(["fold", "wipe", "pour"])
    data = LeRobotData(root, vocabulary=model)
    assert names_and_numbers(data) == {("pour", 0, 2), ("wipe", 1, 1)}


def test_a_task_that_the_models_vocabulary_lacks_is_refused(root):
    with pytest.raises(ValueError, match="lacks 'wipe'"):
        LeRobotData(root, vocabulary=TaskVocabulary(["pour"]))
    with pytest.raises(ValueError, match="lacks 'pour', 'wipe'"):
        LeRobotData(root, vocabulary=TaskVocabulary([]))


def test_a_split_is_by_episode_and_the_same_for_the_same_seed(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(lengths=[4] * 20))
    data = LeRobotData(root)
    train, val = data.split(val_fraction=0.2, seed=1)
    assert set(train.episode_indices) | set(val.episode_indices) == set(range(20))
    assert not set(train.episode_indices) & set(val.episode_indices)
    assert val.task_frames == {"pour": 8, "wipe": 8}
    assert data.split(0.2, seed=1)[1].episode_indices == val.episode_indices
    assert any(data.split(0.2, s)[1].episode_indices != val.episode_indices for s in range(2, 6))


def test_a_split_without_a_second_episode_says_what_to_do(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(lengths=(4, 5)))
    with pytest.raises(ValueError, match="Validate on the training frames"):
        LeRobotData(root).split()


def test_a_split_names_the_tasks_of_which_nothing_is_held_out(tmp_path):
    pours, (wipe,) = recordings(lengths=[4] * 5)[::2], recordings(lengths=[4, 4])[1:]
    data = LeRobotData(write_dataset(tmp_path / "data", [*pours, wipe]))
    warning = "no frames of these tasks are held out: ['wipe']"
    for part in data.split():
        assert part.report.warnings[-1] == warning
    assert warning not in data.report.warnings
    both = mix([data, data]).split()[1]
    assert both.report.warnings[-1] == warning
    wipes = LeRobotData(write_dataset(tmp_path / "wipes", [wipe] * 3))
    assert warning not in mix([data, wipes]).split()[1].report.warnings


def test_a_split_names_the_tasks_that_are_held_out_as_a_whole(tmp_path):
    x = np.zeros((4, 2), np.float32)
    episodes = [Recording(x, x, "a"), Recording(x, x, ["a", "a", "b", "b"])]
    data = LeRobotData(write_dataset(tmp_path / "data", episodes))
    found = {part.report.warnings for seed in range(8) for part in data.split(0.5, seed)}
    assert {warnings[-1] for warnings in found} == {
        "no frames of these tasks are held out: ['b']",
        "all frames of these tasks are held out: ['b']",
    }


def test_a_declared_camera_without_files_is_skipped_and_named(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True))
    add_feature(root, "observation.images.lost", CAMERA)
    data = LeRobotData(root)
    assert data.cameras == (CAMERA,)
    assert any("observation.images.lost: declared" in line for line in data.report.skipped)
    with pytest.raises(DatasetError, match="observation.images.lost/episode_000000.mp4"):
        LeRobotData(root, cameras=["observation.images.lost"])


def test_without_cameras_no_video_is_opened(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True))
    for path in root.rglob("*.mp4"):
        path.write_bytes(b"")
    assert LeRobotData(root, cameras=[])[0]["images"] == {}


def test_images_inside_parquet_are_read(root):
    add_columns(root, image=lambda table: [png(10 * i) for i in range(len(table))])
    add_feature(root, "image", {"dtype": "image", "shape": [32, 32, 3]})
    data = LeRobotData(root)
    np.testing.assert_array_equal(data[4]["images"]["image"], gray([40])[0])


def test_an_image_that_is_not_in_the_file_is_refused(root):
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        images = pa.array([{"bytes": None, "path": "a.png"}] * len(table))
        pq.write_table(table.append_column("image", images), path)
    add_feature(root, "image", {"dtype": "image", "shape": [32, 32, 3]})
    with pytest.raises(DatasetError, match="image of frame 0 holds no image. Embed"):
        LeRobotData(root)[0]


def test_pictures_do_not_keep_their_row_group_in_memory(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(), version="v3.0", episodes_per_file=5)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = pa.array([{"bytes": bytes(100_000), "path": None}] * len(table))
    pq.write_table(table.append_column("image", cells), path)
    add_feature(root, "image", {"dtype": "image", "shape": [32, 32, 3]})
    data = LeRobotData(root, cameras=["image"])
    before = pa.total_allocated_bytes()
    for first in (0, 7, 12):  # a frame of each of three episodes; its picture is no PNG
        with pytest.raises(
            DatasetError, match=f"image of episode {[0, 7, 12].index(first)}, frame"
        ):
            data[first]
    # A row group has 3.5 MB. Arrow's threads free what the opening has read a moment later.
    assert pa.total_allocated_bytes() < before + 100_000


def test_a_copy_by_pickle_reads_the_same_and_carries_no_open_files(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True))
    data = LeRobotData(root)
    item = data[9]
    copied = pickle.loads(pickle.dumps(data))[9]
    np.testing.assert_array_equal(item["images"][CAMERA], copied["images"][CAMERA])
    np.testing.assert_array_equal(item["actions"], copied["actions"])


@pytest.mark.filterwarnings("ignore:os.fork")  # the child runs no JAX
def test_a_forked_process_opens_its_own_files(tmp_path, monkeypatch):
    opened = []

    class Counted(reader.VideoReader):
        def __init__(self, path, *arguments):
            opened.append(path)
            super().__init__(path, *arguments)

    monkeypatch.setattr(reader, "VideoReader", Counted)
    data = LeRobotData(write_dataset(tmp_path / "data", recordings(video=True)))
    data[0], data[1]
    assert len(opened) == 1
    child = os.fork()
    if not child:
        try:
            data[0]
        finally:
            os._exit(len(opened))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def test_a_value_that_is_not_finite_is_found_on_reading_without_preflight(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(), version="v3.0", episodes_per_file=1)
    path = root / "data/chunk-000/file-001.parquet"
    edit_column(path, "action", lambda rows: [[np.nan] * 3, *rows[1:]])
    data = LeRobotData(root, preflight=False)
    data[0]
    with pytest.raises(DatasetError, match="file-001.parquet: actions of episode 1, frame 0"):
        data[7]


def test_unknown_episodes_and_cameras_are_refused(root):
    with pytest.raises(ValueError, match="no episodes \\[8, 9\\]. It has 5, up to 4"):
        LeRobotData(root, episodes=[1, 8, 9])
    with pytest.raises(ValueError, match="no cameras \\['wrist'\\]. Its cameras are \\[\\]"):
        LeRobotData(root, cameras=["wrist"])


def test_no_episodes_are_refused(root):
    with pytest.raises(ValueError, match="Select at least one episode"):
        LeRobotData(root, episodes=[])


def test_a_horizon_of_nothing_is_refused(root):
    with pytest.raises(ValueError, match="horizon is 0, but must be at least 1"):
        LeRobotData(root, horizon=0)
