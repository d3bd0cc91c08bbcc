"""What do checkpoint operations cost at full size, in time and memory?

A π0.5 tree of random float32 (3.35 billion parameters, 13.4 GB) is written as Orbax writes it, one
Zstandard chunk a leaf. It is then merged into a tree with 50 tasks; two such are combined; and one
is loaded. Each step is a process of its own, of which the peak resident memory is measured. `cp` of
the bytes that are read, and a sync, in the same run, is what time is compared with; all begin with
nothing in the page cache.

    python -m benchmarks.merge                  # 60 GB of disk, ten minutes
    python -m benchmarks.merge --scale 0.05     # the same, smaller: leading axes cut
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TREES = Path(__file__).parents[1] / "tests" / "fixtures" / "param_trees"


def main(scale: float = 1.0, directory: str | None = None) -> str:
    """Returns and prints the table.

    Args:
        scale: Of the sizes; 1.0 is the whole π0.5.
        directory: Where there is room for 60 GB.
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


def _cp(copy: Path, *sources: Path) -> float:
    for source in sources:
        _forget(source)
    copy.mkdir()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", *sources, copy], check=True)
    for parent, _, names in os.walk(copy):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    return seconds


def _forget(directory: Path) -> None:
    """Drops files from the page cache."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _in_process(step: str, *args: Any) -> dict[str, float]:
    for path in args:
        if isinstance(path, Path) and path.exists():
            _forget(path)
    command = [sys.executable, "-m", "benchmarks.merge", "--step", step, *map(str, args)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _step(step: str, *args: str) -> None:
    start = time.perf_counter()
    result = {"write": _write, "merge": _merge, "combine": _combine, "load": _load}[step](*args)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    print(json.dumps({"seconds": seconds, "peak": int(peak[1]) * 1024 if peak else 0, **result}))


def _tree(name: str, scale: float) -> dict[str, tuple[int, ...]]:
    tree = json.loads((TREES / f"{name}.json").read_text())
    return {
        path: (max(1, round(leaf["shape"][0] * scale)), *leaf["shape"][1:])
        for path, leaf in tree.items()
    }


def _write(path: str, scale: str, seed: str) -> dict[str, float]:
    """Random parameters, laid out as Orbax does it, but without holding all of them."""
    import numpy as np
    import tensorstore as ts

    shared, own = np.random.default_rng(9), np.random.default_rng(int(seed))
    base = {"driver": "ocdbt", "base": f"file://{path}/"}
    metadata, size = {}, 0
    for name, shape in _tree("pi05", float(scale)).items():
        value = shared.standard_normal(shape, dtype=np.float32)
        for row in value if value.nbytes > 1 << 20 else ():
            row *= 0.02
            row += 0.001 * own.standard_normal(row.shape, dtype=np.float32)
        spec = {
            "driver": "zarr",
            "kvstore": {**base, "path": f"params.{name.replace('/', '.')}/"},
            "metadata": {
                "shape": shape,
                "chunks": shape,
                "dtype": "<f4",
                "compressor": {"id": "zstd", "level": 1},
            },
        }
        ts.open(spec, create=True).result().write(value).result()
        size += value.nbytes
        keys = [{"key": key, "key_type": 2} for key in ("params", *name.split("/"))]
        metadata[name] = {"key_metadata": keys, "value_metadata": {"value_type": "jax.Array"}}
    content = {"tree_metadata": metadata, "use_zarr3": False}
    Path(path, "_METADATA").write_text(json.dumps(content))
    return {"bytes": size}


def _merge(source: str, out: str, scale: str) -> dict[str, float]:
    import jax
    import numpy as np

    from taskcond.checkpoint import merge_checkpoint

    target: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(shape, np.float32)
        for path, shape in _tree("pi05", float(scale)).items()
    }
    target["task_embeddings/embedding"] = np.zeros((50, 1024), np.float32)
    merge_checkpoint(source, target, out, keep="task_embeddings/embedding")
    return {}


def _combine(a: str, b: str, out: str) -> dict[str, float]:
    from taskcond.checkpoint import Recipe, Specialist, combine_checkpoints

    combine_checkpoints(Recipe((Specialist(a), Specialist(b))), out)
    return {}


def _load(path: str) -> dict[str, float]:
    import jax

    from taskcond.checkpoint import load_params

    device = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    params = load_params(path, sharding=device)
    return {"leaves": len(jax.tree.leaves(params))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--directory", help="where there is room for 60 GB")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        _step(*arguments.step)
    else:
        main(arguments.scale, arguments.directory)
