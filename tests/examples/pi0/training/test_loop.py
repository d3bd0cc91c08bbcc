"""Whole runs: stopped and resumed, diverged, and in a folder that is not theirs."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
from rich.console import Console

from examples.pi0.beside import find_beside, load_transform
from examples.pi0.training import checkpoints, loop
from examples.pi0.training.configs import CONFIG_FILE
from examples.pi0.training.folder import run_folder
from examples.pi0.training.log import read_metrics
from examples.pi0.training.loop import DivergedError, train
from examples.pi0.training.plan import make_plan
from taskcond.checkpoint import load_params, open_checkpoint
from tests.support.runs import content, run


def test_a_run_leaves_what_a_robot_needs(finished):
    folder = finished.folder
    step = folder / "6"
    about = open_checkpoint(folder).conditioning
    assert about.vocabulary.names == ("reach cup 0", "reach cup 1", "reach cup 2")
    assert sum(about.frames_seen) == 6 * 4
    beside = find_beside(step / "params", "inputs.json")
    transform = load_transform(beside, beside / "tokenizer.model")
    assert transform.config.num_tasks == 3
    summary = (folder / "README.md").read_text()
    assert summary.count("reach cup") == 3
    assert "with the prompt of another task" in summary
    assert {p.name for p in folder.iterdir()} >= {"losses.png", "first_batch.png", CONFIG_FILE}


def test_the_log_has_losses_by_task_before_and_after(finished):
    rows = read_metrics(finished.folder)
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6]
    found = [row["val_ema"] for row in rows if "val_ema" in row]
    assert [set(v) for v in found] == [{"all", "reach cup 0", "reach cup 1", "reach cup 2"}] * 2
    assert {"learning_rate", "grad_norm", "data_wait_share", "padded_share"} <= set(rows[1])


def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(
    finished, make_config, monkeypatch
):
    config = make_config("stopped", ema_decay=0.9)
    add = loop._Meter.add

    def stop(meter, number, *rest):
        add(meter, number, *rest)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Meter, "add", stop)
        assert run(config) == 2
    assert run(dataclasses.replace(config, resume=True)) == 6
    whole, resumed = (content(c.folder, 6) for c in (finished, config))
    assert whole.keys() == resumed.keys()
    assert any("opt_state" in path for path in whole)
    for path, value in whole.items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)
    losses = [
        [r["loss"] for r in read_metrics(c.folder) if "loss" in r] for c in (finished, config)
    ]
    assert losses[0] == losses[1]


def test_a_run_that_exists_is_neither_overwritten_nor_changed(finished):
    with pytest.raises(ValueError, match="Pass --resume to go on with it, --overwrite"):
        make_plan(finished)
    other = dataclasses.replace(finished, seed=1, resume=True, batch_size=2)
    with pytest.raises(ValueError, match=r"batch_size was 4, and is 2\n  - seed was 42, and is 1"):
        make_plan(other)


def test_resuming_nothing_is_an_error(make_config):
    with pytest.raises(ValueError, match="there is no run in"):
        make_plan(make_config("nothing", resume=True))


def test_foreign_files_are_not_deleted(make_config):
    config = make_config("foreign", overwrite=True)
    config.folder.mkdir(parents=True)
    (config.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not of a run"):
        make_plan(config)


def test_a_folder_belongs_to_one_process(make_config):
    config = make_config("locked")
    second = run_folder(dataclasses.replace(config, resume=True))
    with (
        run_folder(config),
        pytest.raises(RuntimeError, match="in use by another process"),
        second,
    ):
        raise AssertionError


def test_a_loss_that_is_not_finite_stops_with_step_and_frames(make_config, monkeypatch):
    config = make_config("diverged")
    plan = make_plan(config)
    batches = plan.data.train_batches

    def broken(*args, **kwargs):
        for number, batch in enumerate(batches(*args, **kwargs)):
            if number == 4:
                batch["state"] = np.full_like(batch["state"], np.nan)
                batch["actions"] = np.full_like(batch["actions"], np.nan)
            yield batch

    data = dataclasses.replace(plan.data)
    object.__setattr__(data, "train_batches", broken)
    with pytest.raises(DivergedError, match=r"step 4 has loss nan.*step 3.*\(episode, frame\)"):
        train(dataclasses.replace(plan, data=data), Console(quiet=True))
    assert open_checkpoint(config.folder).path
    assert [p.name for p in config.folder.iterdir() if p.name.isdecimal()] == ["3"]


def test_a_full_disk_harms_no_earlier_checkpoint(make_config, monkeypatch):
    config = make_config("full")
    usage = checkpoints.shutil.disk_usage
    calls = []

    def full(path):
        calls.append(path)
        return usage(path) if len(calls) == 1 else usage(path)._replace(free=1000)

    monkeypatch.setattr(checkpoints.shutil, "disk_usage", full)
    with pytest.raises(OSError, match="0.0 GiB left.*resume"):
        run(config)
    assert load_params(config.folder / "3" / "params")


def test_the_settings_of_a_run_can_be_read_again(finished):
    content = json.loads((finished.folder / CONFIG_FILE).read_text())
    assert content["exp_name"] == "finished"
    assert content["model"]["num_tasks"] == 3
