"""What does π0.5 at full size cost on a GPU, with tasks and without? Time and memory."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from benchmarks.measuring.inputs import (
    blank_batch,
    blank_observation,
    make_trainer,
    random_like,
)
from benchmarks.measuring.openpi import has_openpi, openpi_sampler
from benchmarks.sampling import NUM_STEPS, NUM_TASKS, sample_step_by_step
from examples.pi0.attention import attend
from examples.pi0.model import Observation, Pi0, Pi0Config
from examples.pi0.training.configs import TrainConfig
from examples.pi0.training.presets import presets
from examples.pi0.training.step import Trainer, TrainState

Part = Literal["attention", "sampling", "training"]
Call = Callable[[], Any]

BATCH, STEPS = 32, 5
"""Frames and timed steps of a training."""

TRAININGS: dict[str, tuple[str, dict[str, Any], int]] = {
    "`pi05_lerobot`, no tasks": ("pi05_lerobot", {}, 0),
    "`pi05_lerobot`, 50 tasks": ("pi05_lerobot", {}, NUM_TASKS),
    "`pi05_lerobot`, `vlm` frozen, 50 tasks": ("pi05_lerobot", {"freeze": ("vlm",)}, NUM_TASKS),
    "`pi05_lora`, 50 tasks": ("pi05_lora", {}, NUM_TASKS),
    "`pi05_b1k_22_TASKS_oversample`, 50 tasks": ("pi05_b1k_22_TASKS_oversample", {}, NUM_TASKS),
}
"""For each line the preset, changed settings, and the number of tasks."""


def attention(config: Pi0Config) -> list[str]:
    """Compares the implementations of attention at the sizes of prefix and suffix."""
    patches = (config.image_size // config.siglip.patch_size) ** 2 * len(config.image_keys)
    assert config.max_token_len is not None
    prefix = patches + config.max_token_len
    heads, size = config.action_expert.num_heads, config.action_expert.head_dim
    lines = [
        f"Attention in {config.dtype}, batch {BATCH}, with its gradient; the error is that of the "
        "output to float32, as a share of its norm:",
        "",
        "| queries, keys | implementation | ms | error |",
        "|---|---|---:|---:|",
    ]
    for queries, keys in (
        (prefix, prefix),
        (config.action_horizon, prefix + config.action_horizon),
    ):
        rng = np.random.default_rng(0)
        q, k, v = (
            jnp.asarray(rng.normal(size=(BATCH, length, count, size)), config.dtype)
            for length, count in ((queries, heads), (keys, 1), (keys, 1))
        )
        q = q * size**-0.5
        mask = jnp.asarray(rng.random((BATCH, queries, keys)) < 0.9)
        exact_q, exact_k, exact_v = (x.astype("float32") for x in (q, k, v))
        exact = attend(exact_q, exact_k, exact_v, mask, implementation="plain")
        for name in ("plain", "xla", "cudnn"):
            both = jax.jit(_with_gradient(name))
            try:
                found = jax.block_until_ready(both(q, k, v, mask))[0]
            except Exception as error:  # which one depends on the release of cuDNN
                lines.append(f"| {queries}, {keys} | {name} | {str(error)[:80]} | |")
                continue
            error = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
            ms = _median(lambda both=both, q=q, k=k, v=v, m=mask: both(q, k, v, m), 20) * 1e3
            lines.append(f"| {queries}, {keys} | {name} | {ms:.2f} | {error:.1e} |")
    return lines


def _with_gradient(name: Any) -> Callable[..., Any]:
    def function(q: Any, k: Any, v: Any, mask: Any) -> Any:
        def loss(q: Any, k: Any, v: Any) -> Any:
            out = attend(q, k, v, mask, implementation=name)
            return jnp.square(out.astype(jnp.float32)).sum(), out

        gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return out.astype(jnp.float32), gradients

    return function


def sampling(config: Pi0Config, rounds: int, variant: str | None) -> list[str]:
    """Measures how long a chunk of actions takes, beside openpi where that is installed."""
    models = {count: _random_model(config, count) for count in (0, NUM_TASKS)}
    lines = [
        f"{NUM_STEPS} Euler steps in {config.dtype}, median of {rounds} interleaved rounds:",
        "",
        "| batch | modulations | ms | of openpi | of ours without tasks |",
        "|---:|---|---:|---:|---:|",
    ]
    for batch in (1, 8):
        calls = sampling_calls(config, models, batch, variant)
        with concurrent.futures.ThreadPoolExecutor(len(calls)) as threads:
            list(threads.map(_wait, calls.values()))  # compiles
        times = [[_seconds(call) for call in calls.values()] for _ in range(rounds)]
        medians = dict(zip(calls, np.median(times, axis=0), strict=True))
        base = medians["without tasks, in each step"]
        theirs = medians.get("openpi", np.nan)
        lines += [
            f"| {batch} | {name} | {t * 1e3:.1f} | {t / theirs:.3f} | {t / base:.3f} |"
            for name, t in medians.items()
        ]
    return lines


def sampling_calls(
    config: Pi0Config, models: dict[int, Pi0], batch: int, variant: str | None
) -> dict[str, Call]:
    """Returns the ways to sample, by name."""
    observation = blank_observation(config, batch)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(-1, 1, observation.images[config.image_keys[0]].shape), "f4")
    observation = observation.replace(images=dict.fromkeys(config.image_keys, image))
    told = observation.replace(task_id=jnp.arange(batch) % NUM_TASKS)
    noise = jnp.asarray(rng.normal(size=(batch, config.action_horizon, config.action_dim)), "f4")
    kept = models[NUM_TASKS].modulations(told.task_id, num_steps=NUM_STEPS)

    def make(model: Pi0, sample: Callable[..., Any], seen: Observation, kept: Any = None) -> Call:
        graph, state = nnx.split(model)
        run = jax.jit(lambda state, seen, kept: sample(nnx.merge(graph, state), seen, kept))
        return lambda: run(state, seen, kept)

    def step_by_step(model: Pi0, seen: Observation, _: Any) -> Any:
        return sample_step_by_step(model, seen, noise, NUM_STEPS)

    def at_once(model: Pi0, seen: Observation, kept: Any) -> Any:
        return model.sample_actions(None, seen, noise=noise, modulations=kept)

    def guided(model: Pi0, seen: Observation, _: Any) -> Any:
        return model.sample_actions(None, seen, noise=noise, guidance=1.5)

    plain, tasks = models[0], models[NUM_TASKS]
    calls = {
        "without tasks, in each step": make(plain, step_by_step, observation),
        "50 tasks, in each step": make(tasks, step_by_step, told),
        "50 tasks, precomputed": make(tasks, at_once, told),
        "50 tasks, kept between calls": make(tasks, at_once, observation, kept),
        "50 tasks, guidance 1.5": make(tasks, guided, told),
    }
    if has_openpi():
        calls = {"openpi": openpi_sampler(observation, noise, variant), **calls}
    return calls


def _random_model(config: Pi0Config, num_tasks: int) -> Pi0:
    config = dataclasses.replace(config, num_tasks=num_tasks)
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, random_like(shapes, config.compute_dtype))


def training(small: Pi0Config | None) -> list[str]:
    """Measures steps of the trainer and the memory that they take."""
    trainers = {name: _trainer(*about, small) for name, about in TRAININGS.items()}
    with concurrent.futures.ThreadPoolExecutor(len(trainers)) as threads:
        steps = dict(zip(trainers, threads.map(_compile, trainers.values()), strict=True))
    lines = [
        f"One step of the trainer, batch {BATCH}, median of {STEPS}; the memory is XLA's plan:",
        "",
        "| preset | s | frames/s | state and batch, GiB | temporaries, GiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, trainer in trainers.items():
        memory: Any = steps[name].memory_analysis()
        sizes = f"{memory.argument_size_in_bytes / 2**30:.1f} | "
        sizes += f"{memory.temp_size_in_bytes / 2**30:.1f}"
        try:
            seconds = _time_steps(trainer, steps[name])
        except jax.errors.JaxRuntimeError as error:
            lines.append(f"| {name} | {str(error)[:60]} | | {sizes} |")
            continue
        lines.append(f"| {name} | {seconds:.3f} | {BATCH / seconds:.1f} | {sizes} |")
        print(lines[-1], flush=True)
    return lines


def _trainer(
    preset: str, changes: dict[str, Any], num_tasks: int, small: Pi0Config | None
) -> Trainer:
    config: TrainConfig = dataclasses.replace(presets()[preset][1], batch_size=BATCH, **changes)
    model = dataclasses.replace(small or config.model, num_tasks=num_tasks)
    if small is not None:
        model = dataclasses.replace(
            model,
            **{
                name: dataclasses.replace(
                    getattr(small, name), lora=getattr(config.model, name).lora
                )
                for name in ("paligemma", "action_expert")
            },
        )
    return make_trainer(dataclasses.replace(config, model=model, condition=num_tasks > 0))


def _compile(trainer: Trainer) -> Any:
    batch = blank_batch(trainer.config.model, BATCH)
    return jax.jit(trainer.step, donate_argnums=0).lower(trainer.shapes, batch).compile()


def _time_steps(trainer: Trainer, step: Any) -> float:
    state, batch = _random_state(trainer), _random_batch(trainer)
    seconds = []
    for _ in range(STEPS + 1):
        begin = time.perf_counter()
        state, metrics = step(state, batch)
        if not np.isfinite(loss := float(metrics["loss"])):
            raise ValueError(f"the loss of random weights is {loss}")
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _random_state(trainer: Trainer) -> TrainState:
    params, frozen = trainer.blueprint.split(trainer.blueprint.shapes)
    start = jax.jit(trainer.start, donate_argnums=(0, 1))
    return start(random_like(params), random_like(frozen))


def _random_batch(trainer: Trainer) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    config = trainer.config.model

    def fill(leaf: Any) -> Any:
        if leaf.dtype == jnp.float32:
            return jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
        high = {jnp.dtype("uint8"): 256, jnp.dtype("int32"): max(config.num_tasks, 1)}
        return jnp.asarray(rng.integers(0, high.get(leaf.dtype, 2), leaf.shape), leaf.dtype)

    batch = jax.tree.map(fill, blank_batch(config, BATCH))
    batch["action_dims"] = jnp.full(BATCH, config.action_dim)
    batch["action_is_pad"] = jnp.zeros_like(batch["action_is_pad"])
    return batch


def _wait(call: Call) -> None:
    jax.block_until_ready(call())


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    _wait(call)
    return time.perf_counter() - begin


def _median(call: Call, rounds: int) -> float:
    _wait(call)
    return statistics.median(_seconds(call) for _ in range(rounds))


def main(
    parts: tuple[Part, ...] = get_args(Part),
    out: Path | None = None,
    small: bool = False,
    rounds: int = 21,
) -> str:
    """Prints and returns the tables.

    Args:
        parts: What is measured.
        out: A file that gets the tables, each as soon as it is there.
        small: Whether to run small models, to see on a CPU that everything runs.
        rounds: How often each way to sample runs.
    """
    if not small and jax.default_backend() == "cpu":
        raise SystemExit("the full size needs a GPU; pass --small to see that everything runs")
    config = Pi0Config.small() if small else Pi0Config()
    measure: dict[Part, Callable[[], list[str]]] = {
        "attention": lambda: attention(config),
        "sampling": lambda: sampling(config, rounds, "dummy" if small else None),
        "training": lambda: training(config if small else None),
    }
    text = ""
    for part in parts:
        text += "\n".join([*measure[part](), "", ""])
        if out is not None:
            out.write_text(text)
    print(text)
    return text.strip()


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
