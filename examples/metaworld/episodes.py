"""Episodes: a policy acts in the world, and it is watched which task it does."""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from examples.metaworld.camera import Camera, own_camera
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import TEN, Task, done_task
from examples.metaworld.world import ACTION_SIZE, HAND_SIZE, World, draw_start, own_world

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


@runtime_checkable
class SeeingActor(Protocol):
    """A policy that sees the world on pictures instead of reading where the puck is."""

    @property
    def picture_size(self) -> int:
        """Pixels along the side of a picture."""
        ...

    def act_on(
        self,
        picture: UInt8[np.ndarray, "size size 3"],
        hand: Float[np.ndarray, "4"],
        task: str | None,
        seed: int,
    ) -> Float[np.ndarray, "h 4"]:
        """Returns a chunk of actions; see `Actor.act`.

        Args:
            picture: What the camera sees.
            hand: The position of the hand, and the opening of the gripper.
            task: The name of the task; `None` tells the robot nothing.
            seed: The seed of the noise.
        """
        ...


Loader = Callable[[Path], Actor | SeeingActor]
"""Loads a checkpoint as a policy."""


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
    world: World,
    actor: Actor | SeeingActor,
    job: Job,
    tasks: Sequence[Task] = TEN,
    seed: int = 0,
    camera: Camera | None = None,
) -> Episode:
    """Runs one episode, until a task is done or `MAX_STEPS` have passed.

    Args:
        world: The world.
        actor: The policy.
        job: What to run.
        tasks: The tasks that are looked for.
        seed: The seed.
        camera: The camera of a `SeeingActor`, see `own_camera`.

    Raises:
        ValueError: The policy returns a chunk of another shape, or NaN.
    """
    seen = [world.reset(draw_start(np.random.default_rng([seed, job.start])))]
    told = None if job.told is None else job.told.name
    done = None
    while done is None and len(seen) <= MAX_STEPS:
        noise = _draw(seed, job.start, len(seen))
        if camera is not None and isinstance(actor, SeeingActor):
            chunk = actor.act_on(camera.picture(), seen[-1][:HAND_SIZE], told, noise)
        else:
            assert isinstance(actor, Actor)
            chunk = actor.act(seen[-1], told, noise)
        _check(chunk, len(seen) - 1, job)
        for action in chunk[:EXECUTED]:
            seen.append(world.step(action))
            done = done_task(np.stack(seen[-20:]), tasks)
            if done is not None:
                break
    return Episode(job, done, np.stack(seen))


def run_jobs(
    jobs: Sequence[Job],
    load: Loader,
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
        load: Loads the policy, in each process once a call: a function of a module.
        path: The checkpoint, for `load`.
        pool: The processes.
        tasks: The tasks that are looked for.
        seed: The seed. Results do not depend on the number of processes.
        label: The name of the work in the progress bar.
    """
    # Another policy may have been saved under a path that an earlier call loaded.
    call = uuid.uuid4().hex
    run = functools.partial(_run, load=load, path=path, tasks=tuple(tasks), seed=seed, call=call)
    return pool.map(run, jobs, label)


def _run(
    job: Job, load: Loader, path: Path, tasks: tuple[Task, ...], seed: int, call: str
) -> Episode:
    actor = _actor(load, path, call)
    camera = own_camera(actor.picture_size) if isinstance(actor, SeeingActor) else None
    return run_episode(own_world(), actor, job, tasks, seed, camera)


@functools.lru_cache(maxsize=1)
def _actor(load: Loader, path: Path, call: str) -> Actor | SeeingActor:
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
