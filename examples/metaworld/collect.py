"""Demonstrations: scripted experts solve the tasks, and the episodes become a LeRobot dataset."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from metaworld.policies import (
    SawyerPickPlaceV3Policy,
    SawyerPushV3Policy,
    SawyerReachV3Policy,
)

from examples.lerobot.write import Recording, write_dataset
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import HOLD_STEPS, Task
from examples.metaworld.world import World, draw_start

FPS = 80
_EXPERTS = {
    "reach": SawyerReachV3Policy,
    "push": SawyerPushV3Policy,
    "pick-place": SawyerPickPlaceV3Policy,
}
_NOISE = 0.1  # on the executed action, so that the demonstrations show how to recover
_MAX_STEPS = 200
_TRIES = 5


def collect(
    root: Path,
    tasks: Sequence[Task],
    episodes: int,
    *,
    seed: int = 0,
    pool: Pool,
) -> Path:
    """Writes demonstrations as a LeRobot v3.0 dataset, and returns its folder.

    Args:
        root: A folder that does not exist yet.
        tasks: The tasks.
        episodes: The number of demonstrations of each task.
        seed: The seed. The result does not depend on the number of processes.
        pool: Runs the simulators.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written.
    """
    jobs = [(task, seed, episode) for task in tasks for episode in range(episodes)]
    recordings = pool.map(_demonstrate, jobs, "demonstrations")
    if pool.interrupted:
        raise KeyboardInterrupt
    return write_dataset(root, recordings, version="v3.0", fps=FPS, episodes_per_file=100)


def demonstrate(world: World, task: Task, rng: np.random.Generator) -> Recording:
    """Returns one demonstration.

    The recorded action is the expert's; the executed one is noisy.

    Raises:
        RuntimeError: The expert fails from every one of several starts.
    """
    for _ in range(_TRIES):
        states, actions = _attempt(world, task, rng)
        if task.is_done(states):
            return Recording(states[:-1], actions, task.name)
    raise RuntimeError(
        f"the expert failed {_TRIES} times at {task.name!r}. Move the goal to where the arm "
        "reaches."
    )


def _attempt(
    world: World, task: Task, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "t 7"], Float[np.ndarray, "t-1 4"]]:
    expert = _EXPERTS[task.kind]()
    states, actions = [world.reset(draw_start(rng))], []
    while len(actions) < _MAX_STEPS and not task.is_done(np.stack(states[-HOLD_STEPS:])):
        told = world.full_observation.copy()
        told[-3:] = task.goal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that its actions are clipped, as they are
            action = np.clip(expert.get_action(told), -1, 1).astype(np.float32)
        actions.append(action)
        states.append(world.step(action + rng.normal(0, _NOISE, len(action))))
    return np.stack(states), np.stack(actions)


@functools.cache
def _world() -> World:
    return World()


def _demonstrate(job: tuple[Task, int, int]) -> Recording:
    task, seed, episode = job
    return demonstrate(_world(), task, episode_rng(task, seed, episode))


def episode_rng(task: Task, seed: int, episode: int) -> np.random.Generator:
    """Returns the generator of a demonstration: of its start first, then of its noise."""
    return np.random.default_rng([seed, *task.name.encode(), episode])
