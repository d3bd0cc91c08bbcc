"""Stages: their numbering, and the votes for them."""

import numpy as np
import pytest

from taskcond import StageTracker, StageVocabulary
from tests.support import as_untyped_code

STAGES = StageVocabulary((3, 5, 1))


def test_every_stage_of_every_task_has_its_own_row():
    pairs = [(task, stage) for task, count in enumerate(STAGES.counts) for stage in range(count)]
    tasks, stages = zip(*pairs, strict=True)
    assert STAGES.rows(tasks, stages).tolist() == list(range(STAGES.num_rows))


def test_no_task_and_no_stage_have_no_row():
    rows = STAGES.rows(np.array([[0, -1], [1, -1]]), np.array([[-1, 2], [4, -1]]))
    assert rows.tolist() == [[-1, -1], [7, -1]]
    assert rows.dtype == np.int32
    assert STAGES.rows(np.zeros(0, int), np.zeros(0, int)).shape == (0,)


def test_a_stage_outside_its_task_is_refused_with_all_of_its_kind():
    match = r"got \(task, stage\) \[\(0, 3\), \(2, 1\)\]; allowed stages are .*0: '0 to 2'"
    with pytest.raises(ValueError, match=match):
        STAGES.rows([0, 1, 2], [3, 4, 1])
    with pytest.raises(ValueError, match="task_id out of range"):
        STAGES.rows([3], [0])
    with pytest.raises(ValueError, match="stage out of range"):
        STAGES.rows([0], [-2])
    with pytest.raises(ValueError, match="shape"):
        STAGES.rows([0, 1], [0])
    with as_untyped_code(), pytest.raises(TypeError, match="stage must be an integer"):
        STAGES.rows([0], [0.5])


def test_the_stages_of_the_2025_challenge():
    # The 50 tasks of the challenge have 596 stages; the first five have these mean lengths.
    lengths = [4800, 5700, 20000, 13500, 12700]
    assert StageVocabulary.by_length(lengths).counts == (5, 6, 15, 15, 14)


def test_labels_cut_an_episode_into_equal_parts():
    labels = [STAGES.label(1, frame, 100) for frame in range(100)]
    assert labels == sorted(labels)
    assert np.bincount(labels).tolist() == [20] * 5
    with pytest.raises(ValueError, match="frame 100 of task 1"):
        STAGES.label(1, 100, 100)


@pytest.mark.parametrize(
    ("predictions", "stages"),
    [
        ([1, 1], [0, 1]),  # two of three for the next
        ([1, 0, 1], [0, 0, 1]),
        ([1, 0, 0, 1], [0, 0, 0, 0]),  # the first vote has been forgotten
        ([2, 2, 2], [0, 0, 1]),  # three for the stage after it advance by one
        ([2, 2, 1], [0, 0, 0]),
        ([4, 4, 4], [0, 0, 0]),  # far away: not believed
        ([1, 1, 0, 0, 0], [0, 1, 1, 1, 0]),  # three for the stage before go back
        ([1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2]),
    ],
)
def test_votes(predictions, stages):
    tracker = StageTracker(5)
    assert [tracker.update(prediction) for prediction in predictions] == stages


def test_the_first_and_last_stage_are_not_left():
    tracker = StageTracker(2, stage=1)
    assert [tracker.update(1) for _ in range(5)] == [1] * 5
    with pytest.raises(ValueError, match="the task has the stages 0 to 1"):
        tracker.update(2)
    with pytest.raises(ValueError, match="stage is 2"):
        StageTracker(2, stage=2)
