"""augment: images change, wrist cameras do not move, the same key gives the same images."""

import jax
import numpy as np

from examples.pi0.augment import augment


def half_dark(batch: int = 6, size: int = 40) -> np.ndarray:
    """The left half dark, the right half light."""
    image = np.full((batch, size, size, 3), -0.6, np.float32)
    image[:, :, size // 2 :] = 0.2
    return image


def edges(images: np.ndarray) -> np.ndarray:
    """Returns the column in which each row of pixels jumps most."""
    return np.abs(np.diff(np.asarray(images).mean(-1), axis=2)).argmax(2)


def test_base_cameras_move_and_wrist_cameras_do_not():
    given = {"base_0_rgb": half_dark(), "left_wrist_0_rgb": half_dark()}
    result = augment(jax.random.key(0), given)
    assert set(result) == set(given)
    wanted = edges(half_dark())
    np.testing.assert_array_equal(edges(result["left_wrist_0_rgb"]), wanted)
    moved = (edges(result["base_0_rgb"]) != wanted).any(axis=1)
    assert moved.mean() > 0.5  # a small turn and a centred crop can leave an edge where it was
    for name, images in result.items():
        assert images.shape == given[name].shape
        assert np.abs(images).max() <= 1
        means = np.asarray(images).mean((1, 2, 3))
        assert len(set(means.round(4).tolist())) == len(means)  # each has its own colours


def test_the_same_key_gives_the_same_half_dark():
    given = {"base_0_rgb": half_dark(2)}
    first, again, other = (augment(jax.random.key(i), given)["base_0_rgb"] for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
