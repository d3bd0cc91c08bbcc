"""A dataset of three tasks."""

import pytest

# The packages are imported by the fixture: pytest reads this file before it can check their types.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from examples.comparison.cups import write_demo_dataset
    from examples.lerobot import LeRobotData

    root = tmp_path_factory.mktemp("data") / "demo"
    write_demo_dataset(root, num_tasks=3, episodes_per_task=4, video=False)
    return LeRobotData(root, horizon=8)
