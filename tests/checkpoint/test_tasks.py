"""Tables of tasks grow, shrink and are reordered."""

from __future__ import annotations

import numpy as np
import pytest

from taskcond import TaskVocabulary
from taskcond.checkpoint import (
    CheckpointError,
    TaskConditioning,
    change_tasks,
    load_params,
    save_params,
)
from taskcond.trees import flatten
from tests.support.checkpoints import (
    NAMES,
    TABLE,
    TASKS,
    TINY,
    assert_same,
    golden,
    load_ignoring_warnings,
    small,
    with_tasks,
)


def test_names_of_tasks_go_before_numbers_and_words(tmp_path):
    about = TaskConditioning(3, 4, vocabulary=TaskVocabulary(["1", "0", "zeros"]))
    tree = small(3)
    save_params(tree, tmp_path / "x", conditioning=about)
    starts = {"like 0": "0", "like zeros": "zeros", "mean": "mean"}
    vocabulary = TaskVocabulary(["1", "0", "zeros", *starts])
    change_tasks(tmp_path / "x", tmp_path / "y", vocabulary, starts=starts)
    old, new = (flatten(load_params(tmp_path / name))[TABLE] for name in "xy")
    np.testing.assert_array_equal(new[:5], old[[0, 1, 2, 1, 2]])
    np.testing.assert_allclose(new[5], old.mean(0), rtol=1e-6)


def test_tasks_grow_shrink_and_reorder_by_name(tmp_path):
    table = with_tasks(tmp_path / "x", scale=0.5)
    vocabulary = TaskVocabulary(["fold", "cut", "stack", "pour", "sort"])
    change_tasks(
        tmp_path / "x", tmp_path / "y", vocabulary, starts={"stack": "wipe", "sort": "mean"}
    )
    loaded = load_ignoring_warnings(tmp_path / "y")
    expected = [np.zeros(4), table[2], table[1], table[0], table.mean(0)]
    np.testing.assert_allclose(loaded["task_embeddings"]["embedding"], expected, rtol=1e-6)
    assert_same(loaded["dense"], small()["dense"])
    about = TaskConditioning.load(tmp_path / "y")
    assert about == TaskConditioning(5, 4, 0.5, None, vocabulary, (0, 9, 0, 5, 0))
    change_tasks(tmp_path / "y", tmp_path / "z", TaskVocabulary(["cut"]))
    assert load_params(tmp_path / "z")["task_embeddings"]["embedding"].tolist() == [[*table[2]]]


def test_tasks_change_by_number_without_names(tmp_path):
    change_tasks(TASKS / "released", tmp_path / "x", rows=np.array([6, -1, 0]), new_rows=5)
    table = golden("pi05_tasks_f32")[TABLE]
    loaded = load_ignoring_warnings(tmp_path / "x")
    assert_same(loaded, {**golden("pi05_tasks_f32"), TABLE: table[[6, 5, 0]]})
    assert TaskConditioning.load(tmp_path / "x").frames_seen == (None, 0, None)


def test_from_22_to_50_tasks(tmp_path):
    old = TaskVocabulary(f"task {i}" for i in range(22))
    table = np.random.default_rng(0).standard_normal((22, 8)).astype(np.float32)
    save_params({"task_embeddings": {"embedding": table}}, tmp_path / "x")
    new = TaskVocabulary(f"task {i}" for i in reversed(range(50)))
    change_tasks(tmp_path / "x", tmp_path / "y", new, source_vocabulary=old, new_rows="mean")
    loaded = load_ignoring_warnings(tmp_path / "y")["task_embeddings"]["embedding"]
    np.testing.assert_array_equal(loaded[::-1][:22], table)
    np.testing.assert_allclose(loaded[:28], np.tile(table.mean(0), (28, 1)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, CheckpointError, "no names to go by"),
        ({"rows": [0, 9]}, ValueError, r"\[9\] out of range"),
        ({"rows": [0, -1], "new_rows": "ones"}, ValueError, "cannot start from 'ones'"),
        ({"rows": [0, -1], "new_rows": 7}, ValueError, "cannot start from 7"),
        (
            {"rows": [0], "starts": {"x": 1}},
            ValueError,
            r"starts has \['x'\], but may only",
        ),
        ({"vocabulary": NAMES, "source_vocabulary": NAMES}, CheckpointError, "has 3 tasks"),
    ],
)
def test_impossible_tables_are_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        change_tasks(TASKS / "released", tmp_path / "x", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_contradicting_vocabularies_are_refused(tmp_path):
    with_tasks(tmp_path / "x")
    other = TaskVocabulary(["wipe", "pour", "cut"])
    with pytest.raises(CheckpointError, match="task 0 is 'pour' in the checkpoint, 'wipe'"):
        change_tasks(tmp_path / "x", tmp_path / "y", NAMES, source_vocabulary=other)
    with pytest.raises(CheckpointError, match="no task table"):
        change_tasks(TINY / "released", tmp_path / "y", rows=[0])
