"""The task of each frame of a dataset, without reading the frames."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from examples.lerobot import Frames


def task_indices(data: Frames) -> Int[np.ndarray, " n"]:
    """Returns the model's task id of each frame."""
    ids = {name: data.vocabulary.id(name) for name in set(task_names(data))}
    return np.array([ids[name] for name in task_names(data)], int)


def task_names(data: Frames) -> list[str]:
    """Returns the name of each frame's task."""
    return [part.task_name(index) for part in data.parts for index in part.places()[:, 2].tolist()]
