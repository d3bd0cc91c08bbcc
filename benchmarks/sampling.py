"""What does sampling cost with task conditioning, and what do precomputed modulations save?"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx

from benchmarks.measuring.counting import Cost, cost
from benchmarks.measuring.inputs import blank_observation
from examples.pi0.config import GEMMA_300M
from examples.pi0.model import Observation, Pi0, Pi0Config, SiglipConfig
from examples.pi0.sampling import integrate
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

When = Literal["in each step", "precomputed", "kept between calls"]
"""When the modulations are computed: in each step, before the first step, or before the call."""


class Variant:
    """A way to sample.

    Args:
        model: A model with or without tasks.
        batch: The number of observations.
        when: When the modulations are computed.
    """

    def __init__(self, model: Pi0, batch: int, when: When):
        self._graph, self._state = nnx.split(model)
        self._config = model.config
        self._batch, self._when = batch, when
        self._run = jax.jit(self._sample(NUM_STEPS))
        self._arguments = self._make_arguments(NUM_STEPS)

    def seconds(self) -> float:
        """Returns the wall time of one call."""
        began = time.perf_counter()
        jax.block_until_ready(self._run(*self._arguments))
        return time.perf_counter() - began

    def cost(self) -> Cost:
        """Returns XLA's count. All steps cost the same, so that two counts give that of all."""
        one, two = (cost(self._sample(n), *self._make_arguments(n)) for n in (1, 2))
        return Cost(*(a + (NUM_STEPS - 1) * (b - a) for a, b in zip(one, two, strict=True)))

    def _sample(self, num_steps: int) -> Callable[..., Any]:
        def sample(state: Any, observation: Observation, noise: Any, kept: Any) -> Any:
            model = nnx.merge(self._graph, state)
            if self._when == "in each step":
                return sample_step_by_step(model, observation, noise, num_steps)
            return model.sample_actions(
                None, observation, num_steps=num_steps, noise=noise, modulations=kept
            )

        return sample

    def _make_arguments(self, num_steps: int) -> tuple[Any, ...]:
        config, b = self._config, self._batch
        observation, kept = blank_observation(config, b), None
        if self._when == "kept between calls":
            model = nnx.merge(self._graph, self._state)
            kept = model.modulations(observation.task_id, num_steps=num_steps)
            observation = observation.replace(task_id=None)
        noise = jax.random.normal(jax.random.key(0), (b, config.action_horizon, config.action_dim))
        return self._state, observation, noise, kept


def sample_step_by_step(model: Pi0, observation: Observation, noise: Any, num_steps: int) -> Any:
    """Samples as `Pi0.sample_actions` does, but computes the modulations in each step."""
    denoise = model.denoiser(observation)
    task_id = observation.task_id
    velocity = lambda x, step, time: denoise(x, model.condition_at(time, task_id))  # noqa: E731
    return integrate(velocity, noise, num_steps)


def make_models(config: Pi0Config) -> tuple[Pi0, Pi0]:
    """Returns a model without tasks and one with tasks.

    Both have the same weights, in the dtype of the computation.
    """
    plain = Pi0(config, rngs=nnx.Rngs(0))
    conditioned = Pi0(dataclasses.replace(config, num_tasks=NUM_TASKS), rngs=nnx.Rngs(1))
    if config.dtype != "float32":  # as policies are served
        for model in (plain, conditioned):
            state = jax.tree.map(lambda x: x.astype(config.dtype), nnx.state(model, nnx.Param))
            nnx.update(model, state)
    merge_into(conditioned, nnx.state(plain, nnx.Param))
    return plain, conditioned


def measure(config: Pi0Config, batch: int, rounds: int) -> list[str]:
    """Returns the rows of the table for one size."""
    plain, conditioned = make_models(config)
    variants = {
        "without tasks, in each step": Variant(plain, batch, "in each step"),
        "without tasks, precomputed": Variant(plain, batch, "precomputed"),
        "50 tasks, in each step": Variant(conditioned, batch, "in each step"),
        "50 tasks, precomputed": Variant(conditioned, batch, "precomputed"),
        "50 tasks, kept between calls": Variant(conditioned, batch, "kept between calls"),
    }
    for variant in variants.values():
        variant.seconds()  # compiles
    # The variants alternate, so that other load on the machine slows all equally; each ratio is
    # of two times in the same round.
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


def main(rounds: int = 21) -> str:
    """Prints and returns the tables.

    Args:
        rounds: How often each variant runs.
    """
    cases = [("small", SMALL, 1), ("full-size action expert, horizon 16", FULL_EXPERT, 1)]
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
    lines += ["", "The section gpu has the full size."]
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
