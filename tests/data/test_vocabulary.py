"""TaskVocabulary: names identify tasks."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcond import NULL_TASK, TaskVocabulary
from taskcond.data import read_lerobot_tasks
from tests.support import as_untyped_code, write_tasks


def test_a_dataset_gives_its_tasks_in_the_order_of_their_indices(tmp_path):
    root = write_tasks(tmp_path, [(2, "c"), (0, "a"), (1, "b")])
    assert TaskVocabulary.from_lerobot(root).names == ("a", "b", "c")


def test_gaps_in_the_indices_are_bridged_by_name(tmp_path):
    root = write_tasks(tmp_path, [(2, "a"), (5, "b")])
    vocabulary = TaskVocabulary.from_lerobot(root)
    assert vocabulary.id_map(dict(read_lerobot_tasks(root))) == {2: 0, 5: 1}
    assert vocabulary.id_map(vocabulary) == {2: 0, 5: 1}
    assert TaskVocabulary(["b", "a"]).id_map(vocabulary) == {2: 1, 5: 0}


def test_only_a_vocabulary_of_one_dataset_knows_its_indices(tmp_path):
    vocabulary = TaskVocabulary.from_lerobot(write_tasks(tmp_path, [(2, "a"), (5, "b")]))
    assert vocabulary.dataset_tasks == {2: "a", 5: "b"}
    assert vocabulary == TaskVocabulary(["a", "b"])
    both = vocabulary + TaskVocabulary(["c"])
    assert both.dataset_tasks is None
    assert TaskVocabulary(["a", "b"]).dataset_tasks is None
    vocabulary.save(tmp_path / "tasks.json")
    assert TaskVocabulary.load(tmp_path / "tasks.json").dataset_tasks is None


def test_maps_take_one_look_at_each_name():
    class Name(str):
        compared = 0

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    count = 2000
    old = TaskVocabulary([Name(f"task {i}") for i in range(count)])
    new = TaskVocabulary([Name(f"task {i}") for i in reversed(range(count))])
    Name.compared = 0
    assert new.id_map(old) == {i: count - 1 - i for i in range(count)}
    assert new.rows_from(old) == list(reversed(range(count)))
    assert Name.compared < 20 * count


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
        TaskVocabulary.from_lerobot(write_tasks(tmp_path, rows))


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
    with pytest.raises(ValueError, match="lacks 'x', 'y'"):
        TaskVocabulary(["a"]).id_map({0: "x", 1: "a", 2: "y"})
    with pytest.raises(KeyError, match=r"no task 'wip' \(did you mean 'wipe'\?\)"):
        TaskVocabulary(["wipe", "pour"]).id("wip")


def test_names_and_ids_are_looked_up_one_by_one_or_all_at_once():
    vocabulary = TaskVocabulary(["pour", "wipe", "<cut>"])
    assert [vocabulary[np.int32(i)] for i in vocabulary.ids(["wipe", "pour"])] == ["wipe", "pour"]
    ids = vocabulary.ids(["<cut>", None])
    assert (ids.tolist(), ids.dtype) == ([2, NULL_TASK], np.int32)
    assert vocabulary.ids([]).shape == (0,)
    with pytest.raises(KeyError, match=r"'wip' \(did you mean 'wipe'\?\), 'fly'"):
        vocabulary.ids(["wip", "pour", "fly"])
    with pytest.raises(TypeError, match="pass a list, or call id\\('pour'\\)"):
        vocabulary.ids("pour")


@pytest.mark.parametrize("wrong", [-1, 3, -3])
def test_an_id_that_is_no_task_has_no_name(wrong):
    with pytest.raises(IndexError, match=f"no task {wrong}; its ids are 0 to 2"):
        TaskVocabulary(["pour", "wipe", "cut"])[wrong]


def test_a_vocabulary_shows_ids_beside_names():
    vocabulary = TaskVocabulary(["pour", "<cut>"])
    assert repr(vocabulary) == "<2 tasks: 0 'pour', 1 '<cut>'>"
    assert "<td>1</td><td>&lt;cut&gt;</td>" in vocabulary._repr_html_()
    assert repr(TaskVocabulary(map(str, range(50)))).endswith("19 '19' and 30 more>")


@pytest.mark.parametrize("wrong", [0, -1, ["a"], None])
def test_what_is_no_name_is_refused_as_such(wrong):
    vocabulary = TaskVocabulary(["a", "b"])
    with as_untyped_code():
        with pytest.raises(TypeError, match="looked up by its name, a string"):
            vocabulary.id(wrong)
        if wrong is not None:
            with pytest.raises(TypeError, match="looked up by its name, a string"):
                vocabulary.ids(["a", wrong])
