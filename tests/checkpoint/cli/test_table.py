"""`--table` says which leaf is the task table."""

import json

import numpy as np
import pytest

from taskcond import TaskVocabulary
from taskcond.checkpoint import load_params, open_checkpoint, save_params
from taskcond.checkpoint.cli.main import main
from taskcond.trees import flatten

OTHER = "cond/embedding"


@pytest.fixture
def saved(tmp_path):
    """Writes a model whose conditioner is called `cond`, and names for its tasks."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_params({"dense": np.ones((4, 4)), "cond": {"embedding": rows}}, tmp_path / "x")
    TaskVocabulary(["pour", "wipe", "cut"]).save(tmp_path / "old.json")
    TaskVocabulary(["cut", "pour"]).save(tmp_path / "new.json")
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_inspect_shows_the_table(capsys, saved):
    assert run("inspect", saved / "x", "--json") == 0
    assert json.loads(capsys.readouterr().out)["table"] is None
    assert run("inspect", saved / "x", "--table", OTHER, "--json") == 0
    assert json.loads(capsys.readouterr().out)["table"] == [OTHER, [3, 4]]


def test_tasks_changes_the_table_and_records_its_path(capsys, saved):
    vocabularies = ("--vocabulary", saved / "new.json", "--source-vocabulary", saved / "old.json")
    assert run("tasks", saved / "x", saved / "y", *vocabularies) == 1
    assert "give it with table=... (--table PATH)" in capsys.readouterr().err
    assert run("tasks", saved / "x", saved / "y", *vocabularies, "--table", OTHER) == 0
    rows = load_params(saved / "y")["cond"]["embedding"]
    np.testing.assert_array_equal(rows, np.arange(12).reshape(3, 4)[[2, 0]])
    assert open_checkpoint(saved / "y").table == OTHER
    assert run("tasks", saved / "y", saved / "z", "--add", "peel=cut") == 0
    np.testing.assert_array_equal(load_params(saved / "z")["cond"]["embedding"], rows[[0, 1, 0]])


def test_merge_adds_the_table_where_the_model_looks_for_it(saved):
    tree = {"params": {"dense": np.ones((4, 4))}, "batch_stats": {"mean": np.ones(4)}}
    save_params(tree, saved / "flax")
    new_table = ("--num-tasks", 2, "--features", 4, "--new-rows", "zeros")
    assert run("merge", saved / "flax", saved / "y", *new_table) == 0
    wanted = {"params/dense", "batch_stats/mean", "params/task_embeddings/embedding"}
    assert set(flatten(load_params(saved / "y"))) == wanted
    assert run("merge", saved / "flax", saved / "z", *new_table, "--table", "params/cond/rows") == 0
    checkpoint = open_checkpoint(saved / "z")
    assert (checkpoint.table, checkpoint.leaves["params/cond/rows"].shape) == (
        "params/cond/rows", (2, 4),
    )  # fmt: skip


def test_merge_remaps_the_table(saved):
    arguments = ("--table", OTHER, "--num-tasks", 2, "--rows=2,0", "--vocabulary")
    assert run("merge", saved / "x", saved / "y", *arguments, saved / "new.json") == 0
    checkpoint = open_checkpoint(saved / "y")
    assert checkpoint.conditioning is not None
    assert (checkpoint.table, checkpoint.conditioning.vocabulary) == (
        OTHER, TaskVocabulary(["cut", "pour"]),
    )  # fmt: skip
    rows = load_params(saved / "y")["cond"]["embedding"]
    np.testing.assert_array_equal(rows, np.arange(12).reshape(3, 4)[[2, 0]])
