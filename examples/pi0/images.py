"""An image of any size becomes the model's."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image


def resize_with_pad(
    image: UInt8[np.ndarray, "h w 3"], size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Fits an image into a black square without distortion.

    Raises:
        TypeError: The image is not uint8.

    >>> resize_with_pad(np.full((2, 4, 3), 255, np.uint8), 4)[:, 0, 0].tolist()
    [0, 255, 255, 0]
    """
    if image.dtype != np.uint8:
        raise TypeError(
            f"the image has dtype {image.dtype}, but must be uint8 [height, width, 3]; convert it"
        )
    height, width = (max(side * size // max(image.shape[:2]), 1) for side in image.shape[:2])
    if (height, width) != image.shape[:2]:
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    if height == width:
        return image
    top, left = (size - height) // 2, (size - width) // 2
    result = np.zeros((size, size, 3), np.uint8)
    result[top : top + height, left : left + width] = image
    return result


def to_floats(image: UInt8[np.ndarray, "*b h w 3"]) -> Float[np.ndarray, "*b h w 3"]:
    """Returns the numbers that the model sees, float32 in [-1, 1]."""
    result = image.astype(np.float32)
    result /= 127.5
    result -= 1
    return result


def black_image(size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Returns the image of a camera that the robot does not have."""
    return np.zeros((size, size, 3), np.uint8)
