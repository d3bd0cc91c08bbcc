"""Each task's row from its owner: the task tables of several specialists become one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taskcond.checkpoint.combining.recipe import Recipe
from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.open import find_table, read_leaf
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf
from taskcond.checkpoint.storage.write import leaf_of
from taskcond.data.vocabulary import TaskVocabulary

Task = str | int
"""A name, or the number of a row where there are no names."""


@dataclasses.dataclass
class CombinedTable:
    """The task table of the result.

    Attributes:
        path: Its path.
        value: Its rows.
        owners: `{task: the checkpoint that its row is from}`.
        conditioning: What it means.
    """

    path: str
    value: np.ndarray
    owners: dict[str, str]
    conditioning: TaskConditioning

    @property
    def leaf(self) -> Leaf:
        """How it is written."""
        return leaf_of(self.value)


def combine_tables(recipe: Recipe, specialists: Sequence[Any], base: Any) -> CombinedTable | None:
    """Finds the owner of every task, and puts the table together.

    A task that nobody claims comes from the base, or from anybody where all have the same row.

    Returns:
        The table; `None` where no specialist has one.

    Raises:
        CheckpointError: Tasks that several claim or nobody has, tables of different width, scale
            or fusion, unknown tasks; all of one kind at once.
    """
    tables = [_Table.read(one) for one in specialists]
    present = [table for table in tables if table is not None]
    if not present:
        return None
    rest = _Table.read(base) if base is not None else None
    _check_alike(present, rest)
    claims = _claims(recipe, tables)
    by_name = present[0].conditioning.vocabulary is not None
    if recipe.vocabulary is not None and not by_name:
        raise CheckpointError("a vocabulary in the recipe needs specialists that name their tasks")
    tasks = recipe.vocabulary or dict.fromkeys(task for table in present for task in table.rows)
    owners: dict[Task, _Table] = {}
    orphans = []
    for task in tasks:
        owner = claims.get(task) or _fallback(task, present, rest)
        if owner is None:
            orphans.append(task)
        else:
            owners[task] = owner
    if orphans:
        raise CheckpointError(
            f"nobody claims {orphans}; give them to a specialist with tasks=[...], or leave them "
            "out of the recipe's vocabulary"
        )
    value = np.stack([table.value[table.rows[task]] for task, table in owners.items()])
    frames = tuple(table.frames(task) for task, table in owners.items())
    first = present[0].conditioning
    conditioning = TaskConditioning(
        num_tasks=value.shape[0],
        features=value.shape[1],
        scale=next((s for t in present if (s := t.conditioning.scale) is not None), None),
        fusion=next((f for t in present if (f := t.conditioning.fusion) is not None), None),
        vocabulary=TaskVocabulary(map(str, owners)) if first.vocabulary is not None else None,
        frames_seen=frames if any(n is not None for n in frames) else None,
    )
    names = {str(task): table.source for task, table in owners.items()}
    return CombinedTable(present[0].path, value, names, conditioning)


@dataclasses.dataclass
class _Table:
    source: str
    path: str
    value: np.ndarray
    conditioning: TaskConditioning

    @classmethod
    def read(cls, one: Any) -> _Table | None:
        path = find_table(one.leaves, one.path)
        if path is None:
            return None
        value = read_leaf(one, path)
        one.hashes[path] = hashlib.sha256(np.ascontiguousarray(value).tobytes())
        height, width = value.shape
        return cls(one.path, path, value, one.conditioning or TaskConditioning(height, width))

    @property
    def rows(self) -> dict[Task, int]:
        """The row of each task."""
        names = self.conditioning.vocabulary
        return {task: i for i, task in enumerate(names or range(len(self.value)))}

    def frames(self, task: Task) -> int | None:
        return (self.conditioning.frames_seen or (None,) * len(self.value))[self.rows[task]]


def _check_alike(tables: Sequence[_Table], base: _Table | None) -> None:
    about: dict[str, Callable[[_Table], Any]] = {
        "path": lambda t: t.path,
        "width": lambda t: t.value.shape[1],
        "dtype": lambda t: str(t.value.dtype),
        "scale": lambda t: t.conditioning.scale,
        "fusion": lambda t: t.conditioning.fusion,
    }
    of_tasks: dict[str, Callable[[_Table], Any]] = {
        "names": lambda t: "known" if t.conditioning.vocabulary else "unknown",
    }
    if not any(table.conditioning.vocabulary for table in tables):
        of_tasks["height"] = lambda t: len(t.value)
    problems = []
    for name, get in (about | of_tasks).items():
        having = [*tables, base] if base is not None and name in about else tables
        values = {table.source: get(table) for table in having if get(table) is not None}
        if len(set(values.values())) > 1:
            problems.append(f"{name}: {values}")
    if problems:
        raise CheckpointError("the specialists' task tables differ in " + "; ".join(problems))


def _claims(recipe: Recipe, tables: Sequence[_Table | None]) -> dict[Task, _Table]:
    """The owner of each task that a specialist claims."""
    claimed: dict[Task, list[_Table]] = {}
    unknown = []
    for specialist, table in zip(recipe.specialists, tables, strict=True):
        if table is None:
            unknown += specialist.tasks or ()
            continue
        rows = table.rows
        numbered = list(rows)
        if specialist.tasks is None:
            tasks = [task for task in rows if table.frames(task) != 0]
        else:
            tasks = [
                numbered[t] if isinstance(t, int) and 0 <= t < len(numbered) else t
                for t in specialist.tasks
            ]
        unknown += [task for task in tasks if task not in rows]
        for task in dict.fromkeys(tasks):
            claimed.setdefault(task, []).append(table)
    if unknown:
        raise CheckpointError(f"tasks that their specialist does not have: {unknown}")
    shared = {task: [t.source for t in owners] for task, owners in claimed.items() if owners[1:]}
    if shared:
        raise CheckpointError(
            f"several specialists claim the same tasks: {shared}; say in the recipe whose they "
            "are, with tasks=[...] for each specialist"
        )
    return {task: owners[0] for task, owners in claimed.items()}


def _fallback(task: Task, tables: Sequence[_Table], base: _Table | None) -> _Table | None:
    if base is not None and task in base.rows:
        return base
    having = [table for table in tables if task in table.rows]
    rows = {table.value[table.rows[task]].tobytes() for table in having}
    return having[0] if len(rows) == 1 else None
