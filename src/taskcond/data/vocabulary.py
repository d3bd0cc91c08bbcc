"""`TaskVocabulary`: ordered task names; a task's id is its position.

Names, not numbers, identify a task. Tools that split, merge or delete from datasets number the
tasks anew, and a model that trusts the numbers then acts on the wrong task without a sound.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskcond.ids import NULL_TASK


@dataclasses.dataclass(frozen=True)
class TaskVocabulary:
    """Ordered, distinct task names.

    Args:
        names: The names; the id of a task is its position here.

    Raises:
        TypeError: A name is not a string.
        ValueError: A name occurs twice.

    >>> vocabulary = TaskVocabulary(["pick up the radio", "turn on the radio"])
    >>> vocabulary.id("turn on the radio"), vocabulary.names[0], len(vocabulary)
    (1, 'pick up the radio', 2)
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[Any]):
        if isinstance(names, str):
            raise TypeError(f"names must be a list of names, got the one string {names!r}")
        names = tuple(names)
        wrong = [name for name in names if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"task names must be strings, got {wrong}")
        double = [name for name, count in Counter(names).items() if count > 1]
        if double:
            raise ValueError(f"task names must be distinct; these occur more than once: {double}")
        object.__setattr__(self, "names", names)

    @classmethod
    def from_lerobot(cls, root: str | os.PathLike[str]) -> TaskVocabulary:
        """Reads the tasks of a LeRobot dataset (v2.0, v2.1, v3.0), in the order of their indices.

        The id is the position among the dataset's tasks, which is its `task_index` unless there
        are gaps; `id_map` takes care of both.

        Args:
            root: The dataset's folder, the one that holds `meta`.

        Raises:
            FileNotFoundError: No `meta/tasks.jsonl` and no `meta/tasks.parquet`.
            ValueError: A malformed file; two ids of one name, or two names of one id.
        """
        return cls(_distinct(read_lerobot_tasks(root), root).values())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskVocabulary:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a vocabulary.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["tasks"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path} is not a task vocabulary, which is {{"tasks": ["name", ...]}}: {error}'
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON; an existing file is replaced at once or not at all."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        content = json.dumps({"tasks": list(self.names)}, indent=2, ensure_ascii=False)
        partial.write_text(content + "\n", encoding="utf-8")
        os.replace(partial, path)

    def id(self, name: str) -> int:
        """The id of a task; `KeyError` where the name is unknown."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(f"no task {name!r}; there are {list(self.names)}") from None

    def id_map(self, dataset: TaskVocabulary | Mapping[int, str]) -> dict[int, int]:
        """Maps a dataset's ids to this vocabulary's, by name; for `extract_task_id(id_map=...)`.

        Args:
            dataset: Its vocabulary, or its `{task_index: name}`, where numbers may be missing.

        Raises:
            ValueError: Names that this vocabulary lacks, all of them at once.

        >>> model = TaskVocabulary(["pour", "wipe"])
        >>> model.id_map({3: "wipe", 7: "pour"})
        {3: 1, 7: 0}
        """
        tasks = dict(enumerate(dataset)) if isinstance(dataset, TaskVocabulary) else dict(dataset)
        unknown = [name for name in tasks.values() if name not in self]
        if unknown:
            raise ValueError(f"the vocabulary lacks {unknown}; extend it with `vocabulary + [...]`")
        return {index: self.id(name) for index, name in tasks.items()}

    def rows_from(self, source: TaskVocabulary) -> list[int]:
        """For each of these tasks its row in `source`'s table, or `NULL_TASK` where it has none.

        This is what `merge_params(task_rows=...)` takes.

        >>> TaskVocabulary(["wipe", "pour", "cut"]).rows_from(TaskVocabulary(["pour", "wipe"]))
        [1, 0, -1]
        """
        return [source.id(name) if name in source else NULL_TASK for name in self.names]

    def __add__(self, names: Iterable[str]) -> TaskVocabulary:
        """The vocabulary with those names appended that it lacks; no id changes.

        >>> (TaskVocabulary(["pour"]) + ["wipe", "pour"]).names
        ('pour', 'wipe')
        """
        return TaskVocabulary(dict.fromkeys((*self.names, *names)))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


def read_lerobot_tasks(root: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """The `(task_index, name)` rows of a LeRobot dataset, sorted by index, as they are.

    Published datasets have two indices of one name and two names of one index; nothing is dropped
    here, so that a reader can say so. Parquet (v3.0) needs PyArrow.

    Args:
        root: The dataset's folder, the one that holds `meta`.

    Raises:
        FileNotFoundError: No `meta/tasks.jsonl` and no `meta/tasks.parquet`.
        ValueError: A file that cannot be parsed, with its name and line.
    """
    meta = Path(root) / "meta"
    if (meta / "tasks.parquet").exists():
        rows = _read_parquet(meta / "tasks.parquet")
    elif (meta / "tasks.jsonl").exists():
        rows = _read_jsonl(meta / "tasks.jsonl")
    else:
        raise FileNotFoundError(
            f"{meta} has neither tasks.jsonl (LeRobot v2) nor tasks.parquet (v3.0); "
            "pass the dataset's folder, the one that holds meta"
        )
    return sorted(rows)


def _read_jsonl(path: Path) -> list[tuple[int, str]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(_checked(row["task_index"], row["task"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: expected {{"task_index": 0, "task": "name"}}, '
                f"got {line!r} ({error})"
            ) from error
    return rows


def _read_parquet(path: Path) -> list[tuple[int, str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"{path} needs PyArrow: pip install pyarrow") from error
    try:
        columns = pq.read_table(path).to_pydict()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    # LeRobot writes a pandas frame whose index is the name; unnamed, pandas calls it so.
    name = next((key for key in ("task", "__index_level_0__") if key in columns), None)
    if name is None or "task_index" not in columns:
        raise ValueError(f"{path}: expected columns task_index and task, got {list(columns)}")
    return [_checked(*row) for row in zip(columns["task_index"], columns[name], strict=True)]


def _checked(index: Any, name: Any) -> tuple[int, str]:
    if type(index) is not int or index < 0 or not isinstance(name, str):
        raise ValueError(f"task_index {index!r} with task {name!r}")
    return index, name


def _distinct(rows: list[tuple[int, str]], root: Any) -> dict[int, str]:
    problems = [
        *(f"index {i} is {names}" for i, names in _groups(rows).items() if len(names) > 1),
        *(
            f"{name!r} is index {indices}"
            for name, indices in _groups((name, i) for i, name in rows).items()
            if len(indices) > 1
        ),
    ]
    if problems:
        raise ValueError(
            f"{root}: tasks are ambiguous: " + "; ".join(problems) + ". Correct meta/tasks, or "
            "build a TaskVocabulary from the names that you want"
        )
    return dict(rows)


def _groups(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups
