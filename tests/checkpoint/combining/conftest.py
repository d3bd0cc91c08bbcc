"""The checkpoints that the tests of this folder combine."""

import pytest

from taskcond.checkpoint import save_params
from tests.support.specialists import about, tree


@pytest.fixture
def saved(tmp_path):
    """Paths of a base and of two specialists, each trained on tasks of its own."""
    save_params(tree(), tmp_path / "base", conditioning=about((0, 0, 0)))
    save_params(tree(1), tmp_path / "a", conditioning=about((9, 0, 0)))
    save_params(tree(2), tmp_path / "b", conditioning=about((0, 7, 0)))
    return {name: str(tmp_path / name) for name in ("base", "a", "b")}
