"""The task list of a LeRobot dataset, as its `meta` folder stores it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_lerobot_tasks(root: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Returns the `(task_index, name)` rows of a LeRobot dataset, sorted by index.

    Some published datasets have two indices for one name, or two names for one index. Nothing is
    dropped here; `ambiguous_tasks` lists such rows. Parquet (v3.0) needs PyArrow.

    Args:
        root: The dataset's folder, the one that holds `meta`.

    Raises:
        FileNotFoundError: There is no `meta/tasks.jsonl` and no `meta/tasks.parquet`.
        ValueError: A file cannot be parsed. The message names the file and the line.
    """
    meta = Path(root) / "meta"
    if (meta / "tasks.parquet").exists():
        rows = _read_parquet(meta / "tasks.parquet")
    elif (meta / "tasks.jsonl").exists():
        rows = _read_jsonl(meta / "tasks.jsonl")
    else:
        raise FileNotFoundError(
            f"{meta} has neither tasks.jsonl (LeRobot v2) nor tasks.parquet (v3.0). "
            "Pass the dataset's folder, the one that holds meta."
        )
    return sorted(rows)


def ambiguous_tasks(rows: Sequence[tuple[int, str]]) -> list[str]:
    """Describes every index that has several names, then every name that has several indices.

    Args:
        rows: What `read_lerobot_tasks` returns.

    >>> ambiguous_tasks([(0, "pour"), (0, "wipe"), (1, "wipe")])
    ["task_index 0 is ['pour', 'wipe']", "'wipe' is task_index [0, 1]"]
    """
    names: dict[int, list[str]] = defaultdict(list)
    indices: dict[str, list[int]] = defaultdict(list)
    for index, name in rows:
        names[index].append(name)
        indices[name].append(index)
    return [
        *(f"task_index {index} is {names}" for index, names in names.items() if len(names) > 1),
        *(f"{name!r} is task_index {same}" for name, same in indices.items() if len(same) > 1),
    ]


def read_json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    r"""Yields the number, counted from 1, and the parsed content of each line that is not empty.

    Lines end with "\n" and with nothing else: a JSON string may hold U+2028 or U+0085, at which
    `str.splitlines` would split. A byte order mark at the start of the file is skipped.

    Raises:
        ValueError: A line is not JSON in UTF-8. The message names the file and the line.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(text) if text else None
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number} is not JSON in UTF-8: {error}. "
                    "Restore the file from the dataset's source."
                ) from error
            if text:
                yield number, row


def _read_jsonl(path: Path) -> list[tuple[int, str]]:
    return [_task(row, f"{path}, line {number}") for number, row in read_json_lines(path)]


def _read_parquet(path: Path) -> list[tuple[int, str]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{path} is a Parquet file, which needs PyArrow. Run pip install pyarrow."
        ) from error
    try:
        columns = pq.read_table(path).to_pydict()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as Parquet: {error}. Restore it from the dataset's source."
        ) from error
    # LeRobot writes a pandas frame whose index is the name; pandas calls an unnamed index so.
    key = next((key for key in ("task", "__index_level_0__") if key in columns), None)
    if key is None or "task_index" not in columns:
        raise ValueError(
            f"{path} has the columns {list(columns)}. Expected task_index and task. "
            "Restore it from the dataset's source."
        )
    rows = zip(columns["task_index"], columns[key], strict=True)
    return [
        _task({"task_index": index, "task": name}, f"{path}, row {number}")
        for number, (index, name) in enumerate(rows)
    ]


def _task(row: Any, place: str) -> tuple[int, str]:
    fields = row if isinstance(row, dict) else {}
    index, name = fields.get("task_index"), fields.get("task")
    if type(index) is not int or index < 0 or not isinstance(name, str):
        raise ValueError(
            f'{place} is {row!r}. Expected {{"task_index": 0, "task": "name"}}, with an integer of '
            "at least 0 and a string. Correct the row."
        )
    return index, name
