"""Pictures stored in Parquet as arrays, without a loss of bits."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

_BIT_DEPTH, _COLOR_TYPE = 24, 25  # places of these bytes in a PNG file


def decode_picture(content: bytes) -> UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 1"]:
    """Returns a picture as RGB, or one of 16-bit gray, as depth cameras give, as it is stored.

    Raises:
        ValueError: It has more than 8 bits, but is not 16-bit gray; or it is damaged.
    """
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except OSError as error:
        raise ValueError(
            f"the picture of {len(content)} bytes is damaged or of an unknown format: {error}. "
            "Download the Parquet file again."
        ) from error
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[..., None]
    # Pillow opens a 16-bit color PNG as an 8-bit one.
    wide = content.startswith(b"\x89PNG") and content[_BIT_DEPTH] > 8
    if wide or picture.mode in ("I", "F"):
        bits = (
            f"{content[_BIT_DEPTH]} bits, color type {content[_COLOR_TYPE]}" if wide else "32 bits"
        )
        raise ValueError(
            f"a {picture.format} picture of {bits} cannot be read without a loss. Store pictures "
            "of 8 bits, or of 16-bit gray, or leave the camera out with cameras=."
        )
    return np.asarray(picture.convert("RGB"))
