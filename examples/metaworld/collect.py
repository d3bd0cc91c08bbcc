"""Demonstrations: scripted experts solve the tasks, and the episodes become a LeRobot dataset.

python -m examples.metaworld.collect runs/metaworld/dataset
MUJOCO_GL=egl python -m examples.metaworld.collect runs/metaworld/pictures --picture_size 56
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float, UInt8
from metaworld.policies import (
    SawyerPickPlaceV3Policy,
    SawyerPushV3Policy,
    SawyerReachV3Policy,
)

from examples.lerobot.write import Recording, write_dataset
from examples.metaworld.camera import Camera, own_camera
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import HOLD_STEPS, TEN, Task
from examples.metaworld.world import HAND_SIZE, World, draw_start, own_world

FPS = 80
CAMERA = "observation.images.front"
_EXPERTS = {
    "reach": SawyerReachV3Policy,
    "push": SawyerPushV3Policy,
    "pick-place": SawyerPickPlaceV3Policy,
}
_NOISE = 0.1  # on the executed action, so that the demonstrations show how to recover
_MAX_STEPS = 200
_TRIES = 5


@dataclasses.dataclass
class Args:
    """Records demonstrations of the ten tasks as a LeRobot dataset.

    Attributes:
        out: The folder of the dataset, which does not exist yet.
        demonstrations: The number of demonstrations of each task.
        picture_size: Pixels along the side of a picture; without it there are no pictures.
        workers: The number of processes.
        seed: The seed of starts and noise.
    """

    out: Annotated[Path, tyro.conf.Positional]
    demonstrations: int = 50
    picture_size: int | None = None
    workers: int = 2
    seed: int = 0


def main(args: Args) -> None:
    """Records the dataset."""
    with Pool(args.workers) as pool:
        collect(
            args.out,
            TEN,
            args.demonstrations,
            seed=args.seed,
            pool=pool,
            picture_size=args.picture_size,
        )
    print(f"Wrote {args.out}.")


def collect(
    root: Path,
    tasks: Sequence[Task],
    episodes: int | Sequence[int],
    *,
    seed: int = 0,
    pool: Pool,
    picture_size: int | None = None,
) -> Path:
    """Writes demonstrations as a LeRobot v3.0 dataset, and returns its folder.

    With pictures, the state does not say where the puck is.

    Args:
        root: A folder that does not exist yet.
        tasks: The tasks.
        episodes: The number of demonstrations of each task, or one number for each.
        seed: The seed. The result does not depend on the number of processes.
        pool: Runs the simulators.
        picture_size: Pixels along the side of a picture; `None` records no pictures.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; nothing is written.
    """
    counts = [episodes] * len(tasks) if isinstance(episodes, int) else episodes
    jobs = [
        (task, seed, episode)
        for task, count in zip(tasks, counts, strict=True)
        for episode in range(count)
    ]
    demonstrate_job = functools.partial(_demonstrate, picture_size=picture_size)
    recordings = pool.map(demonstrate_job, jobs, "demonstrations")
    if pool.interrupted:
        raise KeyboardInterrupt
    return write_dataset(
        root, recordings, version="v3.0", fps=FPS, episodes_per_file=100, keyframe_every=2
    )


def demonstrate(
    world: World, task: Task, rng: np.random.Generator, camera: Camera | None = None
) -> Recording:
    """Returns one demonstration, with pictures if there is a camera.

    The recorded action is the expert's; the executed one is noisy.

    Raises:
        RuntimeError: The expert fails from every one of several starts.
    """
    for _ in range(_TRIES):
        states, actions, pictures = _attempt(world, task, rng, camera)
        if not task.is_done(states):
            continue
        if camera is None:
            return Recording(states[:-1], actions, task.name)
        seen = {CAMERA: np.stack(pictures)}
        return Recording(states[:-1, :HAND_SIZE], actions, task.name, seen)
    raise RuntimeError(
        f"the expert failed {_TRIES} times at {task.name!r}. Move the goal to where the arm "
        "reaches."
    )


def _attempt(
    world: World, task: Task, rng: np.random.Generator, camera: Camera | None
) -> tuple[
    Float[np.ndarray, "t 7"], Float[np.ndarray, "t-1 4"], list[UInt8[np.ndarray, "size size 3"]]
]:
    expert = _EXPERTS[task.kind]()
    states, actions, pictures = [world.reset(draw_start(rng))], [], []
    while len(actions) < _MAX_STEPS and not task.is_done(np.stack(states[-HOLD_STEPS:])):
        told = world.full_observation.copy()
        told[-3:] = task.goal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that its actions are clipped, as they are
            action = np.clip(expert.get_action(told), -1, 1).astype(np.float32)
        actions.append(action)
        if camera is not None:
            pictures.append(camera.picture())
        states.append(world.step(action + rng.normal(0, _NOISE, len(action))))
    return np.stack(states), np.stack(actions), pictures


def _demonstrate(job: tuple[Task, int, int], picture_size: int | None) -> Recording:
    task, seed, episode = job
    camera = None if picture_size is None else own_camera(picture_size)
    return demonstrate(own_world(), task, episode_rng(task, seed, episode), camera)


def episode_rng(task: Task, seed: int, episode: int) -> np.random.Generator:
    """Returns the generator of a demonstration: of its start first, then of its noise."""
    return np.random.default_rng([seed, *task.name.encode(), episode])


if __name__ == "__main__":
    main(tyro.cli(Args))
