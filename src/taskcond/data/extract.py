"""`extract_task_id`: the task index of a dataset's frame becomes the task id of the model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.core import Tracer

from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK, check_ids, check_integer, out_of_range

_INT32_LIMIT = 2**31


def extract_task_id(
    data: Mapping[str, Any],
    *,
    source: str = "task_index",
    target: str = "task_id",
    num_tasks: int | None = None,
    id_map: Mapping[int, int] | None = None,
    vocabulary: TaskVocabulary | None = None,
    default: int | None = None,
) -> dict[str, Any]:
    """Returns a copy of `data` in which `target` holds the task id as int32.

    If `source` is absent, as it is at inference, a `target` that is already there is checked and
    kept. A value of `None` counts as absent. Each dataset numbers its tasks in its own way:
    `id_map` maps the dataset's ids to the model's, see `TaskVocabulary.id_map`. With a
    `vocabulary`, a task may also come by its name, in `source` as in `target`.

    Args:
        data: A frame or a batch. It is not changed.
        source: Key of the dataset's task index, which is a Python int, or a NumPy, JAX or torch
            value; with a `vocabulary` also a name, or an array or list of names.
        target: Key of the result, int32 of the same shape. A scalar stays a scalar, so that
            batching gives `[B]`, and `[1]` stays `[1]`.
        num_tasks: Ids must be `NULL_TASK` (-1) or in `[0, num_tasks)`; `None` sets no upper limit,
            or that of the `vocabulary`. 0 lets every frame pass unchanged.
        id_map: `{id in the dataset: id in the model}`. It is applied to `source` only. An id that
            it does not list is an error.
        vocabulary: The model's tasks.
        default: The id of a frame that names no task. `NULL_TASK` is for a robot that is told
            nothing. Without a default such a frame is an error.

    Raises:
        KeyError: Neither `source` nor `target` is in `data`, and there is no `default`.
        TypeError: The value is not an integer (floats and bools are refused), or an argument has a
            wrong type.
        ValueError: The id is out of range or not in `id_map`, or the name not in `vocabulary`.

    >>> extract_task_id({"task_index": [3, 4]})
    {'task_index': [3, 4], 'task_id': array([3, 4], dtype=int32)}
    >>> int(extract_task_id({"task_index": 3}, id_map={3: 0})["task_id"])
    0
    >>> tasks = TaskVocabulary(["pour", "wipe"])
    >>> int(extract_task_id({"task": "wipe"}, source="task", vocabulary=tasks)["task_id"])
    1
    """
    if id_map is None and vocabulary is None:
        return _transform(source, target, num_tasks, default)(data)
    return ExtractTaskID(source, target, num_tasks, id_map, vocabulary, default)(data)


@dataclasses.dataclass(frozen=True)
class ExtractTaskID:
    """The function `extract_task_id` with its settings, to put in a pipeline.

    It works as one of openpi's transforms, in `grain`'s `map`, and as a torch `transform`. The
    fields are the arguments of `extract_task_id`.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument is out of range.

    >>> transform = ExtractTaskID(num_tasks=50)
    >>> int(transform({"task_index": 7})["task_id"])
    7
    """

    source: str = "task_index"
    target: str = "task_id"
    num_tasks: int | None = None
    id_map: Mapping[int, int] | None = None
    vocabulary: TaskVocabulary | None = None
    default: int | None = None

    def __post_init__(self) -> None:
        num_tasks = self.num_tasks
        if num_tasks is not None:
            num_tasks = check_integer("num_tasks", num_tasks, 0)
        elif self.vocabulary is not None:
            num_tasks = len(self.vocabulary)
        object.__setattr__(self, "num_tasks", num_tasks)
        if self.id_map is not None:
            object.__setattr__(self, "id_map", _checked_map(self.id_map))
        if self.default is not None:
            default = check_integer("default", self.default, NULL_TASK)
            if num_tasks:
                check_ids(np.asarray(default), num_tasks, "default")
            object.__setattr__(self, "default", default)

    def __hash__(self) -> int:
        items = None if self.id_map is None else frozenset(self.id_map.items())
        names = None if self.vocabulary is None else self.vocabulary.names
        return hash((self.source, self.target, self.num_tasks, items, names, self.default))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a copy of `data` with the task id; see `extract_task_id`."""
        if self.num_tasks == 0:
            return {**data}
        key = self.source
        value = data.get(key)
        if value is None:
            key = self.target
            value = data.get(key)
        if value is None:
            return {**data, self.target: np.int32(self._default(data))}
        id_map = self.id_map if key == self.source else None
        if id_map is None and (type(value) is int or isinstance(value, np.integer)):
            # Most frames take this path, which has to be fast.
            if not NULL_TASK <= value < (_INT32_LIMIT if not self.num_tasks else self.num_tasks):
                raise out_of_range(np.array([int(value)], object), self.num_tasks)
            return {**data, self.target: np.int32(value)}
        ids = _to_numpy(value, key)
        if self.vocabulary is not None and ids.dtype.kind in "UO":
            ids = self._ids_of_names(ids, key)
        elif id_map is not None:
            check_ids(ids, None, key)
            ids = _apply(id_map, ids, key)
        check_ids(ids, self.num_tasks, key)
        return {**data, self.target: ids.astype(np.int32)[()]}  # [()] makes a 0-d array a scalar

    def _default(self, data: Mapping[str, Any]) -> int:
        if self.default is None:
            raise KeyError(
                f"task_id not found in batch: neither {self.source!r} nor {self.target!r} is among "
                f"the keys {sorted(map(str, data))}, or it is None; name the key of the task index "
                "with source=..., or pass default=taskcond.NULL_TASK to act without a task"
            )
        return self.default

    def _ids_of_names(self, names: np.ndarray, key: str) -> np.ndarray:
        assert self.vocabulary is not None
        values, inverse = np.unique(names.astype(str), return_inverse=True)
        found = [str(name) for name in values]
        if unknown := [name for name in found if name not in self.vocabulary]:
            raise ValueError(
                f"{key} {unknown} is not in the vocabulary, which has {list(self.vocabulary)}; "
                "add it with `vocabulary + [...]`"
            )
        ids = np.array([self.vocabulary.id(name) for name in found], np.int64)
        return np.asarray(ids[inverse]).reshape(names.shape)


@functools.lru_cache(maxsize=64, typed=True)
def _transform(
    source: str, target: str, num_tasks: int | None, default: int | None
) -> ExtractTaskID:
    return ExtractTaskID(source, target, num_tasks, default=default)


def _checked_map(id_map: Mapping[Any, Any]) -> dict[int, int]:
    if texts := [key for key in id_map if isinstance(key, str)]:
        raise TypeError(
            f"id_map has the keys {texts}, but must have integers; JSON makes strings of them, so "
            "convert them back with {int(key): value for key, value in id_map.items()}"
        )
    checked = {
        check_integer("a key of id_map", key, NULL_TASK): check_integer(
            f"id_map[{key!r}]", value, NULL_TASK
        )
        for key, value in id_map.items()
    }
    return {NULL_TASK: NULL_TASK, **checked}


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
    values, inverse = np.unique(ids, return_inverse=True)
    unlisted = [int(value) for value in values if int(value) not in id_map]
    if unlisted:
        listed = sorted(index for index in id_map if index != NULL_TASK)
        raise ValueError(
            f"{key} {unlisted} is not in id_map, which lists {listed}; add it to the "
            "model's vocabulary, or map it to taskcond.NULL_TASK to train it without a task"
        )
    mapped = np.array([id_map[int(value)] for value in values], np.int64)
    return np.asarray(mapped[inverse]).reshape(ids.shape)
