"""Statistics of relative actions, and of each step of a chunk."""

import numpy as np
import pytest

from examples.lerobot import LeRobotData, Recording, write_dataset
from examples.pi0.training.statistics import compute_stats, delta_mask, narrow_dimensions
from examples.pi0.transform import Place

LENGTHS = (9, 6)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    rng = np.random.default_rng(0)
    return [
        Recording(
            rng.normal(size=(n, 4)).astype(np.float32),
            rng.normal(size=(n, 3)).astype(np.float32),
            "pour",
        )
        for n in LENGTHS
    ]


@pytest.fixture(scope="module")
def data(episodes, tmp_path_factory):
    root = tmp_path_factory.mktemp("stats") / "data"
    return LeRobotData(write_dataset(root, episodes), horizon=4)


def test_relative_actions_are_those_of_every_frame_and_step(data, episodes):
    stats = compute_stats(data, (), (True, False, True), per_step=False)
    rows = [
        e.actions[t + k] - np.array([e.state[t, 0], 0, e.state[t, 2]])
        for e in episodes
        for t in range(len(e.state))
        for k in range(4)
        if t + k < len(e.state)
    ]
    np.testing.assert_allclose(stats["actions"].mean, np.mean(rows, 0), atol=1e-6)
    np.testing.assert_allclose(stats["actions"].std, np.std(rows, 0), rtol=1e-5)
    np.testing.assert_allclose(stats["actions"].q99, np.quantile(rows, 0.99, axis=0), rtol=1e-5)


def test_each_step_has_its_own_statistics_without_padding(data, episodes):
    stats = compute_stats(data, (), (), per_step=True)["actions"]
    assert stats.mean.shape == (4, 3)
    for step in range(4):
        rows = np.concatenate([e.actions[step:] for e in episodes])
        np.testing.assert_allclose(stats.mean[step], rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(stats.max[step], rows.max(0))


def test_states_are_those_that_the_model_sees(data, episodes):
    places = (Place(2, 4, is_sum=True), Place(0, 1))
    stats = compute_stats(data, places, (), per_step=False)["state"]
    states = np.concatenate([e.state for e in episodes])
    expected = np.stack([states[:, 2:].sum(1), states[:, 0]], axis=1)
    np.testing.assert_allclose(stats.mean, expected.mean(0), atol=1e-6)


def test_masks_are_written_as_runs():
    assert delta_mask((-3, 2, -1)) == (False,) * 3 + (True,) * 2 + (False,)


def test_narrow_dimensions_are_named(data):
    stats = compute_stats(data, (), (), per_step=False)
    assert narrow_dimensions(stats, 1e-2) == []
    assert "dimensions [0, 1, 2, 3] of state" in narrow_dimensions(stats, 1e3)[0]
