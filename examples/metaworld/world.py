"""The world: Meta-World's scene of pick-and-place, without its goal."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Float

try:
    from metaworld.envs.sawyer_pick_place_v3 import SawyerPickPlaceEnvV3
except ImportError as error:
    raise ImportError(
        "Meta-World is not installed. Run pip install metaworld packaging, or in a clone "
        "pip install -e '.[metaworld]'."
    ) from error

STATE_SIZE = 7
HAND_SIZE = 4
ACTION_SIZE = 4
_PUCK_LOW, _PUCK_HIGH = np.array([-0.1, 0.6]), np.array([0.1, 0.7])  # metres
_PUCK_HEIGHT = 0.02
_SCENE_GOAL = np.array([0.0, 0.9, 0.2])  # the scene wants one; it is the same for all tasks


def draw_start(rng: np.random.Generator) -> Float[np.ndarray, "2"]:
    """Returns a random start of the puck on the table. No task has starts of its own."""
    return rng.uniform(_PUCK_LOW, _PUCK_HIGH)


class World:
    """One robot arm, one puck. An action moves the hand and closes the gripper.

    Actions are four numbers in [-1, 1]: the hand's motion to the right, forward and up (1 is 1 cm
    per step), and the effort of closing the gripper.

    Attributes:
        full_observation: What Meta-World's scripted experts read, with a goal of zeros.
    """

    def __init__(self) -> None:
        self._env = SawyerPickPlaceEnvV3()
        self._env._freeze_rand_vec = True  # the start is ours, not a random one
        self._env._set_task_called = True
        self._env._partially_observable = True  # zeros in place of the goal
        self.full_observation = np.zeros(39)

    def reset(self, puck: Float[np.ndarray, "2"]) -> Float[np.ndarray, "7"]:
        """Puts the hand to its start and the puck to a place; returns the observation."""
        self._env._last_rand_vec = np.hstack([puck, _PUCK_HEIGHT, _SCENE_GOAL])
        self.full_observation, _ = self._env.reset()
        return self.observation

    def step(self, action: Float[np.ndarray, "4"]) -> Float[np.ndarray, "7"]:
        """Acts for a step of 1/80 s; returns the observation."""
        clipped = np.clip(action, -1.0, 1.0).astype(np.float32)
        self.full_observation = self._env.step(clipped)[0]
        return self.observation

    @property
    def observation(self) -> Float[np.ndarray, "7"]:
        """The hand, the gripper and the puck."""
        return self.full_observation[:STATE_SIZE].astype(np.float32)

    @property
    def model(self) -> Any:
        """MuJoCo's model of the scene."""
        return self._env.model

    @property
    def data(self) -> Any:
        """MuJoCo's state of the scene."""
        return self._env.data

    def close(self) -> None:
        """Frees the simulator."""
        self._env.close()


@functools.cache
def own_world() -> World:
    """Returns the world of this process, which is made once because that takes seconds."""
    return World()
