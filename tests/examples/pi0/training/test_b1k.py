"""The guide's two presets on a dataset of BEHAVIOR-1K's shape, with a tiny model."""

import dataclasses

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from examples.pi0.config import LoRAConfig
from examples.pi0.training import b1k
from examples.pi0.training.configs import WeightLoaderConfig
from examples.pi0.training.plan import make_plan
from examples.pi0.training.presets import presets
from examples.pi0.training.skills import boundary_weights
from examples.pi0.transform import pick
from tests.support.b1k import FRAMES, write_b1k
from tests.support.tiny_pi0 import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_b1k(tmp_path_factory.mktemp("b1k") / "dataset")


@pytest.fixture(scope="module", params=["pi05_b1k_22_TASKS_oversample", "pi05_b1k_single_task"])
def plan(request, root, tmp_path_factory):
    config = presets()[request.param][1]
    model = tiny(
        action_dim=32,
        action_horizon=4,
        max_token_len=96,
        vocab_size=1024,
        num_tasks=50,
        image_keys=tuple(b1k.CAMERAS),
    )
    language = dataclasses.replace(model.paligemma, lora=LoRAConfig(rank=2, alpha=2.0))
    data = dataclasses.replace(config.data, root=(str(root),), num_workers=0, val_fraction=0.5)
    # The dataset has two of the 22 tasks.
    data = dataclasses.replace(data, tasks=tuple(t for t in data.tasks if t in b1k.TASKS[:2]))
    return make_plan(
        dataclasses.replace(
            config,
            model=dataclasses.replace(model, paligemma=language),
            data=data,
            weight_loader=WeightLoaderConfig(None),
            batch_size=4,
            runs_dir=str(tmp_path_factory.mktemp("runs")),
        )
    )


def test_rows_are_those_of_the_challenge(plan):
    assert tuple(plan.vocabulary) == b1k.TASKS
    assert plan.config.model.num_tasks == 50


def test_frames_near_the_end_of_a_skill_are_drawn_more_often(plan):
    weights = plan.data.weights
    factor = plan.config.data.boundary_factor
    assert factor in (2.0, 4.0)
    assert set(weights.tolist()) == {factor}  # with a window of 30 frames, all 12 are near
    narrow = boundary_weights(plan.data.train, 3.0, 1).reshape(-1, FRAMES)
    expected = np.ones(FRAMES)
    expected[[3, 4, 5, 8, 9, 10]] = 3.0  # skills end at 4 and 9; the end of the last does not count
    np.testing.assert_array_equal(narrow, np.broadcast_to(expected, narrow.shape))


def test_a_batch_has_the_robots_numbers_cameras_and_the_number_of_its_task(plan):
    batch = next(plan.data.train_batches(4, first=0, last=1))
    data = plan.data.train
    frame = data[int(batch["position"][0])]
    transform = plan.data.transform
    seen = pick(frame["state"], b1k.STATE_PLACES)
    assert seen.shape == (23,)
    assert batch["state"].shape == (4, 32)
    assert batch["actions"].shape == (4, 4, 32)
    assert (batch["action_dims"] == 23).all()
    assert transform.cameras == b1k.CAMERAS
    assert all(masks.all() for masks in batch["image_masks"].values())
    ids = {plan.vocabulary.id(name) for name in data.task_frames}
    assert set(batch["task_id"].tolist()) <= ids
    words = SentencePieceProcessor(model_file=str(transform.tokenizer.path))
    text = words.decode(batch["tokenized_prompt"][0].tolist())
    assert f"[{int(batch['task_id'][0]):02d}]" in text
