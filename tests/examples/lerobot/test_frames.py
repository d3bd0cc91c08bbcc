"""A dataset and a mix of datasets are both sources of frames."""

import pytest

from examples.lerobot import Frames, LeRobotData, mix


@pytest.mark.parametrize("mixed", [False, True])
def test_a_dataset_and_a_mix_satisfy_the_protocol(root, mixed):
    data = LeRobotData(root)
    source = mix([data, data]) if mixed else data
    halves = source.split(0.3)
    for part in (source, *halves):
        assert isinstance(part, Frames)
        assert sum(len(dataset) for dataset in part.parts) == len(part)
        assert sum(part.task_frames.values()) == len(part)
        assert set(part.norm_stats) == {"state", "actions"}
