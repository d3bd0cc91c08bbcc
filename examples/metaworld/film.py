"""Films a world: its pictures while a policy acts, from in front of the robot."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from examples.metaworld.camera import Camera
from examples.metaworld.world import World

EVERY = 4
"""The number of steps from one picture to the next: 20 pictures for a second of the robot."""


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
        self._camera = Camera(self, size, height=0.22, distance=1.25, elevation=20.0)

    def reset(self, puck: Float[np.ndarray, "2"]) -> Float[np.ndarray, "7"]:
        """Does what `World.reset` does, and begins a new film."""
        observation = super().reset(puck)
        self._steps, self.pictures = 0, [self._camera.picture()]
        return observation

    def step(self, action: Float[np.ndarray, "4"]) -> Float[np.ndarray, "7"]:
        """Does what `World.step` does."""
        observation = super().step(action)
        self._steps += 1
        if self._steps % EVERY == 0:
            self.pictures.append(self._camera.picture())
        return observation

    def close(self) -> None:
        """Frees the simulator and the renderer."""
        self._camera.close()
        super().close()
