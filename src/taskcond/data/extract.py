"""`extract_task_id`: the task index of a dataset's frame becomes the task id of the model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Shaped

from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK, check_ids, check_integer, out_of_range
from taskcond.messages import describe_unknown, shorten

_INT32_LIMIT = 2**31
_NAME = "task"  # where LeRobot puts the name


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
    kept. A value of `None` counts as absent.

    Each dataset numbers its tasks in its own way, so the numbers must be mapped to the model's. A
    `vocabulary` that `TaskVocabulary.from_lerobot` read maps those of its own dataset. For any
    other dataset, pass `id_map=vocabulary.id_map(TaskVocabulary.from_lerobot(dataset))`. With a
    `vocabulary`, a task may also come by its name: in `source`, in `target`, or in `task`. Names
    identify a task better than numbers do, so the name in `task` decides if there is no `id_map`.

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
        vocabulary: The model's tasks. Without a name, without `id_map`, and without
            `vocabulary.dataset_tasks` an index in `source` is refused, as nothing says which task
            it stands for.
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
    return _transform(source, target, num_tasks, vocabulary, default)._extract(data, id_map)


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
        return self._extract(data, self.id_map)

    def _extract(self, data: Mapping[str, Any], id_map: Mapping[int, int] | None) -> dict[str, Any]:
        if self.num_tasks == 0:
            return {**data}
        key = self.source
        value = data.get(key)
        if self.vocabulary is not None and id_map is None and _are_names(data.get(_NAME)):
            key, value = _NAME, data[_NAME]
        if value is None:
            key = self.target
            value = data.get(key)
        if value is None:
            return {**data, self.target: np.int32(self._default(data))}
        is_mapped = key == self.source and (id_map is not None or self.vocabulary is not None)
        if not is_mapped and (type(value) is int or isinstance(value, np.integer)):
            # Most frames take this path, which has to be fast.
            if not NULL_TASK <= value < (self.num_tasks or _INT32_LIMIT):
                raise out_of_range(np.array([int(value)], object), self.num_tasks)
            return {**data, self.target: np.int32(value)}
        ids = _to_numpy(value, key)
        if self.vocabulary is not None and ids.dtype.kind in "USO":
            ids = _ids_of_names(self.vocabulary, ids, key)
        elif is_mapped:
            check_ids(ids, None, key)
            ids = _apply(self._dataset_map if id_map is None else id_map, ids, key)
        check_ids(ids, self.num_tasks, key)
        return {**data, self.target: ids.astype(np.int32)[()]}  # [()] makes a 0-d array a scalar

    @functools.cached_property
    def _dataset_map(self) -> Mapping[int, int]:
        """The map of the vocabulary's own dataset."""
        vocabulary = self.vocabulary
        if vocabulary is None or vocabulary.dataset_tasks is None:
            raise ValueError(
                f"{self.source} cannot be mapped: nothing says which task of the vocabulary an "
                "index of the dataset stands for; pass "
                "id_map=vocabulary.id_map(TaskVocabulary.from_lerobot(dataset)), or give the "
                f"frame the name of its task in {_NAME!r}"
            )
        return vocabulary.id_map(vocabulary)

    def _default(self, data: Mapping[str, Any]) -> int:
        if self.default is None:
            raise KeyError(
                f"task_id not found in batch: neither {self.source!r} nor {self.target!r} is among "
                f"the keys {sorted(map(str, data))}, or it is None; name the key of the task index "
                "with source=..., or pass default=taskcond.NULL_TASK to act without a task"
            )
        return self.default


@functools.lru_cache(maxsize=64, typed=True)
def _transform(
    source: str,
    target: str,
    num_tasks: int | None,
    vocabulary: TaskVocabulary | None,
    default: int | None,
) -> ExtractTaskID:
    return ExtractTaskID(source, target, num_tasks, vocabulary=vocabulary, default=default)


def _are_names(value: Any) -> bool:
    return isinstance(value, (str, bytes)) or (
        value is not None and np.asarray(value).dtype.kind in "USO"
    )


def _ids_of_names(
    vocabulary: TaskVocabulary, names: np.ndarray, key: str
) -> Shaped[np.ndarray, "*b"]:
    flat = [n.decode() if isinstance(n, bytes) else n for n in names.ravel().tolist()]
    if wrong := [name for name in flat if not isinstance(name, str)]:
        raise TypeError(f"{key} must hold integers or task names, got {wrong}")
    if unknown := dict.fromkeys(name for name in flat if name not in vocabulary):
        raise ValueError(
            f"{key}: the vocabulary lacks {describe_unknown(unknown, vocabulary.names)}. Its tasks "
            f"are {shorten(vocabulary.names)}. Correct the name, or extend the vocabulary with "
            "`vocabulary + [...]`."
        )
    return np.array([vocabulary.id(name) for name in flat], np.int64).reshape(names.shape)


def _checked_map(id_map: Mapping[Any, Any]) -> dict[int, int]:
    if texts := [key for key in id_map if isinstance(key, str)]:
        raise TypeError(
            f"id_map has the keys {shorten(texts)}, but must have integers; JSON makes strings of "
            "them, so convert them back with {int(key): value for key, value in id_map.items()}"
        )
    checked = {
        check_integer("a key of id_map", key, NULL_TASK): _checked_id(key, value)
        for key, value in id_map.items()
    }
    return {NULL_TASK: NULL_TASK, **checked}


def _checked_id(key: object, value: object) -> int:
    return check_integer(f"id_map[{key!r}]", value, NULL_TASK)


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
    found = [int(value) for value in values]
    if unlisted := [value for value in found if value not in id_map and value != NULL_TASK]:
        _checked_map(id_map)  # a map with keys of another type lists no index
        listed = sorted(index for index in id_map if index != NULL_TASK)
        raise ValueError(
            f"{key} {unlisted} is not in id_map, which lists {listed}; add it to the "
            "model's vocabulary, or map it to taskcond.NULL_TASK to train it without a task"
        )
    mapped = [_checked_id(value, id_map.get(value, NULL_TASK)) for value in found]
    return np.asarray(np.array(mapped, np.int64)[inverse]).reshape(ids.shape)
