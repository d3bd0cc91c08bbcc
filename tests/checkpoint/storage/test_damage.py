"""Damaged files, full disks and killed processes: one clear error, and nothing is ever lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from taskcond.checkpoint import CheckpointError, inspect_checkpoint, load_params, save_params
from taskcond.trees import flatten
from tests.support import FIXTURES

TINY = FIXTURES / "checkpoints/pi05_tiny"
TABLE = "task_embeddings/embedding"


def params(seed: int = 0, size: int = 1 << 14) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((16, size // 16)).astype(np.float32) for name in "abc"}


def same(path: Path, wanted: dict[str, np.ndarray]) -> bool:
    found = flatten(load_params(path))
    return set(found) == set(wanted) and all(
        found[name].tobytes() == x.tobytes() for name, x in wanted.items()
    )


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# Damage.


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_every_file_cut_anywhere_is_found(tmp_path, format):
    save_params(params(), tmp_path / "whole", format=format)
    arrays = [
        name
        for name, data in contents(tmp_path / "whole").items()
        if data and not name.startswith("_CHECKPOINT")  # which nothing needs
    ]
    rng, refused = random.Random(0), set()
    for name in arrays:
        size = (tmp_path / "whole" / name).stat().st_size
        for length in (0, size // 2, size - 1, rng.randrange(size)):
            shutil.rmtree(tmp_path / "cut", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
            os.truncate(tmp_path / "cut" / name, length)
            try:
                # An index leaves earlier versions of itself behind, which nothing reads.
                assert same(tmp_path / "cut", params())
            except CheckpointError as error:
                assert "cut" in str(error)
                refused.add((name, length))
    largest = max(arrays, key=lambda name: (tmp_path / "whole" / name).stat().st_size)
    for name in {largest, "_METADATA", "manifest.ocdbt"} & set(arrays):
        size = (tmp_path / "whole" / name).stat().st_size
        assert {(name, 0), (name, size // 2)} <= refused


def test_a_flipped_bit_is_found_in_what_we_write(tmp_path):
    save_params(params(), tmp_path / "whole")
    rng = random.Random(1)
    for name, data in contents(tmp_path / "whole").items():
        if name.startswith("_"):  # JSON: has no checksum, and a flipped digit may pass
            continue
        for _ in range(6):
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            shutil.rmtree(tmp_path / "cut", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
            (tmp_path / "cut" / name).write_bytes(damaged)
            try:
                assert same(tmp_path / "cut", params())  # in bytes that nothing reads
            except CheckpointError as error:
                assert "cut" in str(error)


@pytest.mark.parametrize("layout", ["released/params", "trained/1000/params"])
def test_a_missing_file_of_a_real_checkpoint_is_found(tmp_path, layout):
    names = [name for name in contents(TINY / layout) if name.startswith(("d/", "ocdbt.", "man"))]
    whole = flatten(load_params(TINY / layout))
    refused = 0
    for name in [*names, "_METADATA"]:
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        shutil.copytree(TINY / layout, tmp_path / "cut")
        (tmp_path / "cut" / name).unlink()
        try:
            assert same(tmp_path / "cut", whole)  # of a process's own, merged into d/ since
        except CheckpointError:
            refused += 1
    assert refused >= 3  # _METADATA, manifest.ocdbt, and the data


def test_empty_and_foreign_directories_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_params(tmp_path / "no")
    with pytest.raises(CheckpointError, match="is empty"):
        load_params(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint.*notes\.txt"):
        load_params(tmp_path)
    with pytest.raises(CheckpointError, match="neither a directory nor"):
        load_params(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../b", "..", ""])
@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_names_never_become_paths(tmp_path, name, format):
    folder = tmp_path / "inner"
    folder.mkdir()
    with contextlib.suppress(CheckpointError, ValueError):
        save_params({"ok": np.ones(2), name: np.ones(3)}, folder / "x", format=format)
    assert {path.name for path in tmp_path.iterdir()} == {"inner"}
    assert {path.name for path in folder.iterdir()} <= {"x"}
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("safetensors", "model.safetensors"),
        ("safetensors", "model.safetensors.index.json"),
        ("orbax", "_METADATA"),
        ("orbax", "manifest.ocdbt"),
        ("orbax", "d/0123456789abcdef"),
        ("orbax", "task_conditioning.json"),
    ],
)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, format, name):
    save_params(params(), tmp_path / "x", format=format)
    (tmp_path / "x" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "x" / name)
    with pytest.raises(CheckpointError, match=rf"not regular files, .*{name}"):
        load_params(tmp_path / "x")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_an_index_of_what_is_no_file_is_refused(tmp_path, make):
    places = {"a": "one.safetensors", "b": "two.safetensors", "c": "three.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    make(tmp_path / "one.safetensors")
    make(tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"not regular files.*one\.safe.*two\.safe"):
        load_params(index)


def test_all_missing_files_of_an_index_are_named(tmp_path):
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match=r"one.safe.* does not.*two.safe"):
        load_params(index)


def test_all_leaves_that_cannot_be_opened_or_read_are_named(tmp_path):
    shutil.copytree(FIXTURES / "formats/orbax_0_11_13_files", tmp_path / "x")
    for leaf in ("params.dense.bias/0", "params.dense.kernel/0.0"):
        (tmp_path / "x" / leaf).unlink()
    with pytest.raises(CheckpointError, match=r"bias is damaged[^\0]*kernel is damaged"):
        inspect_checkpoint(tmp_path / "x")
    for leaf in ("dense.bias", "dense.kernel"):
        (tmp_path / "x" / f"params.{leaf}" / ".zarray").unlink()
    message = r"2 leaves cannot be opened \(params/dense/bias, params/dense/kernel\)"
    with pytest.raises(CheckpointError, match=message):
        load_params(tmp_path / "x")


@contextlib.contextmanager
def without_privileges():
    """Acts as a user who is not root, because root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_no_permission():
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to others
        open_, closed = Path(name, "open"), Path(name, "closed")
        Path(name).chmod(0o755)
        save_params(params(), open_ / "unreadable")
        closed.mkdir()
        for path in (open_ / "unreadable").rglob("*"):
            path.chmod(0 if path.is_file() else 0o755)
        open_.chmod(0o555)
        closed.chmod(0)
        with without_privileges():
            for write_to in (open_ / "x", closed / "x", open_ / "x" / "y"):
                with pytest.raises(CheckpointError, match="no permission to access"):
                    save_params(params(), write_to)
            with pytest.raises(CheckpointError, match="no permission to access"):
                load_params(open_ / "unreadable")
            with pytest.raises(CheckpointError, match="you may not see it"):
                load_params(closed / "x")
        closed.chmod(0o755)
        open_.chmod(0o755)
        assert [path.name for path in open_.iterdir()] == ["unreadable"]


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_a_full_disk(tmp_path, format):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        save_params(params(0), disk / "old", format=format)
        before = contents(disk / "old")
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_params(params(1, 1 << 19), disk / "old", format=format, overwrite=True)
        assert contents(disk / "old") == before
        assert [path.name for path in disk.iterdir()] == ["old"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# Kills.

KILLS = 60
FORKS_MERGES = """
import os, sys
import jax, numpy as np
from taskcond.checkpoint import merge_checkpoint
source, out = sys.argv[1:]
target = {name: jax.ShapeDtypeStruct((16, 1 << 14), np.float32) for name in "abc"}
target["task_embeddings/embedding"] = np.ones((5, 8), np.float32)
for _ in sys.stdin:
    child = os.fork()  # a fresh interpreter for each would take a second to import
    if not child:
        merge_checkpoint(
            source, target, out, keep="task_embeddings/embedding", overwrite=True
        )
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_a_killed_merge_loses_nothing(tmp_path):
    """SIGKILL at random moments: a whole checkpoint under the name, and the sources untouched."""
    source, out = tmp_path / "source", tmp_path / "out"
    save_params(params(3, 1 << 18), source)
    before = contents(source)
    save_params(old := params(4), out)
    new = {**params(3, 1 << 18), TABLE: np.ones((5, 8), np.float32)}
    rng, killed, leftover, span = random.Random(0), 0, 0, 0.0
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS_MERGES, str(source), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for run in range(5 * KILLS):
            if killed == KILLS:
                break
            server.stdin.write("\n")
            server.stdin.flush()
            child, began = int(server.stdout.readline()), time.monotonic()
            if run > 2:  # the first ones are let through, to see how long they take
                time.sleep(rng.uniform(0, span))
                with contextlib.suppress(ProcessLookupError):  # it had finished
                    os.kill(child, signal.SIGKILL)
            killed += os.waitstatus_to_exitcode(int(server.stdout.readline())) < 0
            span = max(span, time.monotonic() - began) if run < 3 else span
            others = {path.name for path in tmp_path.iterdir()} - {"source", "out"}
            leftover += bool(others)
            assert all(name.startswith(".out.") for name in others)
            assert len(others) <= 1  # the next run cleans up after the last one
            assert contents(source) == before
            assert same(out, new) or same(out, old)
            if run % 2 == 0:  # half of them replace other values
                save_params(old, out, overwrite=True)
                assert same(out, old)
    print(f"{killed} of {KILLS} killed, {leftover} in the middle of writing")
    save_params(old, out, overwrite=True)
    assert same(out, old)
    assert killed == KILLS
    assert leftover > KILLS / 10
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
