"""Specialists that have too little in common are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from taskcond.checkpoint import (
    CheckpointError,
    combine_checkpoints,
    save_params,
)
from tests.support.specialists import (
    about,
    recipe,
    tree,
)


def test_another_base_is_refused(saved, tmp_path):
    other = tree(2)
    other["dense"]["kernel"] = np.random.default_rng(5).standard_normal((30, 20))
    other["dense"]["kernel"] = other["dense"]["kernel"].astype(np.float32)
    save_params(other, saved["b"], conditioning=about((0, 7, 0)), overwrite=True)
    with pytest.raises(CheckpointError, match="not fine-tuned from the base"):
        combine_checkpoints(recipe(saved), tmp_path / "out")
    combine_checkpoints(recipe(saved, check_base=False), tmp_path / "out")


def test_another_model_is_refused(saved, tmp_path):
    other = tree(2)
    other["dense"]["kernel"] = other["dense"]["kernel"][:10]
    other["extra"] = {"bias": np.ones(3, np.float32)}
    save_params(other, saved["b"], conditioning=about((0, 7, 0)), overwrite=True)
    with pytest.raises(CheckpointError, match=r"(?s)not of one model.*kernel.*|.*extra/bias"):
        combine_checkpoints(recipe(saved), tmp_path / "out")


def test_other_normalization_statistics_are_refused(saved, tmp_path):
    for name, mean in (("a", 0.0), ("b", 1.0)):
        step = tmp_path / f"run_{name}"
        (step / "assets/owner/dataset").mkdir(parents=True)
        stats = json.dumps({"state": {"mean": [mean]}})
        (step / "assets/owner/dataset/norm_stats.json").write_text(stats)
        saved[name] = str(Path(saved[name]).rename(step / "params"))
    with pytest.raises(CheckpointError, match="other normalization statistics"):
        combine_checkpoints(recipe(saved), tmp_path / "out")
    combine_checkpoints(recipe(saved, check_norm_stats=False), tmp_path / "out")
