"""The real dataset, untidy as it was published, where it is at hand."""

import numpy as np
import pytest

from examples.lerobot import LeRobotData, make_loader
from tests.support.lerobot import FOLDER

NAME = "robot_sim.PickNPlace"
CAMERA = "observation.images.ego_view"

pytestmark = pytest.mark.skipif(
    not (FOLDER / NAME).exists(), reason=f"{FOLDER / NAME} is not there; set TASKCOND_DATA"
)


@pytest.fixture(scope="module")
def data():
    return LeRobotData(FOLDER / NAME, horizon=16)


def test_every_frame_and_task_is_read_as_it_is_labelled(data):
    assert len(data) == 2096
    assert len(data.vocabulary) == 6
    blind = LeRobotData(FOLDER / NAME, cameras=[])
    assert {int(blind[i]["task_id"]) for i in range(len(blind))} == {0, 2, 3, 4, 5}
    assert int(data[0]["task_id"]) == int(data[0]["task_index"]) == 0
    assert data[0]["task"].startswith("pick the pear")
    assert int(data[2095]["task_id"]) == 5


def test_what_was_skipped_is_said(data):
    skipped = "\n".join(data.report.skipped)
    assert "camera observation.images.egoview: declared in info.json, but no file" in skipped
    assert "task 1 'valid': labels no frame" in skipped


def test_what_is_odd_is_said(data):
    warnings = "\n".join(data.report.warnings)
    assert "total_chunks is 0" in warnings
    assert "split 'train' is '0:100', past the 5 episodes" in warnings
    assert "contradict" not in warnings  # each list names the annotated task "valid" as well
    assert "actions: 25 of 44 dimensions never move" in warnings


def test_normalized_values_are_bounded_and_come_back(data):
    data = LeRobotData(FOLDER / NAME, cameras=[])
    batch = next(iter(make_loader(data, batch_size=512, normalize_by="quantile", seed=1)))
    assert np.isfinite(batch["actions"]).all()
    assert np.abs(batch["actions"]).max() <= 10
    still = list(data.report.still["actions"])
    assert (batch["actions"][..., still] == 0).all()


def test_images_are_those_at_their_place_in_the_video(data):
    av = pytest.importorskip("av")
    path = FOLDER / NAME / f"videos/chunk-000/{CAMERA}/episode_000002.mp4"
    wanted = (0, 1, 137, 249, 250, 251, 469)
    with av.open(str(path)) as container:
        decoded = {
            i: frame.to_ndarray(format="rgb24")
            for i, frame in enumerate(container.decode(video=0))
            if i in wanted
        }
    first = 416 + 470  # frames of episodes 0 and 1
    for i in reversed(wanted):
        item = data[first + i]
        assert (int(item["episode_index"]), int(item["frame_index"])) == (2, i)
        np.testing.assert_array_equal(item["images"][CAMERA], decoded[i])


def test_it_cannot_be_split_and_says_so(data):
    with pytest.raises(ValueError, match="no task has two episodes"):
        data.split()
