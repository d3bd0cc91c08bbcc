"""Computed statistics are used, and stored ones that differ are a warning."""

import json

import numpy as np
import pytest

from examples.lerobot import LeRobotData, Recording, Stats, write_dataset
from tests.support.lerobot import given


def recordings():
    rng = np.random.default_rng(1)
    return [
        Recording(
            rng.normal(size=(50, 3)).astype(np.float32),
            rng.normal(size=(50, 2)).astype(np.float32) * [1, 0],
            "pour",
        )
        for _ in range(4)
    ]


def states(written):
    return np.concatenate([recording.state for recording in written])


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_statistics_are_computed_and_those_stored_agree(tmp_path, version):
    written = recordings()
    data = LeRobotData(write_dataset(tmp_path / "data", written, version=version))
    stats, expected = data.norm_stats["state"], Stats.of(states(written).astype(np.float64))
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), rtol=1e-5)
    assert "statistics of state: computed from the data" in data.report.found
    assert not any("statistics of" in line for line in data.report.warnings)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_without_stored_statistics_they_are_computed(tmp_path, version):
    written = recordings()
    root = write_dataset(tmp_path / "data", written, version=version)
    for path in root.glob("meta/*stats*"):
        path.unlink()
    data = LeRobotData(root)
    np.testing.assert_allclose(data.norm_stats["state"].std, states(written).std(0), rtol=1e-5)
    assert "statistics of state: computed from the data" in data.report.found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda s: s.update(min=[-1e-3] * 3, max=[1e-3] * 3),
            "in the data (and in 2 more dimensions)",
        ),
        (lambda s: s.update({k: s[k][:2] for k in s}), "2 dimensions instead of 3"),
        (lambda s: s.update(mean=[float("nan")] * 3), "not finite"),
        (lambda s: s.update(mean=[0, 5000, 0]), "mean of dimension 1 is 5000, but "),
        (lambda s: s.update(max=[9, 99, 9]), "max of dimension 1 is 99, but "),
        (lambda s: s.update(std=[9, 9, 99]), "std of dimension 2 is 99, but "),
        (lambda s: s.pop("mean"), "KeyError"),
        (lambda s: s.update(std=["a", "b", "c"]), "ValueError"),
    ],
)
def test_stored_statistics_that_contradict_the_data_are_not_used(tmp_path, change, why):
    written = recordings()
    root = write_dataset(tmp_path / "data", written, version="v2.0")
    path = root / "meta/stats.json"
    content = json.loads(path.read_text())
    change(content["observation.state"])
    path.write_text(json.dumps(content))
    data = LeRobotData(root)
    assert any("statistics of state" in line and why in line for line in data.report.warnings)
    np.testing.assert_allclose(data.norm_stats["state"].max, states(written).max(0), rtol=1e-5)


def test_without_preflight_the_stored_statistics_are_needed(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(), version="v3.0")
    data = LeRobotData(root, preflight=False)
    assert data.norm_stats["state"].count == 200
    assert any("Open the dataset with preflight=True" in line for line in data.report.warnings)
    (root / "meta/stats.json").unlink()
    with pytest.raises(ValueError, match="Open the dataset with preflight=True"):
        LeRobotData(root, preflight=False)


def ramps():
    """Six episodes whose action is 100 * episode + t."""
    columns = (
        np.arange(n, dtype=np.float32)[:, None] + 100 * episode
        for episode, n in enumerate((10, 23, 7, 31, 15, 12))
    )
    return [Recording(x, x, "pour") for x in columns]


def test_means_of_the_episodes_quantiles_are_not_used(tmp_path):
    root = write_dataset(tmp_path / "data", ramps(), version="v3.0")
    path = root / "meta/stats.json"
    content = json.loads(path.read_text())
    content["action"].update(q01=[255.1], q99=[274.6])
    path.write_text(json.dumps(content))
    data = LeRobotData(root)
    stats = data.norm_stats["actions"]
    np.testing.assert_allclose([stats.q01[0], stats.q99[0]], [0.97, 510.03])
    assert (
        "statistics of actions: meta/stats.json is not used, as it contradicts the data: q01 of "
        "dimension 0 is 255.1, but 0.97 in the data; q99 of dimension 0 is 274.6, but 510.03 in "
        "the data"
    ) in data.report.warnings


def test_some_episodes_are_not_compared_with_statistics_of_all(tmp_path):
    data = LeRobotData(write_dataset(tmp_path / "data", ramps(), version="v3.0"), episodes=[1])
    assert data.norm_stats["state"].max.tolist() == [122]
    assert not any("statistics of" in line for line in data.report.warnings)


def test_the_quantiles_that_lerobot_stored_are_warned_of():
    warnings = "\n".join(LeRobotData(given("vid"), cameras=[]).report.warnings)
    assert "q01 of dimension 0 is 255.1, but 0.97 in the data" in warnings
    assert "mean of dimension" not in warnings


def test_stale_statistics_do_not_change_the_number_of_tasks(root):
    path = root / "meta/episodes_stats.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["stats"]["task_index"] = {"min": [0], "max": [48], "mean": [9], "std": [1], "count": [7]}
    path.write_text(json.dumps(row) + "\n")
    assert len(LeRobotData(root).vocabulary) == 2
