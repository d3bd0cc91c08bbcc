"""What does task conditioning cost? FLOPs, bytes, import time, and time per id."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring.counting import Cost, cost
from benchmarks.measuring.processes import run_python
from examples.quickstart import Policy
from taskcond import extract_task_id

STATE_DIM, ACTION_DIM, HORIZON, BATCH, NUM_TASKS = 44, 44, 16, 64, 50


def forward_cost(num_tasks: int) -> Cost:
    """Returns XLA's count of FLOPs and bytes for the forward pass of the quickstart policy."""
    graphdef, state = nnx.split(Policy(STATE_DIM, ACTION_DIM, HORIZON, num_tasks, rngs=nnx.Rngs(0)))

    def forward(state: Any, observed: Any, x_t: Any, t: Any, task_id: Any) -> Any:
        return nnx.merge(graphdef, state).velocity(observed, x_t, t, task_id)

    arguments = (
        jnp.zeros((BATCH, STATE_DIM)),
        jnp.zeros((BATCH, HORIZON, ACTION_DIM)),
        jnp.zeros(BATCH),
        jnp.zeros(BATCH, jnp.int32),
    )
    return cost(forward, state, *arguments)


def import_seconds(module: str) -> float:
    """Returns the processor time that a fresh interpreter takes to import a module."""
    code = f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"
    return float(run_python("-c", code))


def seconds_per_call(call: Callable[[], object], calls: int) -> float:
    """Returns the mean time of a call, as the median of seven rounds."""
    rounds = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - began) / calls)
    return statistics.median(rounds)


def main() -> str:
    """Prints and returns the table."""
    plain, conditioned = forward_cost(0), forward_cost(NUM_TASKS)
    # The two alternate, so that other load on the machine slows both equally.
    imports = [(import_seconds("flax.nnx"), import_seconds("taskcond")) for _ in range(9)]
    base, ours = (statistics.median(column) for column in zip(*imports, strict=True))
    frame = {"task_index": np.int64(3), **{f"key_{i}": i for i in range(10)}}
    batch = {"task_index": np.arange(4096) % NUM_TASKS}
    per_frame = seconds_per_call(lambda: extract_task_id(frame, num_tasks=NUM_TASKS), 20_000)
    per_batch = seconds_per_call(lambda: extract_task_id(batch, num_tasks=NUM_TASKS), 2_000)
    rows = [
        ("forward pass, FLOPs", plain.flops, conditioned.flops, "conditioned / plain"),
        ("forward pass, bytes", plain.bytes, conditioned.bytes, "conditioned / plain"),
        ("import, ms of processor time", base * 1e3, ours * 1e3, "taskcond / flax.nnx"),
    ]
    lines = ["| what | base | taskcond | ratio | of |", "|---|---:|---:|---:|---|"]
    lines += [f"| {w} | {a:,.0f} | {b:,.0f} | {b / a:.4f} | {of} |" for w, a, b, of in rows]
    lines += [
        "",
        f"`extract_task_id`: {per_frame * 1e6:.2f} µs a frame; batches of 4096: "
        f"{4096 / per_batch / 1e6:.0f} million ids a second.",
    ]
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    main()
