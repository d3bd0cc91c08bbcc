"""Batches: the same for the same seed, resumable, in shares for each process."""

import json

import grain
import numpy as np
import pytest

from examples.lerobot import LeRobotData, make_loader, write_dataset
from tests.support.lerobot import CAMERA, recordings


def test_a_loader_gives_batches_that_normalize(root):
    data = LeRobotData(root, horizon=4)
    batch = next(iter(make_loader(data, batch_size=8, normalize_by="quantile")))
    assert batch["actions"].shape == (8, 4, 3)
    assert batch["task_id"].shape == (8,)
    assert batch["task_id"].dtype == np.int32
    assert np.abs(batch["state"]).max() < 1.2


def test_a_loader_is_the_same_for_the_same_seed_and_new_each_epoch(root):
    data = LeRobotData(root)

    def epochs(seed):
        loader = make_loader(data, batch_size=35, seed=seed, num_epochs=2)
        return [batch["state"][:, 0].tolist() for batch in loader]

    first = epochs(0)
    assert first == epochs(0)
    assert first != epochs(1)
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == sorted(data[i]["state"][0] for i in range(35))


def test_a_loader_resumes_where_it_stood(root):
    loader = make_loader(LeRobotData(root), batch_size=4, seed=3)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator)["state"].tolist() for _ in range(12)]
    resumed = iter(loader)
    resumed.set_state(state)
    assert [next(resumed)["state"].tolist() for _ in range(12)] == expected


def test_processes_get_disjoint_shares_of_one_size(root):
    data = LeRobotData(root)
    shares = [
        np.concatenate(
            [
                batch["state"][:, 0]
                for batch in make_loader(
                    data, batch_size=1, num_epochs=1, process_index=i, process_count=3
                )
            ]
        )
        for i in range(3)
    ]
    assert [len(share) for share in shares] == [11, 11, 11]
    assert len(np.unique(np.concatenate(shares))) == 33


def test_a_loader_transforms_each_frame(root):
    data = LeRobotData(root)
    loader = make_loader(data, batch_size=5, transform=lambda frame: {"x": frame["state"] + 1})
    batch = next(iter(loader))
    assert batch.keys() == {"x"}
    assert batch["x"].shape == (5, 2)
    with pytest.raises(ValueError, match="Pass one"):
        make_loader(data, batch_size=5, transform=dict, normalize_by="zscore")


def test_a_share_smaller_than_a_batch_is_refused(root):
    with pytest.raises(ValueError, match="35 frames, which is less than one batch of 64"):
        make_loader(LeRobotData(root), batch_size=64)


def test_it_is_a_source_for_grains_data_loader(root):
    data = LeRobotData(root)
    sampler = grain.samplers.IndexSampler(len(data), num_epochs=1, shuffle=False)
    items = list(grain.DataLoader(data_source=data, sampler=sampler, worker_count=0))
    assert [int(item["task_id"]) for item in items] == [int(data[i]["task_id"]) for i in range(35)]


def test_grains_data_loader_resumes_with_the_dataset_opened_anew(root):
    def loader():
        data = LeRobotData(root)
        sampler = grain.samplers.IndexSampler(len(data), shuffle=True, seed=0)
        return iter(grain.DataLoader(data_source=data, sampler=sampler, worker_count=0))

    iterator = loader()
    for _ in range(5):
        next(iterator)
    state, expected = iterator.get_state(), next(iterator)["state"].tolist()
    resumed = loader()
    resumed.set_state(state)
    assert next(resumed)["state"].tolist() == expected


def test_worker_processes_read_the_same_batches(tmp_path):
    data = LeRobotData(write_dataset(tmp_path / "data", recordings(video=True)))
    loaders = [make_loader(data, batch_size=7, num_epochs=1, num_workers=n) for n in (0, 1)]
    here, there = ([batch["images"][CAMERA] for batch in loader] for loader in loaders)
    np.testing.assert_array_equal(here, there)
    assert len(there) == 5
