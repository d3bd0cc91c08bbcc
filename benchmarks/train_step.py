"""What does a training step cost with task conditioning? FLOPs and bytes from XLA."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.measuring.counting import Cost, cost
from benchmarks.measuring.inputs import blank_observation
from examples.pi0.model import GemmaConfig, Observation, Pi0, Pi0Config

BATCH, NUM_TASKS = 8, 50
_HEADS: dict[str, Any] = {"depth": 8, "num_heads": 8, "num_kv_heads": 1, "head_dim": 64}
MIDDLE = Pi0Config.small(
    paligemma=GemmaConfig(width=512, mlp_dim=2048, **_HEADS),
    action_expert=GemmaConfig(width=512, mlp_dim=2048, **_HEADS),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "no tasks": {},
    "a row for each task": {"num_tasks": NUM_TASKS},
    "updates of rank 8 for each task": {
        "num_tasks": NUM_TASKS,
        "task_fusion": "none",
        "task_lora_rank": 8,
    },
}


def step_cost(config: Pi0Config) -> Cost:
    """Returns the cost of one step: the loss, its gradients, and AdamW."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0))))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))

    def step(state: Any, moments: Any, observation: Observation, actions: Any) -> Any:
        def loss(state: Any) -> Any:
            model = nnx.merge(graph, state)
            return model.compute_loss(jax.random.key(0), observation, actions).mean()

        gradients = jax.grad(loss)(state)
        updates, moments = optimizer.update(gradients, moments, state)
        return optax.apply_updates(state, updates), moments

    observation = blank_observation(config, BATCH)
    actions = jnp.zeros((BATCH, config.action_horizon, config.action_dim))
    return cost(step, state, jax.eval_shape(optimizer.init, state), observation, actions)


def main() -> str:
    """Prints and returns the table."""
    found = {
        name: step_cost(dataclasses.replace(MIDDLE, **fields)) for name, fields in VARIANTS.items()
    }
    base, *_ = found.values()
    lines = [
        f"One training step, width 512, 8 layers, batch {BATCH}, AdamW, {NUM_TASKS} tasks; XLA's "
        "count:",
        "",
        "| | FLOPs | ratio | bytes | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {each.flops:,.0f} | {each.flops / base.flops:.6f} | {each.bytes:,.0f} | "
        f"{each.bytes / base.bytes:.6f} |"
        for name, each in found.items()
    ]
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    main()
