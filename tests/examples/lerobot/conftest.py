"""Datasets that many tests read or damage."""

import pytest

from examples.lerobot import write_dataset
from tests.support.lerobot import recordings


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data", recordings())


@pytest.fixture
def video_root(tmp_path):
    return write_dataset(tmp_path / "data", recordings(video=True))
