"""The processes of a pool."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import time
from examples.metaworld.processes import Pool

def work(job):
    print("works", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    with Pool(1) as pool:
        pool.map(work, [0], "")
"""


@pytest.mark.parametrize("signal", ["kill", "terminate"])
def test_they_end_with_their_parent_however_that_ends(tmp_path, signal):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([os.getcwd(), *sys.path])
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        while "works" not in parent.stdout.readline():
            pass
        getattr(parent, signal)()
        parent.communicate(timeout=20)  # the output ends with the last process that has it
