"""`TaskLoRA` for a mixed batch against a loop over adapters: the same numbers, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from benchmarks.measuring.counting import cost
from taskcond import TaskLoRA

TASKS, BATCH, TOKENS, WIDTH, RANK = 50, 64, 51, 1024, 8
_ROUNDS = 15


def lora_table() -> str:
    """Returns the table for a layer of the action expert's width."""
    layer = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
    lora = TaskLoRA.around(layer, TASKS, RANK, rngs=nnx.Rngs(1))
    assert lora.up is not None
    lora.up[...] = jax.random.normal(jax.random.key(0), lora.up.shape)
    graph, state = nnx.split((layer, lora))
    x = jax.random.normal(jax.random.key(1), (BATCH, TOKENS, WIDTH))
    ids = jnp.arange(BATCH) % TASKS

    def mixed(state: nnx.State, x: Array, ids: Int[Array, " b"]) -> Float[Array, "b t d"]:
        layer, lora = nnx.merge(graph, state)
        return lora(x, ids, layer(x))

    def loop(state: nnx.State, x: Array, ids: Int[Array, " b"]) -> Float[Array, "b t d"]:
        layer, lora = nnx.merge(graph, state)
        assert lora.down is not None
        assert lora.up is not None
        y = layer(x)
        update = jnp.zeros_like(y)
        for task in range(TASKS):  # every adapter on every example, of which one counts
            found = x @ lora.down[task] @ lora.up[task]
            update += jnp.where((ids == task)[:, None, None], found, 0)
        return y + update

    plain = jax.jit(lambda state, x, ids: nnx.merge(graph, state)[0](x))
    functions = {"the layer alone": plain, "TaskLoRA": jax.jit(mixed), "a loop": jax.jit(loop)}
    arguments = state, x, ids
    outputs = {name: np.asarray(f(*arguments)) for name, f in functions.items()}
    difference = np.abs(outputs["TaskLoRA"] - outputs["a loop"]).max()
    largest = np.abs(outputs["a loop"]).max()
    seconds = _alternating(functions, arguments)
    lines = [
        f"{TASKS} adapters of rank {RANK} around a {WIDTH} x {WIDTH} layer, a batch of {BATCH} "
        f"examples of {TOKENS} tokens. TaskLoRA and the loop differ by {difference / largest:.1e} "
        "of the largest number.",
        "",
        "| | time, to the layer alone | FLOPs | temporary memory |",
        "|---|---:|---:|---:|",
    ]
    base = cost(plain, *arguments)
    for name, function in functions.items():
        memory: Any = function.lower(*arguments).compile().memory_analysis()
        flops = cost(function, *arguments).flops / base.flops
        ratio = seconds[name] / seconds["the layer alone"]
        lines.append(
            f"| {name} | {ratio:.2f} | {flops:.2f} | {memory.temp_size_in_bytes / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


def _alternating(functions: dict[str, Callable[..., Any]], arguments: Any) -> dict[str, float]:
    """Returns the median time of each, measured in turns."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(_ROUNDS):
        for name, function in functions.items():
            # Once before, because the memory of the function before this one comes back slowly.
            jax.block_until_ready(function(*arguments))
            began = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}
