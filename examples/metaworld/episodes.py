"""Episodes: a policy acts in the world, and it is watched which task it does."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from examples.metaworld.processes import Pool
from examples.metaworld.tasks import TEN, Task, done_task
from examples.metaworld.world import ACTION_SIZE, World, draw_start

EXECUTED = 8
"""The number of actions of a chunk that are executed before the policy is asked again."""

MAX_STEPS = 200


@runtime_checkable
class Actor(Protocol):
    """A policy that can be rolled out; π0 fits too."""

    def act(
        self, observation: Float[np.ndarray, "7"], task: str | None, seed: int
    ) -> Float[np.ndarray, "h 4"]:
        """Returns a chunk of at least `EXECUTED` actions in [-1, 1].

        Args:
            observation: What the robot sees.
            task: The name of the task; `None` tells the robot nothing.
            seed: The seed of the noise.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Job:
    """An episode to run.

    Attributes:
        asked: The task that is wanted.
        told: The task whose name the policy gets; `None` gives it none.
        start: The number of the start. Starts with the same number are the same for every task.
    """

    asked: Task
    told: Task | None
    start: int


@dataclasses.dataclass(frozen=True)
class Episode:
    """The result of a job.

    Attributes:
        job: The job.
        done: The task that the policy did; `None` if it did none in time.
        observations: What was seen, `[t, 7]`.
    """

    job: Job
    done: Task | None
    observations: Float[np.ndarray, "t 7"]


def run_episode(
    world: World, actor: Actor, job: Job, tasks: Sequence[Task] = TEN, seed: int = 0
) -> Episode:
    """Runs one episode, until a task is done or `MAX_STEPS` have passed.

    Raises:
        ValueError: The policy returns a chunk of another shape, or NaN.
    """
    seen = [world.reset(draw_start(np.random.default_rng([seed, job.start])))]
    told = None if job.told is None else job.told.name
    done = None
    while done is None and len(seen) <= MAX_STEPS:
        chunk = actor.act(seen[-1], told, _draw(seed, job.start, len(seen)))
        _check(chunk, len(seen) - 1, job)
        for action in chunk[:EXECUTED]:
            seen.append(world.step(action))
            done = done_task(np.stack(seen[-20:]), tasks)
            if done is not None:
                break
    return Episode(job, done, np.stack(seen))


def run_jobs(
    jobs: Sequence[Job],
    load: Callable[[Path], Actor],
    path: Path,
    *,
    pool: Pool,
    tasks: Sequence[Task] = TEN,
    seed: int = 0,
    label: str = "episodes",
) -> list[Episode]:
    """Runs episodes in the processes of a pool.

    Args:
        jobs: The episodes.
        load: Loads the policy, in each process once: a function of a module.
        path: The checkpoint, for `load`.
        pool: The processes.
        tasks: The tasks that are looked for.
        seed: The seed. Results do not depend on the number of processes.
        label: The name of the work in the progress bar.
    """
    run = functools.partial(_run, load=load, path=path, tasks=tuple(tasks), seed=seed)
    return pool.map(run, jobs, label)


def _run(
    job: Job, load: Callable[[Path], Actor], path: Path, tasks: tuple[Task, ...], seed: int
) -> Episode:
    return run_episode(_world(), _actor(load, path), job, tasks, seed)


@functools.cache
def _world() -> World:
    return World()


@functools.cache
def _actor(load: Callable[[Path], Actor], path: Path) -> Actor:
    return load(path)


def _draw(*numbers: int) -> int:
    """Returns a seed for each tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _check(chunk: Any, step: int, job: Job) -> None:
    where = f"at step {step} of {job.asked.name!r}"
    shape = np.shape(chunk)
    if len(shape) != 2 or shape[0] < EXECUTED or shape[1] != ACTION_SIZE:
        raise ValueError(
            f"the policy returned an array of shape {shape} {where}. It must return "
            f"[{EXECUTED} or more, {ACTION_SIZE}]."
        )
    if not np.isfinite(chunk).all():
        raise ValueError(f"the policy returned NaN or Inf {where}. Look at its training.")
