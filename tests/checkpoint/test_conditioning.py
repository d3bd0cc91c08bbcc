"""The meaning of a task table survives, and contradictions are refused."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest

from taskcond import TaskVocabulary
from taskcond.checkpoint import (
    CheckpointError,
    TaskConditioning,
    change_tasks,
    load_params,
    merge_checkpoint,
    open_checkpoint,
    save_params,
)
from tests.support.checkpoints import (
    NAMES,
    small,
    with_tasks,
)


def test_conditioning_survives_a_file(tmp_path):
    about = TaskConditioning(3, 4, 0.5, "add", NAMES, (5, 0, None))
    about.save(tmp_path)
    assert TaskConditioning.load(tmp_path) == about
    assert TaskConditioning.load(tmp_path / "task_conditioning.json") == about
    assert TaskVocabulary.load(tmp_path / "task_conditioning.json") == NAMES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["a", "b"]}, "vocabulary has 2 tasks, the table 3"),
        ({"tasks": ["a", "a", "b"]}, r"occur more than once: \['a'\]"),
        ({"frames_seen": [1, 2]}, "frames_seen has 2 tasks"),
        ({"frames_seen": [1, 2, -3]}, "frames_seen.2 is -3, but must be greater"),
        ({"frames_seen": [1, 2, 0.5]}, "frames_seen.2 is 0.5, but must be a valid integer"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": "big"}, "malformed"),
        ({"num_tasks": -3}, "num_tasks is -3, but must be greater"),
        ({"num_tasks": True}, "num_tasks is True, but must be a valid integer"),
    ],
)
def test_malformed_conditioning_is_refused(tmp_path, change, message):
    with_tasks(tmp_path / "x")
    file = tmp_path / "x" / "task_conditioning.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"tasks": []}', '{"num_tasks": 3}'])
def test_garbage_for_conditioning_is_refused(tmp_path, text):
    with_tasks(tmp_path / "x")
    (tmp_path / "x" / "task_conditioning.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"task_conditioning\.json is malformed"):
        load_params(tmp_path / "x")


def test_conditioning_that_disagrees_with_the_table_is_an_error(tmp_path):
    with_tasks(tmp_path / "x")
    TaskConditioning(4, 4).save(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"about a table of \[4, 4\].*has the shape \[3, 4\]"):
        load_params(tmp_path / "x")
    save_params({"a": np.ones(1)}, tmp_path / "y")
    TaskConditioning(4, 4).save(tmp_path / "y")
    with pytest.raises(CheckpointError, match="no task table"):
        load_params(tmp_path / "y")
    with pytest.raises(CheckpointError, match="about a table"):
        save_params(small(3), tmp_path / "z", conditioning=TaskConditioning(2, 4))


def test_another_scale_fusion_or_vocabulary_is_an_error(tmp_path):
    with_tasks(tmp_path / "x", scale=0.5, fusion="add")
    load_params(tmp_path / "x", scale=0.5, fusion="add", vocabulary=NAMES)
    with pytest.raises(CheckpointError) as raised:
        load_params(tmp_path / "x", scale=1.0, fusion="film", vocabulary=TaskVocabulary([]))
    for part in ("scale is 0.5 in the checkpoint, 1.0", "'film'", "has 3 tasks, the model 0"):
        assert part in str(raised.value)
    other = TaskVocabulary(["pour", "cut", "wipe"])
    with pytest.raises(CheckpointError, match="task 1 is 'wipe' in the checkpoint, 'cut'"):
        load_params(tmp_path / "x", vocabulary=other)


def test_tasks_that_were_never_trained_are_named(tmp_path):
    with_tasks(tmp_path / "x", frames=(5, 0, None))
    with pytest.warns(UserWarning, match=r"never trained: \['wipe'\]"):
        load_params(tmp_path / "x")


def test_without_the_file_everything_still_loads(tmp_path):
    save_params(small(), tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_params(tmp_path / "x", scale=3.0, vocabulary=NAMES)


def test_the_path_of_a_table_with_another_name_is_kept(tmp_path):
    tree = {"cond": {"embedding": small(3)["task_embeddings"]["embedding"]}}
    about = TaskConditioning(3, 4, vocabulary=NAMES)
    with pytest.raises(CheckpointError, match=r"no task table .*table=\.\.\. \(--table PATH\)"):
        save_params(tree, tmp_path / "x", conditioning=about)
    about = dataclasses.replace(about, table="cond/embedding")
    save_params(tree, tmp_path / "x", conditioning=about)
    assert open_checkpoint(tmp_path / "x").conditioning == about
    assert open_checkpoint(tmp_path / "x").table == "cond/embedding"
    assert "table" not in json.loads(dataclasses.replace(about, table=None).to_json())
    change_tasks(tmp_path / "x", tmp_path / "y", TaskVocabulary(["cut", "pour"]))
    assert open_checkpoint(tmp_path / "y").table == "cond/embedding"
    rows = tree["cond"]["embedding"][[2, 0]]
    np.testing.assert_array_equal(load_params(tmp_path / "y")["cond"]["embedding"], rows)
    merge_checkpoint(
        tmp_path / "y",
        {"task_embeddings": {"embedding": rows}},
        tmp_path / "z",
        rename={"cond/(.*)": r"task_embeddings/\1"},
    )
    moved = open_checkpoint(tmp_path / "z").conditioning
    assert moved is not None
    assert (moved.table, moved.vocabulary) == (None, TaskVocabulary(["cut", "pour"]))


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with_tasks(tmp_path / "x")
    with pytest.raises(
        CheckpointError, match=r"no leaf 'cond'.*but \['task_embeddings/embedding'\]"
    ):
        load_params(tmp_path / "x", table="cond")
    assert load_params(tmp_path / "x", table="task_embeddings/embedding")
