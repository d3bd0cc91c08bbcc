"""Compiles a training step for TPUs that are not there, and says what it needs.

    python -m benchmarks.measuring.tpu pi05_lerobot 64

It needs the package `libtpu`, in the release that jax asks for.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import json
import os
import re
import sys
import time
from typing import Any

TOPOLOGY, DEVICES = "v5e:4x4", 16
MEMORY = 16.0
"""The memory of a TPU v5e, in GiB."""

_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def has_compiler() -> bool:
    """Says whether `libtpu` is installed."""
    return importlib.util.find_spec("libtpu") is not None


def measure_step(preset: str, batch: int) -> dict[str, Any]:
    """Compiles the step of a preset with 50 tasks, its state split over all devices.

    Args:
        preset: The name of the preset.
        batch: The number of frames, over all devices.

    Returns:
        GiB of a device for the `arguments` and `temporaries`, the number of `collectives` of each
        kind, and `seconds` of compilation.
    """
    begin = time.monotonic()
    compiled = compile_step(preset, batch)
    memory: Any = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes / 2**30,
        "temporaries": memory.temp_size_in_bytes / 2**30,
        "collectives": collections.Counter(_COLLECTIVE.findall(compiled.as_text() or "")),
        "seconds": time.monotonic() - begin,
    }


def compile_step(preset: str, batch: int) -> Any:
    """Returns the compiled step, see `measure_step`."""
    os.environ.update(_SETTINGS)
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh

    from benchmarks.measuring.inputs import blank_batch, make_trainer
    from examples.pi0.training.devices import batch_sharding, state_shardings
    from examples.pi0.training.presets import presets

    config = presets()[preset][1]
    model = dataclasses.replace(config.model, num_tasks=50)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    mesh = Mesh(np.array(devices).reshape(1, DEVICES), ("data", "fsdp"))
    rows = batch_sharding(mesh)
    trainer = make_trainer(dataclasses.replace(config, model=model, batch_size=batch), rows)
    shardings = state_shardings(mesh, trainer.shapes)

    def place(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(place, trainer.shapes, shardings)
    frames = jax.tree.map(lambda leaf: place(leaf, rows), blank_batch(model, batch))
    step = jax.jit(trainer.step, donate_argnums=0, out_shardings=(shardings, None))
    return step.lower(state, frames).compile()


if __name__ == "__main__":
    print(json.dumps(measure_step(sys.argv[1], int(sys.argv[2]))))
