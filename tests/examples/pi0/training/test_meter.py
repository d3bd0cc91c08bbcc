"""What the loop says of its data: of waiting for it, and of numbers that do not fit."""

import dataclasses
import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from examples.pi0.training import loop
from examples.pi0.training.log import RunLog, memory, read_metrics
from examples.pi0.training.loss import is_valid
from tests.support import as_untyped_code


@pytest.fixture
def run(make_config, tmp_path):
    config = make_config("meter", log_interval=1, runs_dir=str(tmp_path))
    config.folder.mkdir(parents=True)
    console = Console(file=io.StringIO(), width=200)
    with RunLog(config.folder, config, 0, console) as log:
        yield SimpleNamespace(plan=SimpleNamespace(config=config), log=log, console=console)


def batch():
    numbers = np.arange(4)
    return {"position": numbers, "episode_index": numbers, "frame_index": numbers}


def measure(run, wait, work):
    with as_untyped_code():
        meter = loop._Meter(run)
        for number in range(4):
            with meter.waiting():
                time.sleep(wait)
            time.sleep(work)
            meter.add(number, {"loss": 1.0, "grad_norm": 1.0}, batch())
        meter.finish()
    return run.console.file.getvalue()


def test_waiting_for_data_is_said_and_counted(run):
    text = measure(run, wait=0.05, work=0.01)
    assert "Training waits for data in" in text
    assert "--data.num_workers" in text
    shares = [row["data_wait_share"] for row in read_metrics(run.plan.config.folder)]
    assert min(shares[:-1]) > 0.5  # the last step is read at once, without waiting


def test_data_that_comes_in_time_is_not_complained_of(run):
    assert "waits" not in measure(run, wait=0.0, work=0.02)


def test_numbers_far_beyond_the_statistics_stop_the_run(make_config, tmp_path):
    config = dataclasses.replace(make_config("far"), runs_dir=str(tmp_path))
    run = SimpleNamespace(plan=SimpleNamespace(config=config))
    for wrong in (21.0, np.nan):
        state = np.zeros((4, 6), np.float32)
        state[2, 3] = wrong
        with as_untyped_code(), pytest.raises(ValueError, match=r"state of .*--data.stats dataset"):
            loop._look_at(run, {"state": state, "actions": np.zeros((4, 4, 6))})


def test_a_batch_without_a_mask_of_padding_is_an_error():
    with pytest.raises(KeyError, match="action_is_pad"):
        is_valid({"actions": np.zeros((1, 4, 6)), "action_dims": np.array([6])})


def test_memory_of_the_host_is_measured():
    assert 0.05 < memory()["memory/host_gib"] < 500
