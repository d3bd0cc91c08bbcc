"""Images are shifted, turned and recoloured a little in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dm_pix as pix
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

CROP = 0.95  # of the side
ROTATION = 5.0  # degrees, either way
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.4, 0.5  # factors are in 1 ± this


def augment(rng: Array, images: Mapping[str, Float[ArrayLike, "b h w 3"]]) -> dict[str, Array]:
    """Augments each image of each camera independently.

    A crop of 95 % and a rotation of up to 5° move the image, unless it is of a wrist camera (whose
    name has "wrist"), which moves with the gripper that it shows. Brightness, contrast and
    saturation change for all cameras.

    Args:
        rng: A key; the same key gives the same images.
        images: The images of each camera, with values in `[-1, 1]`.

    Returns:
        The new images of each camera, with values in `[-1, 1]`.
    """
    keys = jax.random.split(rng, len(images))
    return {
        name: _augment_camera(key, image, moves="wrist" not in name)
        for key, (name, image) in zip(keys, sorted(images.items()), strict=True)
    }


def _augment_camera(rng: Array, images: Any, *, moves: bool) -> Array:
    def one(rng: Array, image: Array) -> Array:
        move_rng, color_rng = jax.random.split(rng)
        image = image / 2 + 0.5
        if moves:
            image = _move(move_rng, image)
        return jnp.clip(_recolor(color_rng, image), 0, 1) * 2 - 1

    return jax.vmap(one)(jax.random.split(rng, len(images)), images)


def _move(rng: Array, image: Array) -> Any:
    crop_rng, turn_rng = jax.random.split(rng)
    height, width, channels = image.shape
    part = (int(height * CROP), int(width * CROP), channels)
    image = jax.image.resize(pix.random_crop(crop_rng, image, part), image.shape, "bilinear")
    degrees = jax.random.uniform(turn_rng, minval=-ROTATION, maxval=ROTATION)
    angle: Any = jnp.deg2rad(degrees)
    return pix.rotate(image, angle)


def _recolor(rng: Array, image: Any) -> Any:
    brightness, contrast, saturation = jax.random.split(rng, 3)
    factor = jax.random.uniform(brightness, minval=1 - BRIGHTNESS, maxval=1 + BRIGHTNESS)
    image = jnp.clip(image * factor, 0, 1)
    image = pix.random_contrast(contrast, image, 1 - CONTRAST, 1 + CONTRAST)
    image = jnp.clip(image, 0, 1)
    return pix.random_saturation(saturation, image, 1 - SATURATION, 1 + SATURATION)
