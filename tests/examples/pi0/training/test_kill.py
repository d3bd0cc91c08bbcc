"""A run that is killed, and goes on."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np

from examples.pi0.training.configs import to_json
from examples.pi0.training.log import read_metrics
from tests.support.runs import content, run


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    finished, make_config, tmp_path, compiled_once
):
    config = make_config("killed", ema_decay=0.9)
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    cache = {
        "JAX_COMPILATION_CACHE_DIR": compiled_once,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "examples.pi0.train", "--config", str(file)]
    with subprocess.Popen(
        command,
        env={**os.environ, **cache},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not (config.folder / "3").exists():
            time.sleep(0.01)  # the checkpoint of step 3 appears when it is complete
        os.killpg(process.pid, signal.SIGKILL)
    assert run(dataclasses.replace(config, resume=True)) == 6
    whole, again = (content(c.folder, 6) for c in (finished, config))
    assert whole.keys() == again.keys()
    for path, value in whole.items():
        np.testing.assert_array_equal(value, again[path], err_msg=path)
    steps = [row["step"] for row in read_metrics(config.folder) if "loss" in row]
    assert steps == [2, 4, 6]  # none twice, none lost
