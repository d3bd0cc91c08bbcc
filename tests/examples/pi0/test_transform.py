"""From frames to the model's input and back; what does not fit is refused with all reasons."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.lerobot import LeRobotData, make_loader, mix
from examples.lerobot.stats import Stats
from examples.pi0.model import Pi0
from examples.pi0.observation import check_observation
from examples.pi0.tokenizer import Tokenizer
from examples.pi0.transform import FrameTransform
from taskcond import NULL_TASK, TaskVocabulary
from tests.support.tiny_pi0 import ROBOT_CONFIG as CONFIG

CAMERA = "observation.images.wrist"
CAMERAS = {"base_0_rgb": CAMERA}


@pytest.fixture(scope="module")
def transform(data, tokenizer):
    return FrameTransform.for_dataset(data, CONFIG, tokenizer, CAMERAS)


def uniform(low, high):
    """Statistics of values spread evenly from `low` to `high`, with exact numbers."""
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    return Stats(
        mean=(low + high) / 2,
        std=(high - low) / 4,
        min=low,
        max=high,
        q01=low + 0.01 * (high - low),
        q99=high - 0.01 * (high - low),
        count=100,
    )


STATS = {"state": uniform([0, -5], [10, 5]), "actions": uniform([-1, 0, 7], [1, 4, 7])}


def make_frame(**changes):
    rng = np.random.default_rng(0)
    frame = {
        "state": np.array([2.5, 0], np.float32),
        "actions": rng.uniform([-1, 0, 7], [1, 4, 7], (4, 3)).astype(np.float32),
        "action_is_pad": np.array([False, False, False, True]),
        "images": {CAMERA: rng.integers(0, 256, (64, 64, 3), np.uint8)},
        "task": "reach cup 2",
        "task_index": np.int64(7),
        "task_id": np.int32(2),
    }
    return {**frame, **changes}


@pytest.mark.parametrize("pi05", [True, False])
def test_state_and_actions_are_normalized_then_padded(model_file, pi05):
    config = dataclasses.replace(CONFIG, pi05=pi05)
    tokenizer = Tokenizer.for_config(config, model_file)
    frame = make_frame()
    out = FrameTransform(config, tokenizer, CAMERAS, STATS)(frame)
    # π0.5: from the 1 % quantile to the 99 % one; π0: standard deviations from the mean.
    state = [(2.5 - 0.1) / 9.8 * 2 - 1, 0] if pi05 else [-1, 0]
    x, y = frame["actions"][:, 0], frame["actions"][:, 1] - 2
    moving = [x / 0.98, y / 1.96] if pi05 else [x / 0.5, y / 1.0]
    actions = np.stack([*moving, *[np.zeros(4)] * 4], axis=1)  # the third never moves
    np.testing.assert_allclose(out["observation"].state, [*state, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(out["actions"], actions, rtol=1e-5, atol=1e-6)
    assert out["actions"].dtype == out["observation"].state.dtype == np.float32
    assert out["action_is_pad"].tolist() == frame["action_is_pad"].tolist()


def test_prompt_holds_the_normalized_state_without_padding(tokenizer):
    out = FrameTransform(CONFIG, tokenizer, CAMERAS, STATS)(make_frame())["observation"]
    expected, mask = tokenizer("reach cup 2", np.array([2.4 / 9.8 * 2 - 1, 0.0]))
    assert out.tokenized_prompt.tolist() == expected.tolist()
    assert out.tokenized_prompt_mask.tolist() == mask.tolist()


@pytest.mark.parametrize("pi05", [True, False])
def test_unnormalizing_gives_the_dataset_s_actions_back(model_file, pi05):
    config = dataclasses.replace(CONFIG, pi05=pi05)
    tokenizer = Tokenizer.for_config(config, model_file)
    transform = FrameTransform(config, tokenizer, CAMERAS, STATS)
    frame = make_frame()
    actions = transform(frame)["actions"]
    np.testing.assert_allclose(
        transform.unnormalize_actions(actions), frame["actions"], rtol=1e-5, atol=1e-5
    )
    batch = transform.unnormalize_actions(jnp.stack([actions, actions]))
    assert batch.shape == (2, 4, 3)


def test_images_that_are_not_bytes_are_refused(transform, data):
    frame = {**data[0], "images": {CAMERA: np.zeros((28, 28, 3), np.float32)}}
    with pytest.raises(Exception, match=r"uint8|UInt8"):  # ours, or the type checker's before it
        transform(frame)


@pytest.mark.parametrize("cameras", [CAMERAS, {**CAMERAS, "left_wrist_0_rgb": None}])
def test_a_missing_camera_is_black_and_masked(tokenizer, cameras):
    out = FrameTransform(CONFIG, tokenizer, cameras, STATS)(make_frame())["observation"]
    assert {key: bool(mask) for key, mask in out.image_masks.items()} == {
        "base_0_rgb": True,
        "left_wrist_0_rgb": False,
        "right_wrist_0_rgb": False,
    }
    assert (out.images["left_wrist_0_rgb"] == -1).all()
    assert (out.images["base_0_rgb"] > -1).any()


def test_task_id_is_the_one_that_the_reader_mapped_by_name(root, tokenizer):
    vocabulary = TaskVocabulary(["reach cup 2", "reach cup 0", "reach cup 1"])
    data = LeRobotData(root, horizon=4, vocabulary=vocabulary)
    transform = FrameTransform.for_dataset(data, CONFIG, tokenizer, CAMERAS)
    for index in (0, 8, 16):
        frame = data[index]
        task_id = transform(frame)["observation"].task_id
        assert vocabulary.names[task_id] == frame["task"]
        assert task_id.dtype == np.int32


def test_task_id_by_a_map_of_the_dataset_s_numbers(tokenizer):
    transform = FrameTransform(CONFIG, tokenizer, CAMERAS, STATS, id_map={7: 1})
    assert transform(make_frame())["observation"].task_id == 1
    with pytest.raises(ValueError, match="not in id_map"):
        transform(make_frame(task_index=8))


def test_task_id_of_a_robot_s_frame_is_kept(tokenizer):
    frame = make_frame()
    del frame["task_index"], frame["actions"]
    transform = FrameTransform(CONFIG, tokenizer, CAMERAS, STATS, id_map={7: 1})
    assert transform.observe({**frame, "task_id": NULL_TASK}).task_id == NULL_TASK
    with pytest.raises(ValueError, match="task_id out of range"):
        transform.observe({**frame, "task_id": 3})


def test_a_dataset_s_number_is_not_taken_for_a_task_id(tokenizer):
    frame = make_frame(task_index=np.int64(2))
    del frame["task_id"]
    with pytest.raises(KeyError, match=r"task_id not found in batch.*id_map"):
        FrameTransform(CONFIG, tokenizer, CAMERAS, STATS)(frame)


def test_a_model_without_tasks_needs_no_task_id(model_file):
    config = dataclasses.replace(CONFIG, num_tasks=0)
    transform = FrameTransform(config, Tokenizer.for_config(config, model_file), CAMERAS, STATS)
    frame = make_frame()
    assert transform(frame)["observation"].task_id == 2  # to measure by task
    del frame["task_id"]
    assert transform(frame)["observation"].task_id is None


def test_prefix_is_that_of_the_task_id(model_file):
    tokenizer = Tokenizer.for_config(CONFIG, model_file, task_prefix=True)
    out = FrameTransform(CONFIG, tokenizer, CAMERAS, STATS)(make_frame())["observation"]
    expected, _ = Tokenizer.for_config(CONFIG, model_file)(
        "[02] reach cup 2", np.array([2.4 / 9.8 * 2 - 1, 0.0])
    )
    assert out.tokenized_prompt.tolist() == expected.tolist()


def test_batches_are_the_transformed_frames_and_fit_the_model(data, transform):
    loader = make_loader(
        data, batch_size=5, transform=transform, shuffle=False, num_epochs=1, process_count=1
    )
    batch = next(iter(loader))
    expected = jax.tree.map(lambda *x: np.stack(x), *(transform(data[i]) for i in range(5)))
    jax.tree.map(np.testing.assert_array_equal, batch, expected)
    assert check_observation(CONFIG, batch["observation"]) == (5,)
    model = nnx.eval_shape(lambda: Pi0(CONFIG, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)

    def loss(state, batch):
        model = nnx.merge(graphdef, state)
        return model.compute_loss(jax.random.key(0), batch["observation"], batch["actions"])

    assert jax.eval_shape(loss, state, batch).shape == (5, 4)


def test_worker_processes_give_the_same_batches(data, transform):
    settings = {"batch_size": 4, "transform": transform, "seed": 3, "num_epochs": 1}
    here = next(iter(make_loader(data, **settings)))
    there = next(iter(make_loader(data, num_workers=1, **settings)))
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_a_pickled_transform_does_the_same(data, transform):
    copy = pickle.loads(pickle.dumps(transform))
    jax.tree.map(np.testing.assert_array_equal, copy(data[3]), transform(data[3]))


def test_all_that_does_not_fit_is_in_one_error(data, model_file):
    config = dataclasses.replace(
        CONFIG, action_dim=3, vocab_size=100, action_horizon=9, num_tasks=50
    )
    tokenizer = Tokenizer(model_file, max_token_len=20)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        FrameTransform.for_dataset(data, config, tokenizer, {"top": "observation.images.top"})
    for reason in (
        r"no cameras ['top']; it has ['base_0_rgb'",
        r"no cameras ['observation.images.top']; it has ['observation.images.wrist']",
        "state has 4 dimensions, the model action_dim=3",
        "actions has 4 dimensions",
        "the model vocab_size=100; raise vocab_size",
        "max_token_len=20, the model max_token_len=48; use Tokenizer.for_config",
        "LeRobotData(horizon=9)",
        "vocabulary has 3 tasks, the model num_tasks=50; open it with",
    ):
        assert reason in str(error.value)


def test_statistics_must_be_there_for_both(tokenizer):
    with pytest.raises(ValueError, match="no statistics of actions"):
        FrameTransform(CONFIG, tokenizer, CAMERAS, {"state": STATS["state"]})


def test_a_frame_of_another_robot_is_refused(tokenizer):
    transform = FrameTransform(CONFIG, tokenizer, CAMERAS, STATS)
    with pytest.raises(ValueError, match="state has 1 dimensions, but the statistics have 2"):
        transform(make_frame(state=np.zeros(1, np.float32)))
    with pytest.raises(KeyError, match=f"the frame has no image of camera '{CAMERA}'"):
        transform(make_frame(images={}))


def test_mixed_datasets_are_checked_part_by_part(data, root, tokenizer):
    blind = LeRobotData(root, horizon=4, cameras=[])
    mixed = mix([blind, blind])
    with pytest.raises(ValueError, match="has no cameras"):
        FrameTransform.for_dataset(mixed, CONFIG, tokenizer, CAMERAS)
    transform = FrameTransform.for_dataset(mix([data, data]), CONFIG, tokenizer, CAMERAS)
    assert transform(data[0])["observation"].task_id == 0


def test_normalizing_twice_is_refused(data, transform):
    with pytest.raises(ValueError, match="Pass one of them"):
        make_loader(data, batch_size=2, transform=transform, normalize_by="quantile")
