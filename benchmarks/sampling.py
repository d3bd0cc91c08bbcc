"""What does sampling cost with task conditioning, and what do precomputed modulations save?"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.counting import Cost, cost
from benchmarks.inputs import blank_observation
from examples.pi0.config import GEMMA_300M
from examples.pi0.model import Observation, Pi0, Pi0Config, SiglipConfig
from taskcond import merge_into

NUM_TASKS, NUM_STEPS = 50, 10
SMALL = Pi0Config.small()
FULL_EXPERT = Pi0Config(
    dtype="float32",
    action_horizon=16,
    max_token_len=8,
    image_size=28,
    vocab_size=256,
    paligemma=dataclasses.replace(GEMMA_300M, width=64, mlp_dim=128),
    action_expert=GEMMA_300M,
    siglip=SiglipConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size=14),
    image_keys=("base_0_rgb",),
)
FULL = Pi0Config()


class Variant:
    """One way to sample: a model, and what is done before the loop of steps.

    Args:
        model: With or without tasks.
        precompute: All modulations before the loop, or each step's in its turn.
        keep: Modulations are made once, and not a part of the call.
    """

    def __init__(self, model: Pi0, batch: int, *, precompute: bool = True, keep: bool = False):
        self._graph, self._state = nnx.split(model)
        self._config = model.config
        self._batch, self._precompute, self._keep = batch, precompute, keep
        self._run = jax.jit(self._sample(NUM_STEPS))
        self._arguments = self._make_arguments(NUM_STEPS)

    def seconds(self) -> float:
        """Wall time of one call."""
        began = time.perf_counter()
        jax.block_until_ready(self._run(*self._arguments))
        return time.perf_counter() - began

    def cost(self) -> Cost:
        """XLA's count; steps cost the same each, so two counts give that of all."""
        one, two = (cost(self._sample(n), *self._make_arguments(n)) for n in (1, 2))
        return Cost(*(a + (NUM_STEPS - 1) * (b - a) for a, b in zip(one, two, strict=True)))

    def _sample(self, num_steps: int) -> Callable[..., Any]:
        def sample(state: Any, observation: Observation, noise: Any, kept: Any) -> Any:
            return nnx.merge(self._graph, state).sample_actions(
                None,
                observation,
                num_steps=num_steps,
                noise=noise,
                modulations=kept,
                precompute=self._precompute,
            )

        return sample

    def _make_arguments(self, num_steps: int) -> tuple[Any, ...]:
        config, b = self._config, self._batch
        observation, kept = blank_observation(config, b), None
        if self._keep:
            model = nnx.merge(self._graph, self._state)
            kept = model.modulations(observation.task_id, num_steps=num_steps)
            observation = observation.replace(task_id=None)
        noise = jax.random.normal(jax.random.key(0), (b, config.action_horizon, config.action_dim))
        return self._state, observation, noise, kept


def make_models(config: Pi0Config) -> tuple[Pi0, Pi0]:
    """A model without tasks and one with; the same weights, in the dtype of the computation."""
    plain = Pi0(config, rngs=nnx.Rngs(0))
    conditioned = Pi0(dataclasses.replace(config, num_tasks=NUM_TASKS), rngs=nnx.Rngs(1))
    if config.dtype != "float32":  # as policies are served
        for model in (plain, conditioned):
            state = jax.tree.map(lambda x: x.astype(config.dtype), nnx.state(model, nnx.Param))
            nnx.update(model, state)
    merge_into(conditioned, nnx.state(plain, nnx.Param))
    return plain, conditioned


def measure(config: Pi0Config, batch: int, rounds: int) -> list[str]:
    """Rows of the table for one size."""
    plain, conditioned = make_models(config)
    variants = {
        "without tasks, in each step": Variant(plain, batch, precompute=False),
        "without tasks, precomputed": Variant(plain, batch),
        "50 tasks, in each step": Variant(conditioned, batch, precompute=False),
        "50 tasks, precomputed": Variant(conditioned, batch),
        "50 tasks, kept between calls": Variant(conditioned, batch, keep=True),
    }
    for variant in variants.values():
        variant.seconds()  # compiles
    # Interleaved, so that a busy machine is as busy for all; ratios are taken round by round.
    times = np.array([[v.seconds() for v in variants.values()] for _ in range(rounds)])
    of_each_step, of_untasked = times[:, [0, 0, 2, 2, 2]], times[:, [0, 1, 0, 1, 1]]
    rows = []
    for i, (name, variant) in enumerate(variants.items()):
        count = variant.cost()
        median = statistics.median(times[:, i])
        rows.append(
            f"| {name} | {count.flops / 1e9:.4f} | {count.bytes / 1e9:.4f} | {median * 1e3:.1f} "
            f"| {np.median(times[:, i] / of_each_step[:, i]):.3f} "
            f"| {np.median(times[:, i] / of_untasked[:, i]):.3f} |"
        )
    return rows


def main(full: bool | None = None, rounds: int = 21) -> str:
    """Returns and prints the tables.

    Args:
        full: Also measure everything at full size; by default where there is a GPU.
        rounds: How often each variant runs.
    """
    gpu = jax.default_backend() == "gpu"
    cases = [("small", SMALL, 1), ("full-size action expert, horizon 16", FULL_EXPERT, 1)]
    if gpu if full is None else full:
        cases += [("full size, bfloat16", FULL, batch) for batch in (1, 8)]
    lines = [
        f"{NUM_STEPS} Euler steps. Wall time is the median of {rounds} interleaved rounds (small: "
        f"{5 * rounds}), and so are the ratios.",
    ]
    for name, config, batch in cases:
        lines += [
            "",
            f"**{name}**, {config.dtype}, batch {batch}:",
            "",
            "| modulations | GFLOP | GB | ms | time / in each step | time / without tasks |",
            "|---|---:|---:|---:|---:|---:|",
            *measure(config, batch, rounds if config != SMALL else 5 * rounds),
        ]
    if len(cases) == 2:
        lines += ["", "Full size in bfloat16 was not measured: it needs a GPU."]
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", default=None, help="also at full size")
    parser.add_argument("--rounds", type=int, default=21)
    main(**vars(parser.parse_args()))
