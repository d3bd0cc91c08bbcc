"""Datasets that many tests read or damage."""

import pytest

# The packages are imported by the fixtures: pytest reads this file before it can check their types.


@pytest.fixture
def root(tmp_path):
    from examples.lerobot import write_dataset
    from tests.support.lerobot import recordings

    return write_dataset(tmp_path / "data", recordings())


@pytest.fixture
def video_root(tmp_path):
    from examples.lerobot import write_dataset
    from tests.support.lerobot import recordings

    return write_dataset(tmp_path / "data", recordings(video=True))
