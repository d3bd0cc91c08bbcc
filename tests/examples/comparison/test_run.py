"""The before-and-after run, and its command line."""

import dataclasses
import itertools
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from examples.comparison.cups import write_demo_dataset
from examples.comparison.experiment import vector_loader
from examples.comparison.run import hold_out, main, run
from examples.lerobot import LeRobotData
from taskcond import TaskVocabulary, merge_into
from taskcond.checkpoint import Checkpoint
from tests.support.policies import TINY, Tiny, interrupted


def test_without_ids_a_policy_is_at_chance_and_everything_is_written(data, tmp_path):
    before, after = run(TINY, data, tmp_path)
    assert before.accuracy == pytest.approx(1 / 3)
    np.testing.assert_allclose(before.matrix, before.matrix.mean(1, keepdims=True).repeat(3, 1))
    assert before.matrix.sum() == pytest.approx(after.matrix.sum()) == 64
    assert TaskVocabulary.load(tmp_path / "tasks.json") == data.vocabulary
    assert (tmp_path / "confusion.png").stat().st_size > 10_000
    restored = ocp.PyTreeCheckpointer().restore((tmp_path / "conditioned" / "params").resolve())
    report = merge_into(Tiny(3, nnx.Rngs(9)), restored)
    assert not report.kept
    assert not report.dropped
    conditioning = Checkpoint(tmp_path / "conditioned").conditioning
    assert conditioning is not None
    assert conditioning.vocabulary == data.vocabulary
    assert sum(n or 0 for n in conditioning.frames_seen or ()) == 3 * 16  # steps, batch


@pytest.mark.parametrize(
    ("stage", "results", "kept"),
    [
        (0, 0, ["base"]),
        (1, 0, ["base", "without"]),
        (2, 1, ["base", "without", "conditioned"]),
    ],
)
def test_ctrl_c_leaves_a_checkpoint_that_loads(data, tmp_path, stage, results, kept):
    calls = itertools.count()

    def loader(*args, **kwargs):
        iterator = vector_loader(*args, **kwargs)
        evaluating = "num_epochs" in kwargs
        return iterator if evaluating or next(calls) != stage else interrupted(iterator, 1)

    confusions = run(dataclasses.replace(TINY, make_loader=loader), data, tmp_path)
    assert len(confusions) == results
    for name in kept:
        restored = ocp.PyTreeCheckpointer().restore((tmp_path / name / "params").resolve())
        num_tasks = 3 if name == "conditioned" else 0
        merge_into(Tiny(num_tasks, nnx.Rngs(1)), restored)


def test_data_that_cannot_be_split_is_used_twice(tmp_path):
    root = write_demo_dataset(tmp_path / "data", num_tasks=2, episodes_per_task=1, video=False)
    data = LeRobotData(root)
    assert hold_out(data) == (data, data)


def test_the_command_line_takes_a_dataset_and_a_folder(data, tmp_path, monkeypatch):
    seen = []

    def make_experiment(dataset, out):
        seen.append((dataset.root, dataset.horizon, out))
        return TINY

    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["demo", "--data", str(data.root), "--out", str(out)])
    main(make_experiment, name="demo", horizon=8)
    assert seen == [(data.root, 8, out)]
    assert (out / "confusion.png").exists()


def test_an_interrupted_run_exits_as_a_shell_does_after_ctrl_c(data, tmp_path, monkeypatch):
    def loader(*args, **kwargs):
        return interrupted(vector_loader(*args, **kwargs), 1)

    experiment = dataclasses.replace(TINY, make_loader=loader)
    argv = ["demo", "--data", str(data.root), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as exit:
        main(lambda data, out: experiment, name="demo", horizon=8)
    assert exit.value.code == 130
