"""Images of any size in the model's square."""

import jax
import numpy as np
import pytest

from examples.pi0.images import black_image, resize_with_pad, to_floats


@pytest.mark.parametrize(("height", "width"), [(64, 64), (28, 28), (48, 96), (90, 30), (7, 14)])
def test_images_keep_their_aspect_in_a_black_square(height, width):
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 200 // height, columns * 200 // width, rows * 0 + 50], -1)
    out = resize_with_pad(image.astype(np.uint8), 28)
    h, w = (side * 28 // max(height, width) for side in (height, width))
    inside = jax.image.resize(image.astype(np.float32), (h, w, 3), "linear", antialias=True)
    top, left = (28 - h) // 2, (28 - w) // 2
    expected = np.zeros((28, 28, 3), np.float32)
    expected[top : top + h, left : left + w] = inside
    assert (out.shape, out.dtype) == ((28, 28, 3), np.uint8)
    np.testing.assert_allclose(out, expected, atol=1.01)  # PIL rounds to bytes


def test_the_model_sees_floats_from_minus_one_to_one():
    seen = to_floats(np.array([[[[0, 51, 255]]]], np.uint8))
    assert seen.dtype == np.float32
    np.testing.assert_allclose(seen[0, 0, 0], [-1, -0.6, 1], rtol=1e-6)


def test_a_black_image_is_that_of_black_bytes():
    np.testing.assert_array_equal(black_image(8), resize_with_pad(np.zeros((8, 8, 3), np.uint8), 8))


def test_images_that_are_not_bytes_are_refused():
    with pytest.raises(Exception, match=r"uint8|UInt8"):  # ours, or the type checker's before it
        resize_with_pad(np.zeros((8, 8, 3), np.float32), 8)
