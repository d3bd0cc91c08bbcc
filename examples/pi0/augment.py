"""Images are cropped, turned and recoloured a little in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, ArrayLike, Float

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How much the images of a camera change. A factor is drawn from 1 ± the amount.

    Attributes:
        crop: The side of the part that is shown, as a share of the image's.
        rotation: Degrees, either way.
        brightness: Of the factor on all colours.
        contrast: Of the factor on the difference to the mean.
        saturation: Of the factor on the difference to gray.
        hue: The angle by which colours turn, either way, as a share of a whole turn.
    """

    crop: float = 1.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The augmentations of a policy's cameras.

    Attributes:
        other: For cameras that stand, or move with the robot.
        wrist: For cameras whose name has "wrist", which move with the gripper that they show.
    """

    other: Augmentation
    wrist: Augmentation


OPENPI = Recipe(Augmentation(0.95, 5.0, 0.3, 0.4, 0.5), Augmentation(1.0, 0.0, 0.3, 0.4, 0.5))
"""The recipe of the released models."""

B1K = Recipe(
    Augmentation(0.9, 10.0, 0.4, 0.5, 0.5, 0.05), Augmentation(0.95, 5.0, 0.4, 0.5, 0.5, 0.05)
)
"""The recipe of the fork for BEHAVIOR-1K."""

RECIPES: Mapping[str, Recipe | None] = {"openpi": OPENPI, "b1k": B1K, "none": None}
"""The recipes by name; `None` leaves images as they are."""


def augment(
    rng: Array, images: Mapping[str, Float[ArrayLike, "b h w 3"]], recipe: Recipe = OPENPI
) -> dict[str, Array]:
    """Augments each image of each camera independently.

    Crop and rotation are one resampling, and the colours one matrix for each image, so that this
    costs little beside a training step.

    Args:
        rng: A key; the same key gives the same images.
        images: The images of each camera, with values in `[-1, 1]`.
        recipe: How much they change.

    Returns:
        The new images of each camera, with values in `[-1, 1]`.
    """
    keys = jax.random.split(rng, len(images))
    return {
        name: _augment_camera(
            key, jnp.asarray(image), recipe.wrist if "wrist" in name else recipe.other
        )
        for key, (name, image) in zip(keys, sorted(images.items()), strict=True)
    }


def _augment_camera(rng: Array, images: Array, amounts: Augmentation) -> Array:
    move_rng, color_rng = jax.random.split(rng)
    if amounts.crop < 1 or amounts.rotation:
        keys = jax.random.split(move_rng, len(images))
        images = jax.vmap(lambda key, image: _move(key, image, amounts))(keys, images)
    return _recolor(color_rng, images, amounts)


def _move(rng: Array, image: Float[Array, "h w 3"], amounts: Augmentation) -> Array:
    """Shows a turned part of an image. Beyond the edge the image goes on as at the edge."""
    turn_rng, place_rng = jax.random.split(rng)
    angle = jnp.deg2rad(_uniform(turn_rng, amounts.rotation))
    size = np.array(image.shape[:2])
    grid = np.moveaxis(np.indices(image.shape[:2]), 0, -1) - (size - 1) / 2
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    turned = grid @ (amounts.crop * jnp.array([[cos, -sin], [sin, cos]]))
    room = size * (1 - amounts.crop) / 2
    shift = jax.random.uniform(place_rng, (2,), minval=-room, maxval=room)
    rows, columns = jnp.moveaxis(turned + shift + (size - 1) / 2, -1, 0)
    return jax.vmap(
        lambda channel: map_coordinates(channel, [rows, columns], order=1, mode="nearest"),
        in_axes=-1,
        out_axes=-1,
    )(image)


def _recolor(rng: Array, images: Float[Array, "b h w 3"], amounts: Augmentation) -> Array:
    """Changes brightness, contrast, saturation and hue, which together are one linear map."""
    keys = jax.random.split(rng, 4)
    spread = (amounts.brightness, amounts.contrast, amounts.saturation, amounts.hue)
    draws = [_uniform(key, amount, len(images)) for key, amount in zip(keys, spread, strict=True)]
    brightness, contrast, saturation = (1 + draw for draw in draws[:3])
    matrix = _saturation(saturation)
    if amounts.hue:
        matrix = _hue(2 * jnp.pi * draws[3]) @ matrix
    matrix = brightness[:, None, None] * matrix
    mean = images.mean((1, 2)) / 2 + 0.5
    offset = jnp.einsum("bdc,bc->bd", matrix, (1 - contrast)[:, None] * mean)
    matrix = contrast[:, None, None] * matrix
    # For values in [-1, 1] instead of [0, 1].
    offset = 2 * offset + matrix.sum(-1) - 1
    colors = jnp.einsum("bhwc,bdc->bhwd", images, matrix) + offset[:, None, None]
    return jnp.clip(colors, -1, 1)


def _saturation(factor: Float[Array, " b"]) -> Float[Array, "b 3 3"]:
    gray = np.tile(_LUMA, (3, 1))
    return jnp.asarray(gray + factor[:, None, None] * (np.eye(3, dtype=np.float32) - gray))


def _hue(angle: Float[Array, " b"]) -> Float[Array, "b 3 3"]:
    """Turns colours around gray, in the plane of the differences of colours (YIQ)."""
    sin, cos, one, zero = jnp.sin(angle), jnp.cos(angle), jnp.ones_like(angle), angle * 0
    rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
    turn = jnp.moveaxis(jnp.array(rows), -1, 0)
    return jnp.asarray(np.linalg.inv(_TO_YIQ)) @ turn @ jnp.asarray(_TO_YIQ)


def _uniform(rng: Array, amount: float, *shape: int) -> Array:
    return jax.random.uniform(rng, shape, minval=-amount, maxval=amount)
