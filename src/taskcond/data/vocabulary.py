"""Task names and their ids: the id of a task is the position of its name.

Names identify a task, numbers do not. Tools that split, merge or delete parts of a dataset number
its tasks anew. A model that trusts the numbers then performs the wrong task, without any error.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int

from taskcond.data.lerobot_tasks import ambiguous_tasks, read_lerobot_tasks
from taskcond.ids import NULL_TASK
from taskcond.messages import describe_unknown, shorten

_SHOWN = 20  # in `repr`


@dataclasses.dataclass(frozen=True, repr=False)
class TaskVocabulary:
    """Ordered, distinct task names.

    Args:
        names: The names. The id of a task is the position of its name.

    Raises:
        TypeError: A name is not a string.
        ValueError: A name occurs more than once.

    >>> vocabulary = TaskVocabulary(["pick up the radio", "turn on the radio"])
    >>> vocabulary.id("turn on the radio"), vocabulary.names[0], len(vocabulary)
    (1, 'pick up the radio', 2)
    >>> vocabulary
    <2 tasks: 0 'pick up the radio', 1 'turn on the radio'>
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[Any]):
        if isinstance(names, str):
            raise TypeError(
                f"names is the string {names!r}, but must be a list of names. Pass [{names!r}]."
            )
        names = tuple(names)
        wrong = [name for name in names if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"task names must be strings, got {wrong}. Convert them with str().")
        double = [name for name, count in Counter(names).items() if count > 1]
        if double:
            raise ValueError(
                f"these task names occur more than once: {double}. Names must be distinct. "
                "Remove the repetitions, or rename the tasks."
            )
        object.__setattr__(self, "names", names)

    @property
    def dataset_tasks(self) -> Mapping[int, str] | None:
        """The names of the dataset's tasks by `task_index`; `None` unless `from_lerobot` read it.

        It is not saved, and two vocabularies are equal if their names are.
        """
        return getattr(self, "_dataset_tasks", None)

    @classmethod
    def from_lerobot(cls, root: str | os.PathLike[str]) -> TaskVocabulary:
        """Reads the tasks of a LeRobot dataset (v2.0, v2.1, v3.0), in the order of their indices.

        The id of a task is its position in that order. It equals the `task_index` only if no index
        is missing. `ExtractTaskID(vocabulary=...)` maps the dataset's indices in either case.

        Args:
            root: The dataset's folder, the one that holds `meta`.

        Raises:
            FileNotFoundError: There is no `meta/tasks.jsonl` and no `meta/tasks.parquet`.
            ValueError: A file is malformed, a name has two indices, or an index has two names.
        """
        rows = read_lerobot_tasks(root)
        if problems := ambiguous_tasks(rows):
            raise ValueError(
                f"the tasks of {root} are ambiguous: {'; '.join(problems)}. Each index must have "
                "one name, and each name one index. Correct meta/tasks, or build a TaskVocabulary "
                "from the names that you want."
            )
        vocabulary = cls(name for _, name in rows)
        object.__setattr__(vocabulary, "_dataset_tasks", dict(rows))
        return vocabulary

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskVocabulary:
        """Reads a vocabulary that `save` wrote.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file holds something else than a vocabulary.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["tasks"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not a task vocabulary: {error}. A vocabulary is a file of the form "
                '{"tasks": ["name", ...]}. Write it with TaskVocabulary.save.'
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON; an existing file is replaced completely or not at all."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        content = json.dumps({"tasks": list(self.names)}, indent=2, ensure_ascii=False)
        partial.write_text(content + "\n", encoding="utf-8")
        os.replace(partial, path)

    def id(self, name: str) -> int:
        """Returns the id of a task.

        Raises:
            KeyError: The vocabulary does not hold the name.
            TypeError: It is no name.
        """
        _check_names([name])
        if name not in self:
            raise KeyError(self._unknown([name]))
        return self._ids[name]

    def ids(self, names: Iterable[str | None]) -> Int[np.ndarray, " n"]:
        """Returns the ids of tasks, int32 `[n]`; `None` becomes `NULL_TASK`.

        Raises:
            KeyError: The vocabulary lacks a name. The message lists all of them.
            TypeError: `names` is one string, or holds something else than names.

        >>> TaskVocabulary(["pour", "wipe"]).ids(["wipe", None, "pour"])
        array([ 1, -1,  0], dtype=int32)
        """
        if isinstance(names, str):
            raise TypeError(f"names is the string {names!r}; pass a list, or call id({names!r})")
        names = list(names)
        _check_names([name for name in names if name is not None])
        unknown = dict.fromkeys(name for name in names if name is not None and name not in self)
        if unknown:
            raise KeyError(self._unknown(unknown))
        return np.array([NULL_TASK if n is None else self._ids[n] for n in names], np.int32)

    def id_map(self, dataset: TaskVocabulary | Mapping[int, str]) -> dict[int, int]:
        """Returns `{id in the dataset: id in this vocabulary}`, matched by name.

        `extract_task_id(id_map=...)` takes such a mapping.

        Args:
            dataset: The vocabulary that `from_lerobot` read from the dataset, or the dataset's
                `{task_index: name}`. Any other vocabulary numbers its tasks from 0.

        Raises:
            ValueError: This vocabulary lacks a name of the dataset. The message lists all of them.

        >>> model = TaskVocabulary(["pour", "wipe"])
        >>> model.id_map({3: "wipe", 7: "pour"})
        {3: 1, 7: 0}
        """
        if isinstance(dataset, TaskVocabulary):
            tasks = dataset.dataset_tasks or dict(enumerate(dataset.names))
        else:
            tasks = dataset
        unknown = dict.fromkeys(name for name in tasks.values() if name not in self)
        if unknown:
            raise ValueError(
                f"the vocabulary lacks {describe_unknown(unknown, self.names)}. "
                f"Its tasks are {shorten(self.names)}. Extend it with `vocabulary + [...]`."
            )
        return {index: self._ids[name] for index, name in tasks.items()}

    def rows_from(self, source: TaskVocabulary) -> list[int]:
        """Returns for each task its row in `source`'s table, or `NULL_TASK` if `source` lacks it.

        `merge_params(task_rows=...)` takes such a list.

        >>> TaskVocabulary(["wipe", "pour", "cut"]).rows_from(TaskVocabulary(["pour", "wipe"]))
        [1, 0, -1]
        """
        return [source._ids.get(name, NULL_TASK) for name in self.names]

    def __add__(self, names: Iterable[str]) -> TaskVocabulary:
        """Returns the vocabulary with the names that it lacks appended; no id changes.

        The sum has no `dataset_tasks`, because it belongs to more than one dataset.

        >>> (TaskVocabulary(["pour"]) + ["wipe", "pour"]).names
        ('pour', 'wipe')
        """
        return TaskVocabulary(dict.fromkeys((*self.names, *names)))

    def __getitem__(self, task_id: SupportsIndex) -> str:
        """Returns the name of a task.

        Raises:
            IndexError: There is no such task; `NULL_TASK` is none, and has no name.

        >>> TaskVocabulary(["pour", "wipe"])[1]
        'wipe'
        """
        index = operator.index(task_id)
        if not 0 <= index < len(self.names):
            ids = f"its ids are 0 to {len(self.names) - 1}" if self.names else "it is empty"
            raise IndexError(
                f"the vocabulary has no task {index}; {ids}"
                + (", and NULL_TASK (-1) has no name" if index == NULL_TASK else "")
            )
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._ids

    def __repr__(self) -> str:
        tasks = ", ".join(f"{i} {name!r}" for i, name in enumerate(self.names[:_SHOWN]))
        more = f" and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        count = f"{len(self)} task{'' if len(self) == 1 else 's'}"
        return f"<{count}{': ' if tasks else ''}{tasks}{more}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{index}</td><td>{html.escape(name)}</td></tr>"
            for index, name in enumerate(self.names)
        )
        return f"<table><tr><th>id</th><th>task</th></tr>{rows}</table>"

    def _unknown(self, names: Iterable[str]) -> str:
        return (
            f"the vocabulary has no task {describe_unknown(names, self.names)}. "
            f"Its tasks are {shorten(self.names)}. "
            "Correct the name, or extend the vocabulary with `vocabulary + [...]`."
        )

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}


def _check_names(names: Iterable[object]) -> None:
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise TypeError(
            f"a task is looked up by its name, a string, got {wrong}; the name of an id is "
            "vocabulary[id]"
        )
