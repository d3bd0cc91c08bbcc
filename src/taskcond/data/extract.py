"""`extract_task_id`: the task index of a dataset's frame becomes the task id of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.core import Tracer

from taskcond.ids import NULL_TASK, check_ids, out_of_range

_INT32_LIMIT = 2**31


def extract_task_id(
    data: Mapping[str, Any],
    *,
    source: str = "task_index",
    target: str = "task_id",
    num_tasks: int | None = None,
    id_map: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    """Returns a copy of `data` in which `target` holds the task id as int32.

    If `source` is absent, as it is at inference, a `target` that is already there is checked and
    kept. Each dataset numbers its tasks in its own way. `id_map` maps the dataset's ids to the
    model's, see `TaskVocabulary.id_map`. It is applied to `source` only.

    Args:
        data: A frame or a batch. It is not changed.
        source: Key of the dataset's task index, which is a Python int, or a NumPy, JAX or torch
            value.
        target: Key of the result, int32 of the same shape. A scalar stays a scalar, so that
            batching gives `[B]`.
        num_tasks: Ids must be `NULL_TASK` (-1) or in `[0, num_tasks)`; `None` sets no upper limit.
        id_map: `{id in the dataset: id in the model}`. An id that it does not list is an error.

    Raises:
        KeyError: Neither `source` nor `target` is in `data`.
        TypeError: The value is not an integer; floats and bools are refused.
        ValueError: The id is out of range, or not in `id_map`.

    >>> extract_task_id({"task_index": [3, 4]})
    {'task_index': [3, 4], 'task_id': array([3, 4], dtype=int32)}
    >>> int(extract_task_id({"task_index": 3}, id_map={3: 0})["task_id"])
    0
    """
    key = source if source in data else target
    if key not in data:
        raise KeyError(
            f"task_id not found in batch: neither {source!r} nor {target!r} is among the keys "
            f"{sorted(map(str, data))}; name the key of the task index with source=..."
        )
    value = data[key]
    id_map = id_map if key == source else None
    if id_map is None and (type(value) is int or isinstance(value, np.integer)):
        # Most frames take this path, which has to be fast.
        if not NULL_TASK <= value < (_INT32_LIMIT if num_tasks is None else num_tasks):
            raise out_of_range(np.array([int(value)], object), num_tasks)
        return {**data, target: np.int32(value)}
    ids = _to_numpy(value, key)
    if id_map is not None:
        check_ids(ids, None, key)
        ids = _apply(id_map, ids, key)
    check_ids(ids, num_tasks, key)
    return {**data, target: ids.astype(np.int32)[()]}  # [()] makes a 0-d array a scalar


@dataclasses.dataclass(frozen=True)
class ExtractTaskID:
    """The function `extract_task_id` with its settings, to put in a pipeline.

    It works as one of openpi's transforms, in `grain`'s `map`, and as a torch `transform`. The
    fields are the arguments of `extract_task_id`.

    >>> transform = ExtractTaskID(num_tasks=50)
    >>> int(transform({"task_index": 7})["task_id"])
    7
    """

    source: str = "task_index"
    target: str = "task_id"
    num_tasks: int | None = None
    id_map: Mapping[int, int] | None = None

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a copy of `data` with the task id; see `extract_task_id`."""
        return extract_task_id(
            data,
            source=self.source,
            target=self.target,
            num_tasks=self.num_tasks,
            id_map=self.id_map,
        )


def _to_numpy(value: Any, key: str) -> np.ndarray:
    if isinstance(value, Tracer):
        raise TypeError(
            f"{key} is traced: extract_task_id belongs in the data pipeline, before jax.jit, where "
            "a bad id can still be reported"
        )
    try:
        return np.asarray(value)
    except Exception as error:
        raise TypeError(f"{key} must be an integer or an array of them, got {value!r}") from error


def _apply(id_map: Mapping[int, int], ids: np.ndarray, key: str) -> np.ndarray:
    known = {NULL_TASK: NULL_TASK, **id_map}
    values, inverse = np.unique(ids, return_inverse=True)
    unlisted = [int(value) for value in values if int(value) not in known]
    if unlisted:
        raise ValueError(
            f"{key} {unlisted} is not in id_map, which lists {sorted(id_map)}; add it to the "
            "model's vocabulary, or map it to taskcond.NULL_TASK to train it without a task"
        )
    mapped = np.array([known[int(value)] for value in values], np.int64)
    return np.asarray(mapped[inverse]).reshape(ids.shape)
