"""Metadata and paths: what is malformed or leads outside of the folder is refused."""

import os

import pytest

from examples.lerobot import DatasetError, LeRobotData, write_dataset
from tests.support.lerobot import (
    CAMERA,
    add_feature,
    edit_info,
    episode_file,
    recordings,
    refusal,
)


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


def test_a_dataset_without_episodes_is_refused(root):
    (root / "meta/episodes.jsonl").write_text("")
    assert "meta/episodes lists no episode" in refusal(root)


def test_paths_by_task_as_in_behavior_1k(tmp_path):
    root = write_dataset(
        tmp_path / "data",
        recordings(),
        chunks_size=2,
        info={"data_path": "data/task-{episode_chunk:04d}/episode_{episode_index:08d}.parquet"},
    )
    assert (root / "data/task-0002/episode_00000004.parquet").exists()
    assert len(LeRobotData(root)) == 35


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
    add_feature(video_root, "../../../../x", CAMERA)
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
    assert len(LeRobotData(snapshot)) == 35


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
