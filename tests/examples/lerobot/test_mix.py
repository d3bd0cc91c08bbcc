"""Several datasets as one source: tasks are matched by name."""

import numpy as np
import pytest

from examples.lerobot import LeRobotData, mix, write_dataset
from tests.support import as_untyped_code
from tests.support.lerobot import names_and_numbers, recordings


def mixed_pair(tmp_path):
    first = write_dataset(tmp_path / "a", recordings(tasks=("pour", "wipe")))
    second = write_dataset(tmp_path / "b", recordings(tasks=("fold", "pour")), version="v3.0")
    return LeRobotData(first, horizon=2), LeRobotData(second, horizon=2)


def test_mixing_matches_tasks_by_name_not_by_number(tmp_path):
    mixed = mix(mixed_pair(tmp_path))
    assert mixed.vocabulary.names == ("pour", "wipe", "fold")
    assert names_and_numbers(mixed) == {
        ("pour", 0, 0),
        ("wipe", 1, 1),
        ("fold", 0, 2),
        ("pour", 1, 0),
    }


def test_mixing_weights_datasets(tmp_path):
    mixed = mix(mixed_pair(tmp_path), weights=[1, 2])
    assert len(mixed) == 35 + 70
    assert mixed.task_frames == {"pour": 21 + 28, "wipe": 14, "fold": 42}


def test_mixing_pools_the_statistics(tmp_path):
    first, second = mixed_pair(tmp_path)
    stats = mix([first, second]).norm_stats["state"]
    states = [part[i]["state"] for part in (first, second) for i in range(35)]
    np.testing.assert_allclose(stats.mean, np.mean(states, axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats.std, np.std(states, axis=0), rtol=1e-5)


def test_mixing_refuses_frames_that_do_not_fit_into_one_batch(tmp_path):
    root = write_dataset(tmp_path / "a", recordings())
    with pytest.raises(ValueError, match="'horizon': 2(.|\n)*'horizon': 3"):
        mix([LeRobotData(root, horizon=2), LeRobotData(root, horizon=3)])


def test_mixing_pairs_says_where_the_factors_go(tmp_path):
    data, _ = mixed_pair(tmp_path)
    with as_untyped_code(), pytest.raises(TypeError, match=r"is a tuple.*weights=\[1, 2\]"):
        mix([(data, 1.0)])


def test_pieces_say_where_each_frame_is_in_its_part_of_the_episode(tmp_path):
    for data in mixed_pair(tmp_path):
        places, pieces = data.places(), data.pieces()
        assert len(pieces) == len(places)
        np.testing.assert_array_equal(pieces[:, 0], places[:, 1])  # one task in each episode
        for episode in data.episode_indices:
            of = pieces[places[:, 0] == episode]
            assert of[:, 1].tolist() == [len(of)] * len(of)
    (half,) = mix([data], weights=[0.5]).parts
    np.testing.assert_array_equal(half.pieces()[:, 0], half.places()[:, 1])
    assert (half.pieces()[:, 0] < half.pieces()[:, 1]).all()


def test_a_mix_splits_each_dataset_and_keeps_the_statistics(tmp_path):
    mixed = mix(mixed_pair(tmp_path))
    train, val = mixed.split(0.3)
    assert len(train) + len(val) == len(mixed)
    assert all(part.episode_indices for part in val.parts)
    assert val.norm_stats is mixed.norm_stats
