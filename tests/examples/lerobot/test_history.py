"""Frames with the states and the images of the frames before them."""

import numpy as np
import pytest

from examples.lerobot import LeRobotData, Recording, make_loader, mix, normalize, reader
from examples.lerobot.write import write_dataset
from tests.support.lerobot import (
    CAMERA,
    VERSIONS,
    add_columns,
    add_feature,
    gray,
    png,
    recordings,
)


@pytest.fixture
def opened(monkeypatch):
    """Lists the video readers that are opened."""
    readers = []

    class Listed(reader.VideoReader):
        def __init__(self, *arguments):
            readers.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(reader, "VideoReader", Listed)
    return readers


@pytest.mark.parametrize("version", VERSIONS)
def test_past_observations_are_in_order_and_the_first_is_repeated(tmp_path, version):
    root = write_dataset(tmp_path / "data", recordings(video=True), version=version)
    data = LeRobotData(root, history=2)
    # Frames 0, 1 and 4 of episode 1, which begins after the 7 frames of episode 0.
    expected = {0: [0, 0, 0], 1: [0, 0, 1], 4: [2, 3, 4]}
    for frame, steps in expected.items():
        item = data[7 + frame]
        assert item["state"].shape == (3, 2)
        assert item["state"].dtype == np.float32
        assert item["state"][:, 0].tolist() == [100 + step for step in steps]
        assert item["images"][CAMERA].shape == (3, 32, 32, 3)
        levels = item["images"][CAMERA].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(levels, [20 + 40 + 4 * step for step in steps], atol=2)
        assert item["history_is_pad"].tolist() == [frame < 2, frame < 1, False]
        assert item["actions"][0, 0] == 100 + frame


def test_the_last_observation_is_that_of_a_frame_without_history(video_root):
    plain, past = LeRobotData(video_root), LeRobotData(video_root, history=3)
    for i in (0, 5, 6, 7, 34):
        np.testing.assert_array_equal(past[i]["state"][-1], plain[i]["state"])
        np.testing.assert_array_equal(past[i]["images"][CAMERA][-1], plain[i]["images"][CAMERA])
        assert past[i].keys() - plain[i].keys() == {"history_is_pad"}


def test_a_history_longer_than_the_episode_is_padded(root):
    item = LeRobotData(root, history=50)[6]
    assert item["history_is_pad"].tolist() == [True] * 44 + [False] * 7
    assert item["state"][43:, 0].tolist() == [0, 0, 1, 2, 3, 4, 5, 6]


def test_the_past_of_a_task_includes_frames_of_the_task_before(tmp_path):
    state = np.arange(6, dtype=np.float32)[:, None]
    tasks = ["reach"] * 2 + ["lift"] * 4
    root = write_dataset(tmp_path / "data", [Recording(state, state, tasks)])
    lift = LeRobotData(root, tasks=["lift"], history=2)
    assert lift[0]["state"][:, 0].tolist() == [0, 1, 2]
    assert not lift[0]["history_is_pad"].any()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_reading_in_order_decodes_each_frame_once(tmp_path, opened, version):
    root = write_dataset(tmp_path / "data", recordings(video=True), version=version)
    data = LeRobotData(root, history=3)
    for i in range(len(data)):
        data[i]
    assert sum(reader.decoded for reader in opened) == 35


def test_random_access_decodes_no_frame_twice(video_root, opened):
    data = LeRobotData(video_root, history=3)
    data[7 + 5 + 6 + 8]  # the last frame of episode 3; its video has one keyframe, the first
    assert [reader.decoded for reader in opened] == [9]


def test_threads_that_share_a_video_do_not_disturb_each_others_past(tmp_path, opened):
    root = write_dataset(tmp_path / "data", recordings(lengths=(30,), video=True))
    data = LeRobotData(root, history=4)
    batches = list(make_loader(data, batch_size=10, num_epochs=1))
    images = np.concatenate([batch["images"][CAMERA] for batch in batches])
    steps = np.concatenate([batch["state"] for batch in batches])[..., 0]
    assert images.shape == (30, 5, 32, 32, 3)
    np.testing.assert_allclose(images.mean(axis=(2, 3, 4)), 20 + 4 * steps, atol=2)
    # Each frame is decoded from the one keyframe, or less; never once for each past frame.
    assert sum(reader.decoded for reader in opened) <= sum(range(1, 31))


def test_a_loader_normalizes_all_states(root):
    data = LeRobotData(root, history=2)
    loader = make_loader(data, batch_size=35, shuffle=False, normalize_by="zscore")
    batch = next(iter(loader))
    states = np.stack([data[i]["state"] for i in range(35)])
    expected = normalize(states, data.norm_stats["state"], "zscore")
    np.testing.assert_array_equal(batch["state"], expected)
    assert batch["history_is_pad"].sum() == 5 * (2 + 1)
    assert batch["history_is_pad"].dtype == bool


def test_the_statistics_do_not_count_repeated_states(root):
    plain, past = LeRobotData(root).norm_stats["state"], LeRobotData(root, history=5).norm_stats
    np.testing.assert_array_equal(past["state"].mean, plain.mean)
    assert past["state"].count == 35


def test_a_mix_needs_one_history(tmp_path):
    roots = [write_dataset(tmp_path / name, recordings()) for name in ("a", "b")]
    first, second = (LeRobotData(root, history=1) for root in roots)
    train, val = mix([first, second]).split(0.3)
    assert {train[0]["state"].shape, val[0]["state"].shape} == {(2, 2)}
    with pytest.raises(ValueError, match="'history': 1(.|\n)*'history': 0(.|\n)*same horizon=, hi"):
        mix([first, LeRobotData(roots[1])])


def test_pictures_inside_parquet_have_a_past_too(root):
    add_columns(root, image=lambda table: [png(10 * i) for i in range(len(table))])
    add_feature(root, "image", {"dtype": "image", "shape": [32, 32, 3]})
    item = LeRobotData(root, history=2)[3]
    np.testing.assert_array_equal(item["images"]["image"], gray([10, 20, 30]))


def test_a_negative_history_is_refused(root):
    with pytest.raises(ValueError, match="history is -1, but must be at least 0. Pass 0 for the"):
        LeRobotData(root, history=-1)
