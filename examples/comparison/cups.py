"""A generated dataset of tasks that look alike: an arm reaches for one of several equal cups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from examples.lerobot.write import Recording, write_dataset


def write_demo_dataset(
    root: str | Path,
    *,
    num_tasks: int = 8,
    episodes_per_task: int = 12,
    frames: int = 24,
    seed: int = 0,
    video: bool = True,
) -> Path:
    """Writes a v2.1 dataset of tasks that look alike, and returns its folder.

    An arm's tip starts to move to one of `num_tasks` equal cups in a ring around the table. Only
    the first, slow steps are recorded, and each start is used once for every task, so that neither
    state nor image says which cup it is. Without a task id, no guess is better than chance.

    States are the tip's `x, y, z` in meters, with a sensor's noise, and the gripper's opening.
    Actions are the velocity `vx, vy, vz` in m/s and the opening. The gripper never moves. The
    camera looks at the table and does not see the arm.

    Args:
        root: A folder that does not exist yet, or is empty.
        num_tasks: The number of cups.
        episodes_per_task: The number of starts.
        frames: The number of steps in an episode, at 20 per second.
        seed: The seed of starts, images and jitter.
        video: Whether to write the camera's images.
    """
    rng = np.random.default_rng(seed)
    angles = 2 * np.pi * np.arange(num_tasks) / num_tasks
    cups = np.stack([np.cos(angles), np.sin(angles), np.full(num_tasks, -0.3)], axis=1)  # meters
    recordings = []
    for _ in range(episodes_per_task):
        start = rng.uniform([-0.3, -0.3, 0.1], [0.3, 0.3, 0.3])
        images = {"observation.images.wrist": _images(rng, cups, frames)} if video else {}
        for task, cup in enumerate(cups):
            recordings.append(_recording(rng, start, cup, f"reach cup {task}", frames, images))
    return write_dataset(root, recordings, version="v2.1")


def _recording(
    rng: np.random.Generator,
    start: Float[np.ndarray, "3"],
    cup: Float[np.ndarray, "3"],
    task: str,
    frames: int,
    images: Mapping[str, UInt8[np.ndarray, "t height width 3"]],
) -> Recording:
    speed, jitter, noise, step = 0.04, 0.002, 0.03, 1 / 20  # m/s, m/s, m, s
    position, states, actions = start, [], []
    for _ in range(frames):
        way = cup - position
        velocity = speed * way / np.linalg.norm(way) + rng.normal(0, jitter, 3)
        states.append([*position + rng.normal(0, noise, 3), 1.0])
        actions.append([*velocity, 1.0])
        position = position + velocity * step
    return Recording(np.array(states, np.float32), np.array(actions, np.float32), task, images)


def _images(
    rng: np.random.Generator, cups: Float[np.ndarray, "cups 3"], frames: int
) -> UInt8[np.ndarray, "t 64 64 3"]:
    """Returns images of all cups on the table, under a random light and with a camera's noise."""
    rows, columns = np.mgrid[:64, :64]
    image = np.full((64, 64, 3), (150, 120, 90), np.float32)
    for x, y, _ in cups:
        inside = (columns - 32 - 24 * x) ** 2 + (rows - 32 + 24 * y) ** 2 < 20
        image[inside] = (200, 60, 50)
    light = rng.uniform(0.7, 1.2)
    noise = rng.normal(0, 3, (frames, 64, 64, 1))
    return np.clip(image * light + noise, 0, 255).astype(np.uint8)
