"""The stages of tasks in training: how many each task has, and in which a frame is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from examples.lerobot import Frames
from examples.pi0.training.frames import task_indices
from taskcond import StageVocabulary


def choose_stages(
    data: Frames,
    frames_per_stage: int,
    limits: tuple[int, int],
    old: dict[str, int],
) -> tuple[int, ...]:
    """Returns the number of stages of each task of the data's vocabulary.

    Args:
        data: The frames.
        frames_per_stage: The number of frames of a stage, before the number is limited.
        limits: The least and the largest number of stages.
        old: The numbers that a checkpoint has, by the names of its tasks. New tasks get no more
            stages than its longest, because the table has no place for them.
    """
    low, high = limits
    high = max(old.values(), default=high)
    lengths = mean_lengths(data)
    made = StageVocabulary.by_length(lengths.tolist(), frames_per_stage, min(low, high), high)
    return tuple(old.get(name, made.counts[i]) for i, name in enumerate(data.vocabulary))


def stage_labels(data: Frames, stages: StageVocabulary) -> Int[np.ndarray, " n"] | None:
    """Returns the stage of each frame, without reading it; `None` without stages."""
    if not stages.counts:
        return None
    frames, lengths = _pieces(data).T
    return stages.label(task_indices(data), frames, lengths)


def mean_lengths(data: Frames) -> Float[np.ndarray, " tasks"]:
    """Returns the mean number of frames in which each task is done; 0 for tasks without frames."""
    ids, (frames, lengths) = task_indices(data), _pieces(data).T
    first = frames == 0
    count = np.bincount(ids[first], minlength=len(data.vocabulary))
    total = np.bincount(ids[first], lengths[first], minlength=len(data.vocabulary))
    return total / np.maximum(count, 1)


def _pieces(data: Frames) -> Int[np.ndarray, "n 2"]:
    return np.concatenate([part.pieces() for part in data.parts])
