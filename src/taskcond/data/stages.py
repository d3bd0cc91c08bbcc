"""Stages: what is being done within a task, as a second id.

A task of minutes has stages that look alike and want different actions. The winner of the 2025
BEHAVIOR challenge told its policy the stage beside the task, predicted the next stage from images,
and let the predictions vote at run time.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from taskcond.ids import NULL_TASK, check_ids, check_integer


@dataclasses.dataclass(frozen=True)
class StageVocabulary:
    """The number of stages of each task, and the numbering of all stages of all tasks.

    `taskcond.StageConditioner` is a table over tasks and stages, and `taskcond.StageHead` predicts
    the stage.

    Args:
        counts: For each task the number of its stages.

    Raises:
        ValueError: A number is below 1.
        TypeError: A number is not an integer.

    >>> stages = StageVocabulary((3, 5))
    >>> stages.num_rows, stages.rows([0, 1, 1, -1], [2, 0, 4, 0]).tolist()
    (8, [2, 3, 7, -1])
    """

    counts: tuple[int, ...]

    def __init__(self, counts: Sequence[int]):
        checked = tuple(check_integer("counts", count, 1) for count in np.asarray(counts).tolist())
        object.__setattr__(self, "counts", checked)

    @classmethod
    def by_length(
        cls,
        lengths: Sequence[float | int],
        frames_per_stage: float | int = 900,
        low: int = 5,
        high: int = 15,
    ) -> StageVocabulary:
        """Returns stages for tasks by the mean length of their episodes.

        Args:
            lengths: For each task the mean number of frames of an episode.
            frames_per_stage: The number of frames of a stage, before it is limited.
            low: The smallest number of stages.
            high: The largest number of stages.

        >>> StageVocabulary.by_length([100, 9000, 90000]).counts
        (5, 10, 15)
        """
        stages = np.asarray(lengths, float) // frames_per_stage
        return cls(np.clip(stages, low, high).astype(int).tolist())

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.counts)

    @property
    def num_rows(self) -> int:
        """The number of stages of all tasks."""
        return sum(self.counts)

    @property
    def longest(self) -> int:
        """The number of stages of the task that has the most."""
        return max(self.counts, default=0)

    def rows(
        self, task_id: Integer[np.ndarray, "*b"] | Sequence[int] | int, stage: object
    ) -> Int[np.ndarray, "*b"]:
        """Returns the row of each task and stage, int32; `NULL_TASK` without a task or stage.

        Args:
            task_id: Integers `[*b]`, `NULL_TASK` or a task.
            stage: Integers `[*b]`, `NULL_TASK` or a stage of the task.

        Raises:
            ValueError: A task is out of range, a stage is outside its task, or shapes differ.
            TypeError: They are not integers.
        """
        tasks, stages = np.asarray(task_id), np.asarray(stage)
        if tasks.shape != stages.shape:
            raise ValueError(
                f"task_id has shape {tasks.shape}, but stage has {stages.shape}; pass one "
                "stage for each task_id"
            )
        check_ids(tasks, self.num_tasks)
        check_ids(stages, None, "stage")
        is_null = (tasks == NULL_TASK) | (stages == NULL_TASK)
        if not tasks.size or not self.counts:
            return np.full(tasks.shape, NULL_TASK, np.int32)
        counts, first = np.array(self.counts), np.cumsum([0, *self.counts[:-1]])
        at = np.where(is_null, 0, tasks)
        if (wrong := ~is_null & (stages >= counts[at])).any():
            bad = sorted({*zip(tasks[wrong].tolist(), stages[wrong].tolist(), strict=True)})[:8]
            allowed = {task: f"0 to {self.counts[task] - 1}" for task, _ in bad}
            raise ValueError(
                f"stage outside its task: got (task, stage) {bad}; allowed stages are {allowed}"
            )
        return np.where(is_null, NULL_TASK, first[at] + stages).astype(np.int32)

    def label(self, task: Any, frame: Any, length: Any) -> Any:
        """Returns the stage of a frame, of stages of equal length.

        Args:
            task: The task; an integer, or an array of them.
            frame: The number of the frame in its episode, likewise.
            length: The number of frames of the episode, likewise.

        Returns:
            An integer, or an array of them.

        Raises:
            ValueError: A task is out of range, or a frame outside its episode.
            TypeError: The task is not an integer.

        >>> [StageVocabulary((5,)).label(0, frame, 100) for frame in (0, 19, 20, 99)]
        [0, 0, 1, 4]
        """
        tasks, frames, lengths = np.broadcast_arrays(task, frame, length)
        check_ids(tasks, self.num_tasks)
        bad = (tasks == NULL_TASK) | (frames < 0) | (frames >= lengths)
        if bad.any():
            one, of, total = (int(x[bad][0]) for x in (tasks, frames, lengths))
            raise ValueError(
                f"frame {of} of task {one} is not in an episode of {total} frames; pass a task of "
                "0 or more, and a frame from 0 to length - 1"
            )
        stages = frames * np.array(self.counts, int)[tasks] // lengths
        return stages.astype(np.int32) if stages.ndim else int(stages)

    def mask(self) -> Bool[np.ndarray, "tasks stages"]:
        """Returns which stages each task has, `[num_tasks, longest]`."""
        return np.arange(self.longest) < np.array(self.counts)[:, None]


class StageTracker:
    """Follows the stage of a running task, by votes over the last predictions.

    A single prediction is unsure near the end of a stage. Of the last three, two for the next stage
    advance by one; three for the stage after it also advance by one; and three for the stage before
    go back. After a change the votes begin anew.

    Args:
        count: The number of stages of the task.
        stage: The first stage.

    Attributes:
        stage: The stage of the task now.

    Raises:
        ValueError: There is no such stage.

    >>> tracker = StageTracker(5)
    >>> [tracker.update(prediction) for prediction in (0, 1, 1, 4, 2, 2)]
    [0, 0, 1, 1, 1, 2]
    """

    def __init__(self, count: int, stage: int = 0):
        self._count = check_integer("count", count, 1)
        self.stage = self._check("stage", stage)
        self._votes: collections.deque[int] = collections.deque(maxlen=3)

    def update(self, prediction: int) -> int:
        """Takes the stage that the policy predicts for now; returns the stage after the vote.

        Raises:
            ValueError: There is no such stage.
        """
        self._votes.append(self._check("prediction", prediction))
        votes = [vote - self.stage for vote in self._votes]
        change = 0
        if votes.count(1) >= 2 or votes.count(2) == 3:
            change = 1
        elif votes.count(-1) == 3:
            change = -1
        if change:
            self.stage += change
            self._votes.clear()
        return self.stage

    def _check(self, name: str, stage: int) -> int:
        stage = check_integer(name, stage, 0)
        if stage >= self._count:
            raise ValueError(
                f"{name} is {stage}, but the task has the stages 0 to {self._count - 1}"
            )
        return stage
