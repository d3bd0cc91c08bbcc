"""The preflight of videos: each must hold its episodes, where the metadata says, and no others."""

import numpy as np
import pytest

from examples.lerobot import LeRobotData, Recording, write_dataset
from examples.lerobot.write import write_video
from tests.support.lerobot import (
    CAMERA,
    add_feature,
    edit_episodes,
    given,
    move_index_to_the_start,
    number_in,
    recordings,
    refusal,
    video_file,
)


def test_a_video_shorter_than_its_episode_is_refused(video_root):
    write_video(video_file(video_root, 3), np.zeros((5, 32, 32, 3), np.uint8), 20)
    message = refusal(video_root)
    assert "video shorter than its episode (1)" in message
    assert "episode_000003.mp4: 5 frames of episode 3, which has 9" in message


def test_a_video_of_v3_that_ends_early_names_the_episode(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True), version="v3.0")
    path = root / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    write_video(path, np.zeros((7 + 5 + 2, 32, 32, 3), np.uint8), 20)
    message = refusal(root)
    assert "file-000.mp4: 2 frames of episode 2, which has 6" in message
    assert "file-000.mp4: 0 frames of episode 3, which has 9" in message


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
    write_video(video_file(video_root, 1), np.zeros((5, 48, 64, 3), np.uint8), 20)
    message = refusal(video_root)
    assert "32x32 in " in message
    assert "48x64 in " in message


@pytest.fixture
def v3_root(tmp_path):
    return write_dataset(tmp_path / "v3", recordings(video=True), version="v3.0")


def move(root, episode, seconds, names=("from_timestamp", "to_timestamp")):
    def change(row):
        for name in names if row["episode_index"] == episode else ():
            row[f"videos/{CAMERA}/{name}"] += seconds

    edit_episodes(root, change)


def test_times_that_span_another_number_of_frames_are_refused(v3_root):
    move(v3_root, 1, 0.05, ["from_timestamp"])
    message = refusal(v3_root)
    assert "place in a video that contradicts the episodes" in message
    assert (
        "file-000.mp4: episode 1 has 5 frames, but from_timestamp 0.400 and to_timestamp 0.600 "
        "span 4"
    ) in message
    assert "file-000.mp4: 1 frames between episode 1 and episode 2 belong to both" in message
    rest = LeRobotData(v3_root, episodes=[0, 2, 3, 4])
    assert len(rest) == 30
    assert any("1 frames between episode 1" in line for line in rest.report.warnings)


def test_a_gap_between_episodes_is_a_warning(v3_root):
    def change(row):
        if row["episode_index"] in (1, 2, 3):
            row[f"videos/{CAMERA}/file_index"] = 7

    path = v3_root / f"videos/{CAMERA}/chunk-000/file-007.mp4"
    images = [r.images[CAMERA] for r in recordings(video=True)]
    write_video(path, np.concatenate([*images[:4], images[0][:2]]), 20)
    edit_episodes(v3_root, change)
    warning = next(line for line in LeRobotData(v3_root).report.warnings if "no episode" in line)
    assert "file-000.mp4: 20 frames between episode 0 and the end" in warning
    assert "file-007.mp4: 7 frames between the start and episode 1" in warning
    assert "file-007.mp4: 2 frames between episode 3 and the end" in warning


def test_a_video_longer_than_its_episode_is_a_warning(video_root):
    write_video(video_file(video_root, 3), np.zeros((12, 32, 32, 3), np.uint8), 20)
    warnings = "\n".join(LeRobotData(video_root).report.warnings)
    assert "episode_000003.mp4: 3 frames between episode 3 and the end" in warnings


def test_depth_in_color_is_refused(video_root):
    add_feature(
        video_root, CAMERA, {"dtype": "video", "shape": [32, 32, 1], "info": {"is_depth_map": True}}
    )
    message = refusal(video_root)
    assert "depth video that is not gray of more than 8 bits (5)" in message
    assert "episode_000000.mp4: h264, yuv420p" in message


def test_undamaged_datasets_get_no_warning_of_videos(video_root, v3_root):
    for root in (video_root, v3_root):
        assert not any("camera" in line for line in LeRobotData(root).report.warnings)


def test_the_shifted_dataset_is_refused_and_the_longer_one_warned_of():
    message = refusal(given("shift1"))
    assert "episode 1 has 23 frames, but from_timestamp 0.367 and to_timestamp 1.100 span 22" in (
        message
    )
    assert "1 frames between episode 4 and episode 5 belong to both" in message
    warnings = "\n".join(LeRobotData(given("longer")).report.warnings)
    assert "episode_000002.mp4: 24 frames between episode 2 and the end" in warnings


@pytest.mark.parametrize("name", ["vid", "vid_v21", "hevc_g2_f", "opengop"])
def test_every_picture_is_that_of_its_row(name):
    data = LeRobotData(given(name), state="action")
    assert not any("camera" in line for line in data.report.warnings)
    for i in np.random.default_rng(0).permutation(len(data)):
        item = data[i]
        for image in item["images"].values():
            numbers = number_in(image, slice(8, 16)), number_in(image)
            assert numbers == (item["episode_index"], item["frame_index"])
