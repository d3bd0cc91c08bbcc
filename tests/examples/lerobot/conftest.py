"""Datasets that many tests read or damage."""

import pytest

# pytest may import this file before the tests' check of types is installed, which then fails: the
# fixtures import the project's packages themselves.


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
