"""The demo: a policy that confuses ten tasks is conditioned, and then does what it is told.

    python -m examples.metaworld.demo          (or `make demo`)

collects demonstrations of ten tasks in one scene, trains a policy without task ids, merges its
weights into a conditioned one, trains that further, and lets all of them act in the simulator.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from examples.metaworld import pictures, report
from examples.metaworld.collect import collect
from examples.metaworld.episodes import Episode, Job, run_jobs
from examples.metaworld.policy import Policy, sample
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import TEN, Task, vocabulary_of
from examples.metaworld.train import load_actor, read, save, train
from taskcond.checkpoint import load_into

ROWS: dict[str, tuple[str, int | None]] = {
    "without ids": ("base", None),
    "with ids: right id": ("conditioned", 0),
    "with ids: wrong id": ("conditioned", 3),
    "with ids: no id": ("conditioned", None),
}
"""For each row of the table the checkpoint, and how far the told task is from the asked one."""


@dataclasses.dataclass
class Args:
    """Trains and rolls out policies of ten tasks, and shows which task each of them does.

    Attributes:
        out: The folder for the dataset, the checkpoints and the pictures; it is emptied first.
        demonstrations: The number of demonstrations of each task.
        base_steps: Training steps without ids.
        task_steps: Training steps with ids after that.
        episodes: Episodes of each task, in each row of the table.
        workers: The number of processes for the simulator.
        seed: The seed of everything.
    """

    out: Path = Path("runs/metaworld")
    demonstrations: int = 50
    base_steps: int = 6000
    task_steps: int = 4000
    episodes: int = 10
    workers: int = 2
    seed: int = 0


def main(args: Args) -> dict[str, list[Episode]]:
    """Runs the demo; returns the episodes of each row of the table."""
    console, begin = Console(), time.monotonic()
    shutil.rmtree(args.out, ignore_errors=True)
    with Pool(args.workers) as pool:
        dataset = collect(args.out / "dataset", TEN, args.demonstrations, seed=args.seed, pool=pool)
        _train(args, dataset, console)
        results = _roll_out(args, pool)
        drawn = _roll_out_one_start(args, pool)
        if pool.interrupted:
            console.print("[yellow]interrupted: the table holds the episodes that were finished")
    console.print(report.results_table(results))
    (args.out / "results.json").write_text(json.dumps(report.to_dict(results), indent=1))
    pictures.draw_confusion(results, args.out / "confusion.png")
    pictures.draw_paths(drawn, args.out / "paths.png")
    console.print(
        f"{time.monotonic() - begin:.0f} s. Look at {args.out}/paths.png and "
        f"{args.out}/confusion.png."
    )
    return results


def _train(args: Args, dataset: Path, console: Console) -> None:
    vocabulary = vocabulary_of(TEN)
    frames = read(dataset, vocabulary)
    base = Policy(0, nnx.Rngs(args.seed))
    train(base, frames, args.base_steps, use_tasks=False, seed=args.seed, label="without ids")
    save(base, args.out / "base", vocabulary, frames)

    conditioned = Policy(len(vocabulary), nnx.Rngs(args.seed + 1))
    console.print(str(load_into(conditioned, args.out / "base")))
    conditioned.eval()
    states, ids = jnp.asarray(frames["state"][:100]), jnp.asarray(frames["task_id"][:100])
    key = jax.random.key(0)
    same = np.array_equal(sample(base, key, states, None), sample(conditioned, key, states, ids))
    console.print(f"actions after the merge equal those before, bit for bit: {same}")
    train(
        conditioned, frames, args.task_steps, use_tasks=True, seed=args.seed + 1, label="with ids"
    )
    save(conditioned, args.out / "conditioned", vocabulary, frames)


def _roll_out(args: Args, pool: Pool) -> dict[str, list[Episode]]:
    results = {}
    for name, (checkpoint, shift) in ROWS.items():
        jobs = [
            Job(task, _told(i, shift), start=i * args.episodes + episode)
            for i, task in enumerate(TEN)
            for episode in range(args.episodes)
        ]
        results[name] = _run(args, pool, name, checkpoint, jobs)
    return results


def _roll_out_one_start(args: Args, pool: Pool) -> dict[str, list[Episode]]:
    """Asks the first two policies of the table for every task, from one start and one noise."""
    results = {}
    for name, (checkpoint, shift) in list(ROWS.items())[:2]:
        jobs = [Job(task, _told(i, shift), start=0) for i, task in enumerate(TEN)]
        results[name] = _run(args, pool, f"{name}, one start", checkpoint, jobs)
    return results


def _told(index: int, shift: int | None) -> Task | None:
    return None if shift is None else TEN[(index + shift) % len(TEN)]


def _run(args: Args, pool: Pool, name: str, checkpoint: str, jobs: Sequence[Job]) -> list[Episode]:
    path, seed = args.out / checkpoint, args.seed + 100
    return run_jobs(jobs, load_actor, path, pool=pool, seed=seed, label=name)


if __name__ == "__main__":
    main(tyro.cli(Args))
