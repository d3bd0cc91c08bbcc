"""What inference shares with training: written, found and read beside a checkpoint."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from examples.pi0.beside import find_beside, load_config, load_transform, save_transform
from examples.pi0.model import Pi0Config
from examples.pi0.transform import FrameTransform
from tests.support.tiny_pi0 import ROBOT_CONFIG as CONFIG

CAMERAS = {"base_0_rgb": "observation.images.wrist"}


def test_settings_saved_beside_a_checkpoint_make_the_same_input(
    data, model_file, tokenizer, tmp_path
):
    prefixed = dataclasses.replace(tokenizer, task_prefix=True)
    cameras = {**CAMERAS, "left_wrist_0_rgb": None}
    transform = FrameTransform(CONFIG, prefixed, cameras, data.norm_stats, min_range=0.5)
    save_transform(transform, tmp_path / "run")
    loaded = load_transform(tmp_path / "run", model_file)
    assert loaded.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded(data[3]), transform(data[3]))
    actions = np.ones((4, CONFIG.action_dim), np.float32)
    np.testing.assert_array_equal(
        loaded.unnormalize_actions(actions), transform.unnormalize_actions(actions)
    )


def test_a_missing_file_is_an_error(data, model_file, tokenizer, tmp_path):
    save_transform(FrameTransform.for_dataset(data, CONFIG, tokenizer, CAMERAS), tmp_path)
    (tmp_path / "norm_stats.json").unlink()
    with pytest.raises(FileNotFoundError):
        load_transform(tmp_path, model_file)


def test_a_config_is_read_as_it_was_written(tmp_path):
    for config in (CONFIG, Pi0Config(pi05=False, image_keys=("top",))):
        (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        assert load_config(tmp_path / "config.json") == config


def test_the_nearest_file_up_to_three_folders_above_is_found(tmp_path):
    checkpoint = tmp_path / "run" / "policy" / "1000" / "params"
    checkpoint.mkdir(parents=True)
    (tmp_path / "inputs.json").touch()
    assert find_beside(checkpoint, "inputs.json") is None  # four folders above
    for folder in (tmp_path / "run", tmp_path / "run" / "policy" / "1000", checkpoint):
        (folder / "inputs.json").touch()
        assert find_beside(checkpoint, "inputs.json") == folder
    assert find_beside(checkpoint, "tasks.json") is None
