"""Stored statistics are used unless the data contradicts them."""

import json

import numpy as np
import pytest

from examples.lerobot import LeRobotData, Recording, Stats, write_dataset


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
def test_stored_statistics_are_used_and_missing_quantiles_computed(tmp_path, version):
    written = recordings()
    data = LeRobotData(write_dataset(tmp_path / "data", written, version=version))
    stats, expected = data.norm_stats["state"], Stats.of(states(written).astype(np.float64))
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), rtol=1e-5)
    source = [line for line in data.report.found if line.startswith("statistics of state")]
    assert len(source) == 1
    assert "meta/" in source[0]


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
        (lambda s: s.update(min=[-1e-3] * 3, max=[1e-3] * 3), "beyond its minimum or maximum"),
        (lambda s: s.update({k: s[k][:2] for k in s}), "2 dimensions instead of 3"),
        (lambda s: s.update(mean=[float("nan")] * 3), "not finite"),
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
    assert LeRobotData(root, preflight=False).norm_stats["state"].count == 200
    (root / "meta/stats.json").unlink()
    with pytest.raises(ValueError, match="Open the dataset with preflight=True"):
        LeRobotData(root, preflight=False)


def test_stale_statistics_do_not_change_the_number_of_tasks(root):
    path = root / "meta/episodes_stats.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["stats"]["task_index"] = {"min": [0], "max": [48], "mean": [9], "std": [1], "count": [7]}
    path.write_text(json.dumps(row) + "\n")
    assert len(LeRobotData(root).vocabulary) == 2
