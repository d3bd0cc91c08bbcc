"""Pictures in Parquet keep every bit, or are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from examples.lerobot import LeRobotData
from examples.lerobot.pictures import decode_picture
from tests.support.lerobot import given


def encoded(array, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def color_png_of_16_bits():
    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = zlib.compress(b"\0" + struct.pack(">HHH", 350, 351, 352))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")
    )


def test_gray_of_16_bits_is_given_as_it_is():
    depth = np.array([[350, 4049], [0, 65535]], np.uint16)
    decoded = decode_picture(encoded(depth))
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded[..., 0], depth)


def test_gray_of_8_bits_becomes_rgb():
    decoded = decode_picture(encoded(np.array([[7, 255]], np.uint8)))
    assert decoded.tolist() == [[[7, 7, 7], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (color_png_of_16_bits(), "PNG picture of 16 bits, color type 2"),
        (encoded(np.array([[350.5]], np.float32), "TIFF"), "TIFF picture of 32 bits"),
    ],
)
def test_what_would_lose_bits_is_refused(content, what):
    with pytest.raises(ValueError, match=f"{what}.* cannot be read without a loss"):
        decode_picture(content)


@pytest.mark.parametrize("kept", [0, 20, 60])
def test_a_damaged_picture_is_refused(kept):
    content = encoded(np.arange(3000, dtype=np.uint16).reshape(50, 60))[:kept]
    with pytest.raises(ValueError, match=f"picture of {kept} bytes is damaged"):
        decode_picture(content)


def test_the_given_depth_video_is_given_as_it_is():
    data = LeRobotData(given("depth"))
    image = data[0]["images"]["observation.images.depth"]
    assert image.dtype == np.uint16
    assert image.shape == (96, 112, 1)
    assert (image.min(), image.max()) == (241, 2308)
    assert any("depth is given as the stored integers" in line for line in data.report.warnings)
