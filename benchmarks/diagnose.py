"""What does a diagnosis of a tiny π0.5 with 50 tasks cost, in training steps?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from benchmarks.measuring.inputs import blank_observation
from examples.pi0.demo import tiny_config
from examples.pi0.model import Pi0
from taskcond.diagnostics import PolicyFunctions, diagnose

NUM_TASKS, FRAMES, BATCH, DRAWS = 50, 500, 50, 4
TRAINING_BATCH, STEPS = 32, 40
TINY = tiny_config(action_dim=8, max_token_len=28, num_tasks=NUM_TASKS)


def training_step_seconds() -> float:
    """Returns the processor time of one training step, without compiling."""
    graphdef, params = nnx.split(Pi0(TINY, rngs=nnx.Rngs(0)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
    observation = blank_observation(TINY, TRAINING_BATCH)
    actions = jnp.zeros((TRAINING_BATCH, TINY.action_horizon, TINY.action_dim))

    @jax.jit
    def step(carry: Any, key: Array) -> Any:
        def loss(params: Any) -> Array:
            model = nnx.merge(graphdef, params)
            return model.compute_loss(key, observation, actions, train=True).mean()

        updates, moments = optimizer.update(jax.grad(loss)(carry[0]), carry[1], carry[0])
        return optax.apply_updates(carry[0], updates), moments

    carry, keys = (params, optimizer.init(params)), jax.random.split(jax.random.key(0), STEPS)
    carry = jax.block_until_ready(step(carry, keys[0]))
    began = time.process_time()
    for key in keys:
        carry = step(carry, key)
    jax.block_until_ready(carry)
    return (time.process_time() - began) / STEPS


def policy_functions(actions: bool) -> PolicyFunctions[dict[str, Any]]:
    """Returns the loss of an untrained model, and its actions too if wanted."""
    graphdef, params = nnx.split(Pi0(TINY, rngs=nnx.Rngs(0)))

    @jax.jit
    def loss(key: Array, batch: dict[str, Any], task_id: Array) -> Array:
        observation = batch["observation"].replace(task_id=task_id)
        return nnx.merge(graphdef, params).compute_loss(key, observation, batch["actions"]).mean(-1)

    @jax.jit
    def act(key: Array, batch: dict[str, Any], task_id: Array) -> Array:
        observation = batch["observation"].replace(task_id=task_id)
        return nnx.merge(graphdef, params).sample_actions(key, observation)

    names = [f"task {index}" for index in range(NUM_TASKS)]
    return PolicyFunctions(names, loss=loss, actions=act if actions else None)


def diagnosis_seconds(actions: bool) -> float:
    """Returns the processor time of a diagnosis, without compiling."""
    batch = {
        "observation": blank_observation(TINY, BATCH),
        "actions": jnp.zeros((BATCH, TINY.action_horizon, TINY.action_dim)),
        "task_id": np.arange(BATCH) % NUM_TASKS,
    }
    policy = policy_functions(actions)

    def seconds(call: Callable[[], object]) -> float:
        began = time.process_time()
        call()
        return time.process_time() - began

    diagnose(policy, [batch], draws=1)
    return seconds(lambda: diagnose(policy, [batch] * (FRAMES // BATCH), draws=DRAWS))


def main() -> str:
    """Prints and returns the table."""
    step = training_step_seconds()
    lines = [
        f"{FRAMES} frames, {DRAWS} draws, processor time without compiling. A training step of "
        f"{TRAINING_BATCH} frames takes {1000 * step:.0f} ms.",
        "",
        "| what is measured | seconds | training steps |",
        "|---|---:|---:|",
    ]
    for name, actions in (("the losses under all ids", False), ("losses and actions", True)):
        seconds = diagnosis_seconds(actions)
        lines.append(f"| {name} | {seconds:.1f} | {seconds / step:,.0f} |")
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    main()
