"""TaskVocabulary: names identify tasks, in files of every LeRobot version."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcond import NULL_TASK, TaskVocabulary
from taskcond.data.vocabulary import read_lerobot_tasks

TASKS = [(0, "pick up the radio"), (1, "wasche ab äöü"), (2, "turn on")]


def write_jsonl(root, rows):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"task_index": i, "task": name}) for i, name in rows]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet(root, rows, name="__index_level_0__"):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    columns = {"task_index": [i for i, _ in rows], name: [name for _, name in rows]}
    pq.write_table(pa.table(columns), root / "meta" / "tasks.parquet")


@pytest.mark.parametrize(
    "write", [write_jsonl, write_parquet, lambda r, t: write_parquet(r, t, "task")]
)
def test_reads_lerobot_tasks_in_the_order_of_their_index(tmp_path, write):
    write(tmp_path, TASKS[::-1])
    assert TaskVocabulary.from_lerobot(tmp_path).names == tuple(name for _, name in TASKS)
    assert read_lerobot_tasks(tmp_path) == TASKS


def test_gaps_in_the_indices_are_bridged_by_name(tmp_path):
    write_jsonl(tmp_path, [(2, "a"), (5, "b")])
    vocabulary = TaskVocabulary.from_lerobot(tmp_path)
    assert vocabulary.id_map(dict(read_lerobot_tasks(tmp_path))) == {2: 0, 5: 1}


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, "a"), (1, "a"), (2, "b"), (3, "b")], r"'a' is index \[0, 1\].*'b' is index \[2, 3\]"),
        ([(0, "a"), (0, "b")], r"index 0 is \['a', 'b'\]"),
    ],
)
def test_ambiguous_tasks_are_pointed_out(tmp_path, write, rows, message):
    write(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        TaskVocabulary.from_lerobot(tmp_path)
    assert read_lerobot_tasks(tmp_path) == sorted(rows)


def test_no_metadata_says_which_folder_is_meant(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither tasks.jsonl"):
        TaskVocabulary.from_lerobot(tmp_path)


@pytest.mark.parametrize("line", ["{", '{"task": "a"}', '{"task_index": "0", "task": "a"}', "[]"])
def test_a_malformed_line_is_named(tmp_path, line):
    write_jsonl(tmp_path, TASKS)
    with (tmp_path / "meta" / "tasks.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 4"):
        TaskVocabulary.from_lerobot(tmp_path)


def test_a_truncated_parquet_file_is_named(tmp_path):
    write_parquet(tmp_path, TASKS)
    path = tmp_path / "meta" / "tasks.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"tasks.parquet cannot be read"):
        TaskVocabulary.from_lerobot(tmp_path)


@given(names=st.lists(st.text(), unique=True))
def test_json_round_trip(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("vocabulary") / "tasks.json"
    TaskVocabulary(names).save(path)
    assert TaskVocabulary.load(path).names == tuple(names)
    assert os.listdir(path.parent) == ["tasks.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"tasks": "ab"}', '{"tasks": [1]}', '{"t": []}'])
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, content):
    path = tmp_path / "tasks.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tasks.json is not a task vocabulary"):
        TaskVocabulary.load(path)


def test_names_must_be_distinct_strings():
    with pytest.raises(ValueError, match=r"more than once: \['a', 'b'\]"):
        TaskVocabulary(["a", "b", "a", "b", "c"])
    with pytest.raises(TypeError, match=r"must be strings, got \[1\]"):
        TaskVocabulary(["a", 1])
    with pytest.raises(TypeError, match="list of names"):
        TaskVocabulary("pick up")


@given(st.permutations(["a", "b", "c", "d"]), st.permutations(["b", "c", "d", "e"]))
def test_rows_and_ids_are_matched_by_name(old, new):
    old, new = TaskVocabulary(old), TaskVocabulary(new)
    for name, row in zip(new, new.rows_from(old), strict=True):
        assert (row == NULL_TASK) == (name == "e")
        assert name == "e" or old.names[row] == name
    union = old + new
    assert union.names[:4] == old.names
    assert {union.names[i] for i in union.id_map(new).values()} == set(new)


def test_unknown_names_are_all_listed():
    with pytest.raises(ValueError, match=r"lacks \['x', 'y'\]"):
        TaskVocabulary(["a"]).id_map({0: "x", 1: "a", 2: "y"})
    with pytest.raises(KeyError, match="no task 'x'"):
        TaskVocabulary(["a"]).id("x")
