"""augment: images change, wrist cameras do not move, the same key gives the same images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from examples.pi0 import augment as augmentation
from examples.pi0.augment import B1K, Augmentation, Recipe, augment


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


def noise(batch: int = 3, size: int = 24) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def test_without_amounts_images_stay_as_they_are():
    none = Recipe(Augmentation(), Augmentation())
    given = {"base_0_rgb": noise(), "left_wrist_0_rgb": noise()}
    for name, image in augment(jax.random.key(0), given, none).items():
        np.testing.assert_allclose(image, given[name], atol=1e-6)


@pytest.mark.parametrize(("degrees", "crop"), [(20.0, 1.0), (0.0, 0.8), (15.0, 0.7)])
def test_crop_and_rotation_are_one_bilinear_resampling(degrees, crop, monkeypatch):
    image, shift = noise(1)[0], np.array([1.5, -0.5])
    monkeypatch.setattr(augmentation, "_uniform", lambda *_: jnp.float32(degrees))
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: jnp.asarray(shift))
    moved = augmentation._move(jax.random.key(0), jnp.asarray(image), Augmentation(crop=crop))
    angle, middle = np.deg2rad(degrees), np.full(2, 11.5)
    matrix = crop * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offset = middle + shift - matrix @ middle
    expected = np.stack(
        [
            ndimage.affine_transform(image[..., c], matrix, offset, order=1, mode="nearest")
            for c in range(3)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def recolored(**amounts) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image in [0, 1] and what becomes of it, far from where values are clipped."""
    image = (noise(1) / 8).astype(np.float32)
    changed = augmentation._recolor(jax.random.key(3), jnp.asarray(image), Augmentation(**amounts))
    return image[0] / 2 + 0.5, np.asarray(changed)[0] / 2 + 0.5


def test_each_change_of_colours_is_what_its_name_says():
    gray = np.array([0.299, 0.587, 0.114])
    before, after = recolored(brightness=0.2)
    np.testing.assert_allclose((after / before).std(), 0, atol=1e-5)
    before, after = recolored(contrast=0.4)
    ratio = (after - after.mean((0, 1))) / (before - before.mean((0, 1)))
    assert ratio.std() < 1e-3
    np.testing.assert_allclose(after.mean((0, 1)), before.mean((0, 1)), atol=1e-5)
    for change in ({"saturation": 0.5}, {"hue": 0.1}):
        before, after = recolored(**change)
        np.testing.assert_allclose(after @ gray, before @ gray, atol=2e-3)
        assert np.abs(after - before).max() > 0.01


def test_the_recipes_move_and_colour_as_much_as_they_say():
    given = {"base_0_rgb": half_dark(), "left_wrist_0_rgb": half_dark()}
    result = augment(jax.random.key(0), given, B1K)
    moved = edges(result["left_wrist_0_rgb"]) != edges(half_dark())
    assert moved.any()  # in this recipe wrist cameras move, too
    assert all(np.abs(np.asarray(x)).max() <= 1 for x in result.values())
    channels = np.asarray(result["base_0_rgb"]).mean((1, 2))
    assert np.abs(channels - channels.mean(1, keepdims=True)).max() < 0.2  # gray stays gray
