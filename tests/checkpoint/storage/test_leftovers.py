"""Leftovers of dead processes are removed, and nothing of a living one."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from taskcond.checkpoint import load_params, save_params
from taskcond.checkpoint.storage import leftovers

BOOT = leftovers._boot()


def leave(folder: Path, name: str, boot: bytes | None, age: float = 0.0) -> Path:
    """Makes what a killed process has left."""
    place = folder / name
    (place / "new").mkdir(parents=True)
    (place / "new" / "part").write_text("data")
    if boot is not None:
        (place / "lock").write_bytes(boot)
    then = time.time() - age
    for path in (*place.rglob("*"), place):
        os.utime(path, (then, then))
    return place


def test_only_leftovers_of_the_dead_are_removed(tmp_path):
    hour, day = 3600, 24 * 3600
    removed = [
        leave(tmp_path, ".x.aaaaaaaa.partial", BOOT),
        leave(tmp_path, ".x.bbbbbbbb.partial", b"another boot", day + hour),
        leave(tmp_path, ".x.cccccccc.partial", b""),
    ]
    (tmp_path / ".x.dddddddd.partial").mkdir()  # killed before it locked anything
    kept = [
        leave(tmp_path, ".x.eeeeeeee.partial", b"another boot", day - hour),
        leave(tmp_path, ".x.ffffffff.partial", None, 2 * day),
        leave(tmp_path, ".x.y.gggggggg.partial", BOOT),
        leave(tmp_path, ".x.partial", BOOT),
        alive := leave(tmp_path, ".x.hhhhhhhh.partial", BOOT),
    ]
    with (alive / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        save_params({"a": np.ones(2)}, tmp_path / "x")
    assert not [path for path in removed if path.exists()]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["x", *(path.name for path in kept)]
    )
    save_params({"a": np.ones(2)}, tmp_path / "x", overwrite=True)
    assert not alive.exists()


def test_what_was_moved_away_is_restored(tmp_path):
    save_params({"a": np.ones(2)}, tmp_path / "x")
    place = leave(tmp_path, ".x.aaaaaaaa.partial", BOOT)
    (tmp_path / "x").rename(place / "old")
    with pytest.raises(ValueError, match="overwrite=True"):
        save_params({"a": np.zeros(2)}, tmp_path / "x")
    assert load_params(tmp_path / "x")["a"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_killed_process_of_another_host_name_leaves_nothing_for_long(tmp_path):
    code = (
        "import os, pathlib, signal, sys\n"
        "from taskcond.checkpoint.storage.leftovers import Workplace\n"
        "Workplace(pathlib.Path(sys.argv[1])).new.mkdir()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    assert subprocess.run(command, check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    save_params({"a": np.ones(2)}, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    place = leave(tmp_path, ".x.aaaaaaaa.partial", BOOT)
    monkeypatch.setattr("taskcond.checkpoint.storage.leftovers.fcntl.flock", refuse)
    save_params({"a": np.ones(2)}, tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x", place.name}
