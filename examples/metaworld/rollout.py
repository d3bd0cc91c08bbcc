"""Lets a checkpoint act: which task does it do when it is asked for each?

python -m examples.metaworld.rollout runs/metaworld/conditioned --episodes 10
python -m examples.metaworld.rollout CHECKPOINT --tasks "reach up" "push the puck forward"

A policy of your own needs a function that loads it as an `Actor`: `--actor module:function`.
"""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from examples.metaworld import pictures, report
from examples.metaworld.episodes import Job, Loader, run_jobs
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import TEN, find_tasks


@dataclasses.dataclass
class Args:
    """Rolls out a checkpoint and prints how often it did the task that it was asked for.

    Attributes:
        checkpoint: The folder of the parameters.
        actor: The function that loads the checkpoint, as `module:function`. It returns an
            `Actor` or a `SeeingActor` of `examples.metaworld.episodes`; the tasks in its
            `vocabulary`, if it has one, are those that it knows.
        tasks: Names of the tasks to ask for.
        episodes: The number of episodes of each task.
        told: Which id the policy gets: that of the asked task, that of the next task, or none.
        workers: The number of processes.
        seed: The seed of starts and noise.
        json: A file for the results as JSON.
        plot: A file for the matrix of asked and done tasks.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    actor: str = "examples.metaworld.train:load_actor"
    tasks: tuple[str, ...] = tuple(task.name for task in TEN)
    episodes: int = 10
    told: Literal["right", "wrong", "none"] = "right"
    workers: int = 2
    seed: int = 0
    json: Path | None = None
    plot: Path | None = None


def main(args: Args) -> int:
    """Runs the episodes; returns the exit code."""
    tasks, load = find_tasks(args.tasks), find_function(args.actor)
    known = getattr(load(args.checkpoint), "vocabulary", ())
    if missing := [task.name for task in tasks if len(known) and task.name not in known]:
        raise SystemExit(
            f"the checkpoint was not trained on {missing}. Its tasks are {list(known)}. "
            "Pass some of them with --tasks, or another checkpoint."
        )
    shift = {"right": 0, "wrong": 1, "none": None}[args.told]
    jobs = [
        Job(task, None if shift is None else tasks[(i + shift) % len(tasks)], i * args.episodes + e)
        for i, task in enumerate(tasks)
        for e in range(args.episodes)
    ]
    with Pool(args.workers) as pool:
        episodes = run_jobs(jobs, load, args.checkpoint, pool=pool, seed=args.seed)
        partial = " (interrupted: partial)" if pool.interrupted else ""
    results = {f"{args.checkpoint.name}, {args.told} id{partial}": episodes}
    Console().print(report.results_table(results))
    if args.json:
        args.json.write_text(json.dumps(report.to_dict(results), indent=1))
    if args.plot:
        pictures.draw_confusion(results, args.plot)
    return 130 if partial else 0


def find_function(name: str) -> Loader:
    """Returns the function `module:function`.

    Raises:
        SystemExit: There is no such module or function.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SystemExit(
            f"there is no function {name!r}: {error}. Pass --actor module:function, with a module "
            "that Python can import from here."
        ) from error


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args)))
