"""The checkpoints that the tests of this folder combine."""

import pytest

# pytest may import this file before the tests' check of types is installed, which then fails: the
# fixtures import the project's packages themselves.


@pytest.fixture
def saved(tmp_path):
    """Writes a base and two specialists, each trained on tasks of its own; returns their paths."""
    from taskcond.checkpoint import save_params
    from tests.support.specialists import about, tree

    save_params(tree(), tmp_path / "base", conditioning=about((0, 0, 0)))
    save_params(tree(1), tmp_path / "a", conditioning=about((9, 0, 0)))
    save_params(tree(2), tmp_path / "b", conditioning=about((0, 7, 0)))
    return {name: str(tmp_path / name) for name in ("base", "a", "b")}
