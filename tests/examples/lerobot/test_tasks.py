"""The tasks of a dataset: names that are ambiguous, indices that are not listed, weights."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.lerobot import DatasetError, LeRobotData, Recording, write_dataset
from tests.support import as_untyped_code
from tests.support.lerobot import (
    VERSIONS,
    add_columns,
    edit_column,
    edit_episode_lines,
    edit_episodes,
    episode_file,
    given,
    recordings,
    refusal,
)


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


def test_balanced_weights_show_all_tasks_equally_often(root):
    data = LeRobotData(root, weights="balanced")
    assert data.task_frames == pytest.approx({"pour": 35 / 2, "wipe": 35 / 2}, abs=1.5)
    one = LeRobotData(root, weights="balanced", tasks=["wipe"])
    assert one.task_frames == {"wipe": 14}
    for part in (*data.split(0.3), data.weighted(2, data.vocabulary).split(0.3)[0]):
        pour, wipe = part.task_frames.values()
        assert abs(pour - wipe) <= 2
    assert len(data.weighted(2, data.vocabulary).split(0.3)[0]) > 1.8 * len(data.split(0.3)[0])
    with as_untyped_code(), pytest.raises(ValueError, match="must be 'balanced' or"):
        LeRobotData(root, weights="equal")


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


def contradictions(root, **arguments):
    warnings = LeRobotData(root, **arguments).report.warnings
    return [line for line in warnings if "contradict those of their frames" in line]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_list_of_tasks_that_contradicts_the_frames_is_warned_of_with_both(tmp_path, version):
    root = write_dataset(tmp_path / "data", recordings(), version=version)
    assert contradictions(root) == []
    lists = {1: ["pour"], 2: ["pour", "wipe"], 3: []}

    def change(row):
        row["tasks"] = lists.get(row["episode_index"], row["tasks"])

    (edit_episodes if version == "v3.0" else edit_episode_lines)(root, change)
    assert contradictions(root) == [
        "the tasks of 3 episodes in meta/episodes contradict those of their frames, which are "
        "used: episode 1 lists ['pour'], its frames have ['wipe']; episode 2 lists "
        "['pour', 'wipe'], its frames have ['pour']; episode 3 lists [], its frames have ['wipe']"
    ]
    assert LeRobotData(root).task_frames == {"pour": 21, "wipe": 14}
    assert len(contradictions(root, episodes=[0, 3])) == 1
    assert contradictions(root, episodes=[0, 4]) == []


def test_each_task_of_an_episode_must_be_listed(tmp_path):
    state = np.zeros((4, 1), np.float32)
    written = [Recording(state, state, ["reach", "lift", "lift", "reach"])]
    root = write_dataset(tmp_path / "data", written)
    assert contradictions(root) == []
    edit_episode_lines(root, lambda row: row.update(tasks=["lift"]))
    (line,) = contradictions(root)
    assert line.endswith("episode 0 lists ['lift'], its frames have ['reach', 'lift']")


def test_episodes_without_a_list_of_tasks_contradict_nothing(root):
    edit_episode_lines(root, lambda row: row.pop("tasks"))
    assert contradictions(root) == []


def test_a_list_may_also_name_what_annotations_number(root):
    edit_episode_lines(root, lambda row: row["tasks"].append("valid"))
    assert len(contradictions(root)) == 1
    add_columns(root, **{"annotation.human.validity": lambda table: [2] * len(table)})
    assert contradictions(root) == []
    edit_episode_lines(root, lambda row: row.update(tasks=["valid"]))
    assert len(contradictions(root)) == 1


def test_either_name_of_a_merged_task_may_be_listed(root):
    with (root / "meta/tasks.jsonl").open("a") as file:
        file.write(json.dumps({"task_index": 1, "task": "dust"}) + "\n")
    edit_episode_lines(root, lambda row: row.update(tasks=[["pour"], ["dust"]][row["length"] == 9]))
    (line,) = contradictions(root, duplicate_tasks="merge")
    assert "of 1 episodes" in line
    assert line.endswith("episode 1 lists ['pour'], its frames have ['dust', 'wipe']")


def test_twenty_contradictions_are_shown(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(lengths=[2] * 25, tasks=("pour",)))
    edit_episode_lines(root, lambda row: row.update(tasks=["wipe"]))
    (line,) = contradictions(root)
    assert "of 25 episodes" in line
    assert line.endswith("episode 19 lists ['wipe'], its frames have ['pour']; and 5 more")


def test_the_given_groot_dataset_has_three_tasks_by_its_annotation():
    key = "annotation.human.action.task_description"
    plain = LeRobotData(given("groot"), cameras=[])
    assert any(f"pass task_key={key!r}" in line for line in plain.report.warnings)
    data = LeRobotData(given("groot"), cameras=[], task_key=key)
    assert sorted(data.task_frames.values()) == [26, 31, 41]


def test_line_separators_within_a_task_name_do_not_split_it():
    names = LeRobotData(given("jsonl_2028"), cameras=[]).vocabulary.names
    assert any("\u2028" in name and "\x85" in name for name in names)
