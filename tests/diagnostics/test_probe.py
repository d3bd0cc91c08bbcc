"""observation_probe: the nearest observation of another group tells the task."""

import numpy as np
import pytest

from taskcond.diagnostics import observation_probe
from tests.support import as_untyped_code


def test_scenes_of_their_own_give_tasks_away():
    rng = np.random.default_rng(0)
    task_id = np.arange(300) % 3
    seen = np.stack([10.0 * task_id, rng.normal(size=300)], axis=1) + rng.normal(0, 0.1, (300, 2))
    probe = observation_probe(seen, task_id)
    assert (probe.hits, probe.samples, probe.chance) == (300, 300, 1 / 3)


def test_one_scene_gives_nothing_away():
    rng = np.random.default_rng(0)
    probe = observation_probe(rng.normal(size=(900, 2)), np.arange(900) % 3)
    low, high = probe.to_dict()["interval"]
    assert low < 1 / 3 < high


def test_the_frames_of_ones_own_episode_do_not_count():
    # Each episode stays where it began, so that its own frames are nearest, and begins anywhere.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 3)
    starts = np.repeat(rng.normal(size=(300, 1)), 3, axis=0)
    seen = starts + rng.normal(0, 1e-6, (900, 1))
    task_id = groups % 3
    assert observation_probe(seen, task_id).accuracy == 1
    assert observation_probe(seen, task_id, groups).accuracy < 0.45


def test_a_constant_column_changes_nothing_and_tasks_of_one_group_are_left_out():
    seen = np.array([[0.0, 7], [0.1, 7], [5.0, 7], [5.1, 7], [9.0, 7]])
    probe = observation_probe(seen, np.array([0, 0, 1, 1, 2]))
    assert (probe.hits, probe.samples, probe.chance) == (4, 4, 0.5)


def test_bad_samples_are_refused():
    seen, ids = np.zeros((4, 1)), np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match="1 tasks have samples of two or more groups"):
        observation_probe(seen, ids, np.array([0, 0, 1, 2]))
    with pytest.raises(ValueError, match="1 observations hold NaN or Inf, the first at 2"):
        observation_probe(np.array([[0.0], [1], [np.nan], [2]]), ids)
    with as_untyped_code(), pytest.raises(ValueError, match="4 observations, 3 task ids and 4 gr"):
        observation_probe(seen, ids[:3])
