"""The tables and the plot of the comparison, from the results of all methods and seeds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from benchmarks.measuring.counting import Cost, cost
from benchmarks.methods.lora import lora_table
from benchmarks.methods.policy import ADD, METHODS, WITHOUT_SCALES, Batch, Method, MethodPolicy
from benchmarks.methods.study import (
    QUICK,
    STARTS,
    Settings,
    Study,
    texts_of,
)
from examples.metaworld.hard import FIFTY, LATER, HardTask
from examples.metaworld.policy import HORIZON
from examples.metaworld.processes import Pool
from examples.metaworld.report import Rate
from examples.metaworld.train import BATCH
from examples.metaworld.world import ACTION_SIZE, STATE_SIZE

_COMPILED_BRIEFLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""With these, XLA takes less time to compile, and what it makes takes more to run."""

Results = dict[str, list[dict[str, Any]]]
"""For each method the results of each seed."""


def run(
    folder: Path = Path("runs/methods"),
    *,
    seeds: int = 3,
    quick: bool = False,
    workers: int = 2,
) -> str:
    """Compares all methods; prints and returns the tables.

    Args:
        folder: Where results are kept.
        seeds: The number of seeds.
        quick: Whether to train briefly, with one seed and one scale, to see that everything runs.
        workers: The number of processes for the simulator.
    """
    if quick:
        os.environ.setdefault("XLA_FLAGS", _COMPILED_BRIEFLY)  # of the other processes, too
    settings, seeds = (QUICK, 1) if quick else (Settings(), seeds)
    methods = WITHOUT_SCALES if quick else METHODS
    episodes = 2 * len(settings.tasks) * settings.episodes + len(LATER) * settings.later_episodes
    minutes = "about five" if quick else f"about {17 * seeds}"
    print(
        f"{len(methods) * seeds} trainings of {settings.steps} steps, each with about {episodes} "
        f"episodes: {minutes} minutes on two cores. Results are kept in {folder}."
    )
    with Pool(workers) as pool:
        study = Study(folder / ("quick" if quick else "full"), settings, pool)
        # Seed by seed, so that an interrupted comparison has all methods with fewer seeds.
        found = [{m.name: study.measure(m, seed) for m in methods} for seed in range(seeds)]
        starts = [study.measure_starts(ADD, seed) for seed in range(seeds)]
    results = {m.name: [of_seed[m.name] for of_seed in found] for m in methods}
    draw(results, settings, study.folder / "methods.png")
    tables = [
        main_table(results, settings),
        cost_table(methods),
        guidance_table(results["add"], settings),
        starts_table(starts),
        lora_table(),
    ]
    text = f"{seeds} seeds, {settings}\n\n" + "\n\n".join(tables)
    print(text)
    return text


