"""Cameras that draw a world."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from examples.metaworld.world import World, own_world

mujoco: Any = importlib.import_module("mujoco")  # a type checker cannot look into it

_LOOK_AT = (0.0, 0.7)  # metres, near the middle of the table
_COSTLY = ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX")
_PUCK, _PUCK_COLOR = "objGeom", (1.0, 1.0, 0.2, 1.0)


class Camera:
    """A camera in front of the robot.

    Args:
        world: The world that it draws.
        size: Pixels along the side of a picture.
        height: The height of the point that it looks at, in metres.
        distance: The distance from that point, in metres.
        elevation: The angle above the table, in degrees.

    Raises:
        RuntimeError: MuJoCo cannot draw. The message says what to install or to set.
    """

    def __init__(
        self, world: World, size: int, *, height: float, distance: float, elevation: float
    ) -> None:
        self._world = world
        try:
            self._renderer = mujoco.Renderer(world.model, size, size)
        except Exception as error:  # each way of drawing has its own
            raise RuntimeError(
                f"MuJoCo cannot draw with MUJOCO_GL={os.environ.get('MUJOCO_GL')!r}: {error} Set "
                "it to egl, osmesa or glfw before the program starts, or install a driver, on "
                "Debian with apt install libegl1 libegl-mesa0 libgl1-mesa-dri."
            ) from error
        self._camera = mujoco.MjvCamera()
        self._camera.lookat[:] = (*_LOOK_AT, height)
        self._camera.distance = distance
        self._camera.azimuth, self._camera.elevation = -90.0, -elevation
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # one of the sites is a goal, and not that of the task

    def picture(self) -> UInt8[np.ndarray, "size size 3"]:
        """Draws the world. The picture is mirrored: the robot's left is its left."""
        self._renderer.update_scene(self._world.data, self._camera, self._options)
        for flag in _COSTLY:  # each update switches them on again
            self._renderer.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = False
        return self._renderer.render()[:, ::-1].copy()

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()


@functools.cache
def own_camera(size: int) -> Camera:
    """Returns the camera of policies in `own_world`: it is near the table, and the puck is bright.

    Args:
        size: Pixels along the side of a picture.
    """
    world = own_world()
    puck = world.model.geom(_PUCK).id
    material = world.model.geom_matid[puck]
    world.model.mat_texid[material] = -1
    world.model.mat_emission[material] = 1.0
    world.model.mat_rgba[material] = world.model.geom_rgba[puck] = _PUCK_COLOR
    return Camera(world, size, height=0.05, distance=0.75, elevation=60.0)
