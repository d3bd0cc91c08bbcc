"""The report says what is odd about a dataset."""

import numpy as np

from examples.lerobot import LeRobotData, Recording, mix, write_dataset
from tests.support.lerobot import recordings


def test_a_still_dimension_is_reported(tmp_path):
    x = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    root = write_dataset(tmp_path / "data", [Recording(x, x * np.float32([1, 0]), "pour")])
    report = LeRobotData(root).report
    assert report.still == {"state": (), "actions": (1,)}
    assert "actions: 1 of 2 dimensions never move, and are normalized to 0: 1" in report.warnings
    assert "never move" in str(report)


def test_a_narrow_dimension_is_reported_with_its_range(tmp_path):
    x = np.linspace(0, 1e-3, 40, dtype=np.float32)[:, None]
    root = write_dataset(tmp_path / "data", [Recording(x, x * 1000, "pour")])
    report = LeRobotData(root).report
    assert report.narrow == {"state": (0,), "actions": ()}
    assert any(line.startswith("state: 1 dimensions have a 1-99 %") for line in report.warnings)


def test_mixing_names_tasks_that_look_alike(tmp_path):
    first = write_dataset(tmp_path / "a", recordings(tasks=("Pour tea.",)))
    second = write_dataset(tmp_path / "b", recordings(tasks=("pour tea",)))
    report = mix([LeRobotData(first), LeRobotData(second)]).report
    assert "tasks look alike, but stay apart: ['Pour tea.', 'pour tea']" in report.warnings
