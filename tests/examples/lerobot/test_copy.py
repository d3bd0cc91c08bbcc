"""The folder of the reader can be copied into another project under another name."""

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "examples/lerobot"


def test_a_copy_works_under_another_name(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "reader", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import reader; print(reader.LeRobotData.__module__, reader.write_dataset.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "reader.source reader.write\n"
