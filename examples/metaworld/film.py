"""Films a world: its pictures while a policy acts, from in front of the robot."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from examples.metaworld.world import World

mujoco: Any = importlib.import_module("mujoco")  # a type checker cannot look into it

EVERY = 4
"""The number of steps from one picture to the next: 20 pictures for a second of the robot."""

_LOOK_AT = (0.0, 0.7, 0.22)  # metres: above the middle of the table
_DISTANCE, _AZIMUTH, _ELEVATION = 1.25, -90.0, -20.0  # metres, degrees
_COSTLY = ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX")


class FilmedWorld(World):
    """A world that keeps a picture of every `EVERY`th step since the last reset.

    Args:
        size: Pixels along the side of a picture.

    Attributes:
        pictures: uint8 `[size, size, 3]` each. They are mirrored, so that the robot's left is the
            left of the picture.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pictures: list[UInt8[np.ndarray, "size size 3"]] = []
        self._steps = 0
        self._renderer = mujoco.Renderer(self._env.model, size, size)
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = _LOOK_AT
        self._camera.distance = _DISTANCE
        self._camera.azimuth, self._camera.elevation = _AZIMUTH, _ELEVATION
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # one of the sites is a goal, and not that of the task

    def reset(self, puck: Float[np.ndarray, "2"]) -> Float[np.ndarray, "7"]:
        """Does what `World.reset` does, and begins a new film."""
        observation = super().reset(puck)
        self._steps, self.pictures = 0, [self._picture()]
        return observation

    def step(self, action: Float[np.ndarray, "4"]) -> Float[np.ndarray, "7"]:
        """Does what `World.step` does."""
        observation = super().step(action)
        self._steps += 1
        if self._steps % EVERY == 0:
            self.pictures.append(self._picture())
        return observation

    def close(self) -> None:
        """Frees the simulator and the renderer."""
        self._renderer.close()
        super().close()

    def _picture(self) -> UInt8[np.ndarray, "size size 3"]:
        self._renderer.update_scene(self._env.data, self._camera, self._options)
        for flag in _COSTLY:  # each update switches them on again
            self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = False
        return self._renderer.render()[:, ::-1].copy()
