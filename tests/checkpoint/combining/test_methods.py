"""Shared weights follow the formula of each paper, written again in plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from taskcond.checkpoint import (
    Recipe,
    Specialist,
    combine_checkpoints,
    load_params,
    save_params,
)
from taskcond.checkpoint.combining.methods import magnitude_threshold
from taskcond.trees import flatten
from tests.support.specialists import (
    BIAS,
    KERNEL,
    about,
    combine,
    parts,
    tree,
)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def trimmed(x: np.ndarray, density: float) -> np.ndarray:
    count = max(1, round(density * x.size))
    return np.where(np.abs(x) >= np.sort(np.abs(x), axis=None)[-count], x, 0)


@pytest.mark.parametrize("path", [KERNEL, BIAS])
def test_mean(saved, tmp_path, path):
    base, a, b = parts(path)
    close(combine(saved, tmp_path, weights=(1.0, 3.0))[path], base + (a + 3 * b) / 4)


def test_the_mean_of_equal_weights_is_those_weights_to_the_bit(saved, tmp_path):
    save_params(tree(1), saved["b"], conditioning=about((0, 7, 0)), overwrite=True)
    result = combine(saved, tmp_path, weights=(0.3, 0.7))
    assert result[KERNEL].tobytes() == flatten(tree(1))[KERNEL].tobytes()


@pytest.mark.parametrize("path", [KERNEL, BIAS])
def test_task_arithmetic(saved, tmp_path, path):
    base, a, b = parts(path)
    result = combine(saved, tmp_path, method="task_arithmetic", weights=(1.0, -0.5), scale=0.4)
    close(result[path], base + 0.4 * (a - 0.5 * b))


@pytest.mark.parametrize("density", [None, 0.5, 1.0])
@pytest.mark.parametrize("path", [KERNEL, BIAS])
def test_ties(saved, tmp_path, path, density):
    result = combine(saved, tmp_path, method="ties", density=density, scale=0.7)
    base, *changes = parts(path)
    a, b = (trimmed(x, density or 0.2) for x in changes)
    sign = np.sign(a + b)
    votes = [np.where(np.sign(x) == sign, x, 0) for x in (a, b)]
    count = sum((vote != 0).astype(int) for vote in votes)
    close(result[path], base + 0.7 * sum(votes) / np.maximum(count, 1))


def test_dare_drops_most_and_scales_the_rest(saved, tmp_path):
    result = combine(saved, tmp_path, method="dare", density=0.25, weights=(1.0, 0.0))
    base, a, _ = parts(KERNEL)
    change = result[KERNEL] - base
    kept = change != 0
    assert abs(kept.mean() - 0.25) < 0.06
    np.testing.assert_allclose(change[kept], 4 * a[kept], rtol=1e-3, atol=1e-5)
    same = combine(saved, tmp_path, method="dare", density=0.25, weights=(1.0, 0.0))
    other = combine(saved, tmp_path, method="dare", density=0.25, weights=(1.0, 0.0), seed=1)
    np.testing.assert_array_equal(same[KERNEL], result[KERNEL])
    assert not np.array_equal(other[KERNEL], result[KERNEL])


def test_ties_trims_float64_by_its_own_differences(tmp_path):
    base = np.ones((2, 2))
    save_params({"w": base}, tmp_path / "base")
    save_params({"w": base + np.array([[4e-9, 3e-9], [2e-9, 1e-9]])}, tmp_path / "a")
    specialists = (Specialist(str(tmp_path / "a")),)
    ties = Recipe(specialists, base=str(tmp_path / "base"), method="ties", density=0.25)
    combine_checkpoints(ties, tmp_path / "out")
    change = load_params(tmp_path / "out")["w"] - base
    np.testing.assert_allclose(change, [[4e-9, 0], [0, 0]], atol=1e-15)


def test_thresholds_are_exact():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for density in (0.001, 0.2, 0.5, 1.0):
        threshold = magnitude_threshold(lambda: [values[:300], values[300:]], density)
        assert (np.abs(values) >= threshold).sum() == round(1000 * density)
