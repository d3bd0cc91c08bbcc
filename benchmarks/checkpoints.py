"""What do checkpoint operations cost at full size, in time and memory?

A π0.5 tree of random float32 (3.35 billion parameters, 13.4 GB) is written in the layout of Orbax,
with one Zstandard chunk per leaf. It is then merged into a tree with 50 tasks; two such trees are
combined; and one is loaded. Each step is a process of its own, of which the peak resident memory is
measured. Times are given relative to `cp` and a sync of the same input, in the same run. Every step
starts with nothing in the page cache.

    python -m benchmarks.checkpoints                  # 60 GB of disk, ten minutes
    python -m benchmarks.checkpoints --scale 0.05     # the same, smaller: leading axes cut
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import tyro

from benchmarks.measuring.processes import run_python


def main(scale: float = 1.0, directory: Path | None = None) -> str:
    """Prints and returns the table.

    Args:
        scale: The factor on the sizes; 1.0 is the whole π0.5.
        directory: A folder with room for 60 GB.
    """
    with tempfile.TemporaryDirectory(dir=directory, prefix="taskcond-bench-") as name:
        table = _run_all(Path(name), scale)
    print(table)
    return table


def _run_all(root: Path, scale: float) -> str:
    a, b, copy, out = (root / name for name in ("a", "b", "copy", "out"))
    size = _in_process("write", a, scale, 0)["bytes"]
    cp_one = _cp(copy, a)
    merged = _in_process("merge", a, out, scale)
    loaded = _in_process("load", out)
    shutil.rmtree(out)
    _in_process("write", b, scale, 1)
    cp_two = _cp(copy, a, b)
    combined = _in_process("combine", a, b, out)
    rows = [
        ("merge into 50 tasks", merged, cp_one),
        ("combine two specialists, mean", combined, cp_two),
        ("load for training, CPU", loaded, cp_one),
    ]
    lines = [
        f"Parameters: {size / 2**30:.2f} GiB in float32; {os.cpu_count()} cores. `cp` and a sync "
        f"take {cp_one:.1f} s for one checkpoint, {cp_two:.1f} s for two.",
        "",
        "| | seconds | over `cp` of what it reads | of one | peak resident GiB | over parameters |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for what, result, cp in rows:
        seconds, peak = result["seconds"], result["peak"]
        lines.append(
            f"| {what} | {seconds:.1f} | {seconds / cp:.2f} | {seconds / cp_one:.2f} "
            f"| {peak / 2**30:.2f} | {peak / size:.2f} |"
        )
    return "\n".join(lines)


def _in_process(step: str, *arguments: Path | float) -> dict[str, float]:
    """Runs a step of `benchmarks.checkpoint_steps`, and returns what it measured."""
    for path in arguments:
        if isinstance(path, Path):
            _forget(path)
    module = "benchmarks.checkpoint_steps"
    return json.loads(run_python("-m", module, step, *map(str, arguments)))


def _cp(copy: Path, *sources: Path) -> float:
    """Copies folders, and returns the seconds that this and a sync take."""
    for source in sources:
        _forget(source)
    copy.mkdir()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", *sources, copy], check=True)
    for _ in _synced(copy):
        pass
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def _forget(directory: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for descriptor in _synced(directory):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _synced(directory: Path) -> Iterator[int]:
    """Writes the files of a folder to disk, and yields the descriptor of each."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
                yield file.fileno()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
