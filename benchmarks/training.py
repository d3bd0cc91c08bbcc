"""What does a step of the trainer cost with tasks, and with a frozen prefix? FLOPs and memory."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax

from benchmarks.measuring.counting import Cost, cost
from benchmarks.measuring.inputs import blank_batch, make_trainer
from benchmarks.measuring.processes import run_python
from benchmarks.measuring.tpu import DEVICES, TOPOLOGY, has_compiler
from examples.pi0.config import GemmaConfig, Pi0Config
from examples.pi0.training.configs import TrainConfig

BATCH = 8
_HEADS: dict[str, Any] = {"depth": 4, "num_heads": 8, "num_kv_heads": 1, "head_dim": 32}
MODEL = Pi0Config.small(
    paligemma=GemmaConfig(width=256, mlp_dim=1024, **_HEADS),
    action_expert=GemmaConfig(width=256, mlp_dim=1024, **_HEADS),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "all trained, no tasks": {},
    "all trained, 50 tasks": {"num_tasks": 50},
    "50 tasks, `vlm` frozen": {"num_tasks": 50, "freeze": ("vlm",)},
}
FULL_SIZE = (
    ("pi05_b1k_22_TASKS_oversample", 256),
    ("pi05_b1k_single_task", 128),
    ("pi05_lerobot", 256),
)
"""Presets and batches that are compiled for TPUs, where their compiler is installed."""


def step_cost(num_tasks: int = 0, freeze: tuple[str, ...] = ()) -> tuple[Cost, float]:
    """Returns the cost of a step, and its temporary memory in bytes."""
    config = TrainConfig(
        model=dataclasses.replace(MODEL, num_tasks=num_tasks),
        freeze=freeze,
        batch_size=BATCH,
        condition=bool(num_tasks),
    )
    trainer = make_trainer(config)
    batch = blank_batch(config.model, BATCH)
    compiled = jax.jit(trainer.step).lower(trainer.shapes, batch).compile()
    memory: Any = compiled.memory_analysis()
    return cost(trainer.step, trainer.shapes, batch), memory.temp_size_in_bytes


def full_size() -> list[str]:
    """Returns a line for each preset that was compiled for TPUs, or why none was."""
    if not has_compiler():
        return ["The full size was not compiled: the package `libtpu` is not installed."]
    lines = [
        f"Compiled for {DEVICES} TPUs ({TOPOLOGY}), GiB of a device:",
        "",
        "| preset | batch | arguments | temporaries | collectives |",
        "|---|---:|---:|---:|---|",
    ]
    for preset, batch in FULL_SIZE:
        found = json.loads(run_python("-m", "benchmarks.measuring.tpu", preset, str(batch)))
        kinds = ", ".join(f"{count} {kind}" for kind, count in found["collectives"].items())
        lines.append(
            f"| `{preset}` | {batch} | {found['arguments']:.2f} | {found['temporaries']:.2f} | "
            f"{kinds} |"
        )
    return lines


def main() -> str:
    """Prints and returns the tables."""
    found = {name: step_cost(**settings) for name, settings in VARIANTS.items()}
    (base, memory), *_ = found.values()
    lines = [
        f"One step of the trainer, width 256, 4 layers, batch {BATCH}, XLA's count, as ratios:",
        "",
        "| | FLOPs | bytes | temporary memory |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {each.flops / base.flops:.4f} | {each.bytes / base.bytes:.4f} | "
        f"{temporary / memory:.4f} |"
        for name, (each, temporary) in found.items()
    ]
    table = "\n".join([*lines, "", *full_size()])
    print(table)
    return table


if __name__ == "__main__":
    main()
