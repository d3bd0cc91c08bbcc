"""TaskVocabulary: names identify tasks."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcond import NULL_TASK, TaskVocabulary
from taskcond.data import read_lerobot_tasks


def dataset(root, rows):
    (root / "meta").mkdir()
    lines = [json.dumps({"task_index": i, "task": name}) + "\n" for i, name in rows]
    (root / "meta" / "tasks.jsonl").write_text("".join(lines))
    return root


def test_a_dataset_gives_its_tasks_in_the_order_of_their_indices(tmp_path):
    root = dataset(tmp_path, [(2, "c"), (0, "a"), (1, "b")])
    assert TaskVocabulary.from_lerobot(root).names == ("a", "b", "c")


def test_gaps_in_the_indices_are_bridged_by_name(tmp_path):
    root = dataset(tmp_path, [(2, "a"), (5, "b")])
    vocabulary = TaskVocabulary.from_lerobot(root)
    assert vocabulary.id_map(dict(read_lerobot_tasks(root))) == {2: 0, 5: 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(0, "a"), (1, "a"), (2, "b"), (3, "b")],
            r"'a' is task_index \[0, 1\].*'b' is task_index \[2, 3\]",
        ),
        ([(0, "a"), (0, "b")], r"task_index 0 is \['a', 'b'\]"),
    ],
)
def test_ambiguous_tasks_are_pointed_out(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        TaskVocabulary.from_lerobot(dataset(tmp_path, rows))


def test_no_metadata_says_which_folder_is_meant(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither tasks.jsonl"):
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
