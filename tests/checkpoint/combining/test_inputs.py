"""All inputs that cannot be opened are named."""

from __future__ import annotations

import pytest

from taskcond.checkpoint import (
    CheckpointError,
    Recipe,
    Specialist,
    combine_checkpoints,
)


def test_all_inputs_that_are_missing_are_named(saved, tmp_path):
    lost = Recipe((Specialist("x"), Specialist(saved["a"]), Specialist("y")))
    with pytest.raises(CheckpointError, match=r"(?s)/x does not exist.*/y does not exist"):
        combine_checkpoints(lost, tmp_path / "out")
