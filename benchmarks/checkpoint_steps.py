"""The steps of the checkpoint benchmark, each a process that prints its time and its memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring.processes import peak_resident

TREES = Path(__file__).parents[1] / "tests" / "fixtures" / "param_trees"

# Each step imports what it needs, so that its time and its memory are those of a fresh program.


def write(path: str, scale: str, seed: str) -> dict[str, float]:
    """Writes random parameters in the layout of Orbax, without holding all of them."""
    import numpy as np
    import tensorstore as ts

    shared, own = np.random.default_rng(9), np.random.default_rng(int(seed))
    base = {"driver": "ocdbt", "base": f"file://{path}/"}
    metadata, size = {}, 0
    for name, shape in _shapes(float(scale)).items():
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


def merge(source: str, out: str, scale: str) -> dict[str, float]:
    """Merges a checkpoint into a tree with 50 tasks."""
    import jax
    import numpy as np

    from taskcond.checkpoint import merge_checkpoint

    target: dict[str, Any] = {
        path: jax.ShapeDtypeStruct(shape, np.float32)
        for path, shape in _shapes(float(scale)).items()
    }
    target["task_embeddings/embedding"] = np.zeros((50, 1024), np.float32)
    merge_checkpoint(source, target, out, keep="task_embeddings/embedding")
    return {}


def combine(a: str, b: str, out: str) -> dict[str, float]:
    """Combines two specialists into their mean."""
    from taskcond.checkpoint import Recipe, Specialist, combine_checkpoints

    combine_checkpoints(Recipe((Specialist(a), Specialist(b))), out)
    return {}


def load(path: str) -> dict[str, float]:
    """Loads a checkpoint onto the CPU."""
    import jax

    from taskcond.checkpoint import load_params

    device = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    params = load_params(path, sharding=device)
    return {"leaves": len(jax.tree.leaves(params))}


def _shapes(scale: float) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of π0.5's parameters, with their leading axes cut by `scale`."""
    tree = json.loads((TREES / "pi05.json").read_text())
    return {
        path: (max(1, round(leaf["shape"][0] * scale)), *leaf["shape"][1:])
        for path, leaf in tree.items()
    }


STEPS = {"write": write, "merge": merge, "combine": combine, "load": load}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    start = time.perf_counter()
    result = STEPS[name](*arguments)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": peak_resident(), **result}))
