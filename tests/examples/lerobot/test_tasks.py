"""The tasks of a dataset: names that are ambiguous, indices that are not listed, weights."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.lerobot import DatasetError, LeRobotData, write_dataset
from tests.support.lerobot import VERSIONS, edit_column, episode_file, given, recordings, refusal


def test_selecting_tasks_keeps_their_ids(root):
    data = LeRobotData(root, tasks=["wipe"])
    assert {int(data[i]["task_id"]) for i in range(len(data))} == {1}
    assert len(data.vocabulary) == 2
    assert "task 0 'pour': not selected" in data.report.skipped


def test_an_unknown_task_is_refused_with_the_nearest_name(root):
    with pytest.raises(ValueError, match="'wip'. Did you mean one of \\['wipe'\\]"):
        LeRobotData(root, tasks=["wip"])


@pytest.mark.parametrize(("factor", "frames"), [(3, 42), (0.5, 7), (1.5, 21)])
def test_a_weight_shows_a_task_so_many_times_and_all_of_its_frames_alike(root, factor, frames):
    data = LeRobotData(root, weights={"wipe": factor})
    assert data.task_frames == {"pour": 21, "wipe": pytest.approx(frames, abs=1)}
    shown = [data[i] for i in range(len(data))]
    wipe = [(int(f["episode_index"]), int(f["frame_index"])) for f in shown if f["task"] == "wipe"]
    counts = np.unique(wipe, axis=0, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    assert len(counts) == min(14, len(wipe))


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(root, factor):
    with pytest.raises(ValueError, match="weights must be positive and finite"):
        LeRobotData(root, weights={"wipe": factor})


def test_two_indices_of_one_name_are_refused_and_both_named(root):
    rows = [{"task_index": 0, "task": "pour"}, {"task_index": 1, "task": "pour"}]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError, match="'pour' is task_index \\[0, 1\\](.|\n)*duplicate_tasks"):
        LeRobotData(root)
    data = LeRobotData(root, duplicate_tasks="merge")
    assert {int(data[i]["task_id"]) for i in range(len(data))} == {0}
    assert {int(data[i]["task_index"]) for i in range(len(data))} == {0, 1}
    assert "ambiguous task, merged: 'pour' is task_index [0, 1]" in data.report.warnings


def test_two_names_of_one_index_are_refused_and_both_named(root):
    with (root / "meta/tasks.jsonl").open("a") as file:
        file.write(json.dumps({"task_index": 1, "task": "dust"}) + "\n")
    with pytest.raises(DatasetError, match="task_index 1 is \\['dust', 'wipe'\\]"):
        LeRobotData(root)
    data = LeRobotData(root, duplicate_tasks="merge")
    assert data.vocabulary.names == ("pour", "dust")


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
    assert "task_index -1 in 1 frames from frame 6 of episode 0" in refusal(root)


def test_the_task_in_another_column_is_hinted_at_and_read(root):
    key = "annotation.human.task"
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        task = table.column("task_index")
        pq.write_table(table.append_column(key, task), path)
        edit_column(path, "task_index", lambda values: [0] * len(values))
    data = LeRobotData(root)
    assert data.task_frames == {"pour": 35}
    assert (
        f"task_index is 0 in all frames, but {key!r} tells the tasks apart: pass task_key={key!r}"
    ) in data.report.warnings
    data = LeRobotData(root, task_key=key)
    assert data.task_frames == {"pour": 21, "wipe": 14}
    assert not any("task_key" in line for line in data.report.warnings)
    assert f"missing column (5):\n    data/chunk-000/episode_000000.parquet: ['{key}s']" in (
        refusal(root, task_key=f"{key}s")
    )


def test_the_given_groot_dataset_has_three_tasks_by_its_annotation():
    key = "annotation.human.action.task_description"
    plain = LeRobotData(given("groot"), cameras=[])
    assert any(f"pass task_key={key!r}" in line for line in plain.report.warnings)
    data = LeRobotData(given("groot"), cameras=[], task_key=key)
    assert sorted(data.task_frames.values()) == [26, 31, 41]


def test_line_separators_within_a_task_name_do_not_split_it():
    names = LeRobotData(given("jsonl_2028"), cameras=[]).vocabulary.names
    assert any("\u2028" in name and "\x85" in name for name in names)