def main_table(results: Results, settings: Settings) -> str:
    """Returns the table of success in the closed loop, in percent, and of the losses."""
    tasks, saying = settings.tasks, settings.saying
    lines = [
        "| method | asked task | goal is in the text | it is not | another task | without id, goal "
        "in the text | loss tells the id | margin | five later tasks | fifty after that |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, seeds in results.items():
        parts = [
            name,
            str(rate(seeds, "right", tasks)),
            str(rate(seeds, "right", tasks, lambda task: task in saying)),
            str(rate(seeds, "right", tasks, lambda task: task not in saying)),
            str(rate(seeds, "right", tasks, wanted=other_task)),
            str(rate(seeds, "none", saying)) if "none" in seeds[0] else "",
            *(_mean(seeds, key) for key in ("accuracy", "margin")),
            str(rate(seeds, "later", LATER)),
            str(rate(seeds, "old after", tasks))
            + (", the same" if all(s["right"] == s["old after"] for s in seeds) else ""),
        ]
        lines.append(f"| {' | '.join(parts)} |")
    return "\n".join(lines)


def asked_task(done: str | None, asked: str) -> bool:
    """Returns whether an episode did its task."""
    return done == asked


def other_task(done: str | None, asked: str) -> bool:
    """Returns whether an episode did another task."""
    return done not in (None, asked)


def rate(
    seeds: Sequence[Mapping[str, Any]],
    key: str,
    tasks: Sequence[HardTask],
    chosen: Callable[[HardTask], bool] = lambda _: True,
    wanted: Callable[[str | None, str], bool] = asked_task,
) -> Rate:
    """Returns how many episodes of some tasks, over all seeds, ended as wanted."""
    count = len(seeds[0][key]) // len(tasks)
    asked = [task for task in tasks for _ in range(count)]
    hits = [
        wanted(done, task.name)
        for seed in seeds
        for task, done in zip(asked, seed[key], strict=True)
        if chosen(task)
    ]
    return Rate(sum(hits), len(hits))


def cost_table(methods: Sequence[Method]) -> str:
    """Returns parameters, and what XLA counts of a training step."""
    base = _step_cost(methods[0])
    lines = [
        "| method | parameters | of tasks | FLOPs of a training step | bytes |",
        "|---|---:|---:|---:|---:|",
    ]
    for method in methods:
        policy = MethodPolicy(method, len(FIFTY), nnx.Rngs(0))
        total, shared = _size(policy), _size(MethodPolicy(method, 0, nnx.Rngs(0)))
        found = _step_cost(method)
        flops, moved = found.flops / base.flops, found.bytes / base.bytes
        lines.append(
            f"| {method.name} | {total:,} | {total - shared:,} | {flops:.3f} | {moved:.3f} |"
        )
    return "\n".join(lines)


def guidance_table(seeds: Sequence[Mapping[str, Any]], settings: Settings) -> str:
    """Returns the success of guided sampling."""
    keys = {"0": "guidance 0.0", "1": "right", "1.5": "guidance 1.5", "3": "guidance 3.0"}
    lines = ["| guidance | asked task | another task |", "|---:|---:|---:|"]
    for weight, key in keys.items():
        done, other = (rate(seeds, key, settings.tasks, wanted=f) for f in (asked_task, other_task))
        lines.append(f"| {weight} | {done} | {other} |")
    return "\n".join(lines)


def starts_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Returns the success of five later tasks by rows that are guessed, and after training."""
    lines = ["| start of a row of `add` | guessed | trained |", "|---|---:|---:|"]
    for name in STARTS:
        rates = (rate(seeds, f"{name}, {how}", LATER) for how in ("guessed", "trained"))
        lines.append(f"| {name} | {' | '.join(map(str, rates))} |")
    return "\n".join(lines)


def draw(results: Results, settings: Settings, path: Path) -> None:
    """Draws the success of all methods, with intervals, and that of the later tasks."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    places = np.arange(len(results))[::-1]
    panels = (
        ("right", settings.tasks, "fifty tasks"),
        ("later", LATER, "five later tasks, ten demos each"),
    )
    for axis, (key, tasks, title) in zip(axes, panels, strict=True):
        rates = [rate(seeds, key, tasks) for seeds in results.values()]
        means = np.array([100 * r.hits / r.total for r in rates])
        bounds = np.array([[100 * x for x in r.interval] for r in rates])
        axis.barh(places, means, color="#4477aa", height=0.65)
        errors = np.abs(bounds.T - means)
        axis.errorbar(means, places, xerr=errors, fmt="none", ecolor="black", capsize=3)
        axis.set_xlim(0, 100)
        axis.set_xlabel("episodes that did the asked task, percent")
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, list(results))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _mean(seeds: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [seed[key] for seed in seeds if key in seed]
    return f"{100 * statistics.mean(values):.0f}" if values else ""


def _size(policy: MethodPolicy) -> int:
    return sum(x.size for x in jax.tree.leaves(nnx.state(policy, nnx.Param)))


def _step_cost(method: Method) -> Cost:
    graph, state = nnx.split(MethodPolicy(method, len(FIFTY), nnx.Rngs(0)))
    texts = jnp.asarray(texts_of(method))
    batch: Batch = {
        "state": jnp.zeros((BATCH, STATE_SIZE)),
        "actions": jnp.zeros((BATCH, HORIZON, ACTION_SIZE)),
        "action_is_pad": jnp.zeros((BATCH, HORIZON), bool),
        "task_id": jnp.zeros(BATCH, jnp.int32),
    }

    def loss(state: nnx.State) -> jax.Array:
        return nnx.merge(graph, state).loss(jax.random.key(0), batch, texts)

    return cost(jax.grad(loss), state)
