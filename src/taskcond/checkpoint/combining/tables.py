"""The task tables of several specialists become one: each task's row comes from its owner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Shaped

from taskcond.checkpoint.combining.inputs import Input
from taskcond.checkpoint.combining.recipe import Recipe
from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.messages import describe_unknown, shorten

Task = str | int
"""The name of a task, or the number of its row if there are no names."""


@dataclasses.dataclass
class CombinedTable:
    """The task table of the result.

    Attributes:
        path: The path of the table.
        value: The rows.
        owners: `{task: the checkpoint that its row comes from}`.
        conditioning: The meaning of the table.
        more: The rows of the other leaves with one row per task, by path.
    """

    path: str
    value: Shaped[np.ndarray, "tasks ..."]
    owners: dict[str, str]
    conditioning: TaskConditioning
    more: dict[str, Shaped[np.ndarray, "tasks ..."]]


def combine_tables(
    recipe: Recipe, specialists: Sequence[Input], base: Input | None
) -> CombinedTable | None:
    """Finds the owner of every task, and puts the table together.

    The row of a task that no specialist claims is taken from the base. If the base does not have
    the task, the row is taken from the first specialist, provided that all have the same row.

    Returns:
        The table; `None` if no specialist has one.

    Raises:
        CheckpointError: Several specialists claim a task, or nobody has it; tables differ in
            width, scale or fusion; tasks are unknown. One error lists all problems of one kind.
    """
    tables = [_Table.read(specialist) for specialist in specialists]
    present = [table for table in tables if table is not None]
    if not present:
        return None
    rest = None if base is None else _Table.read(base)
    _check_alike(present, rest)
    owners = _owners(recipe, tables, rest)
    value = np.stack([table.value[table.rows[task]] for task, table in owners.items()])
    frames = tuple(table.frames(task) for task, table in owners.items())
    names = present[0].conditioning.vocabulary
    known = [table.conditioning for table in present]
    conditioning = TaskConditioning(
        num_tasks=value.shape[0],
        features=value.shape[-1],
        scale=next((c.scale for c in known if c.scale is not None), None),
        fusion=next((c.fusion for c in known if c.fusion is not None), None),
        vocabulary=None if names is None else TaskVocabulary(map(str, owners)),
        frames_seen=frames if any(n is not None for n in frames) else None,
        more_tables=tuple(present[0].more),
    )
    more = {
        path: np.stack([table.more[path][table.rows[task]] for task, table in owners.items()])
        for path in present[0].more
    }
    sources = {str(task): table.source for task, table in owners.items()}
    return CombinedTable(present[0].path, value, sources, conditioning, more)


@dataclasses.dataclass
class _Table:
    source: str
    path: str
    value: Shaped[np.ndarray, "tasks ..."]
    conditioning: TaskConditioning
    more: dict[str, Shaped[np.ndarray, "tasks ..."]]

    @classmethod
    def read(cls, source: Input) -> _Table | None:
        path = source.table
        if path is None:
            return None
        conditioning = source.checkpoint.conditioning
        if conditioning is None:
            conditioning = TaskConditioning.unknown(source.leaves[path])
        more = {name: source.read_table(name) for name in conditioning.more_tables}
        return cls(source.path, path, source.read_table(path), conditioning, more)

    @property
    def rows(self) -> dict[Task, int]:
        """The row of each task."""
        names = self.conditioning.vocabulary
        return {task: i for i, task in enumerate(names or range(len(self.value)))}

    def row(self, task: Task) -> bytes:
        """Returns all that belongs to a task, to compare."""
        leaves = (self.value, *self.more.values())
        return b"".join(leaf[self.rows[task]].tobytes() for leaf in leaves)

    def frames(self, task: Task) -> int | None:
        """Returns the number of frames on which a task was trained."""
        return (self.conditioning.frames_seen or (None,) * len(self.value))[self.rows[task]]


def _check_alike(tables: Sequence[_Table], base: _Table | None) -> None:
    properties: dict[str, Callable[[_Table], object]] = {
        "path": lambda t: t.path,
        "width": lambda t: t.value.shape[1:],
        "more tables": lambda t: tuple((path, x.shape[1:]) for path, x in t.more.items()),
        "dtype": lambda t: str(t.value.dtype),
        "scale": lambda t: t.conditioning.scale,
        "fusion": lambda t: t.conditioning.fusion,
    }
    # The base may have fewer tasks, and need not name them.
    of_tasks: dict[str, Callable[[_Table], object]] = {
        "names": lambda t: "known" if t.conditioning.vocabulary else "unknown",
    }
    if not any(table.conditioning.vocabulary for table in tables):
        of_tasks["height"] = lambda t: len(t.value)
    problems = []
    for name, get in (properties | of_tasks).items():
        compared = [*tables, base] if base is not None and name in properties else tables
        values = {table.source: get(table) for table in compared if get(table) is not None}
        if len(set(values.values())) > 1:
            problems.append(f"{name}: {values}")
    if problems:
        raise CheckpointError("the specialists' task tables differ in " + "; ".join(problems))


def _owners(
    recipe: Recipe, tables: Sequence[_Table | None], base: _Table | None
) -> dict[Task, _Table]:
    """Returns the table that the row of each task of the result comes from."""
    present = [table for table in tables if table is not None]
    if recipe.vocabulary is not None and present[0].conditioning.vocabulary is None:
        raise CheckpointError(
            "a vocabulary in the recipe needs specialists that name their tasks; remove it, or "
            "add a task_conditioning.json to each specialist"
        )
    claims = _claims(recipe, tables)
    tasks = recipe.vocabulary or dict.fromkeys(task for table in present for task in table.rows)
    owners = {task: claims.get(task) or _fallback(task, present, base) for task in tasks}
    if orphans := [task for task, owner in owners.items() if owner is None]:
        raise CheckpointError(
            f"nobody claims {orphans}; give them to a specialist with tasks=[...], or leave them "
            "out of the recipe's vocabulary"
        )
    return {task: owner for task, owner in owners.items() if owner is not None}


def _claims(recipe: Recipe, tables: Sequence[_Table | None]) -> dict[Task, _Table]:
    """Returns the owner of each task that a specialist claims."""
    claimed: dict[Task, list[_Table]] = {}
    unknown: list[str] = []
    for specialist, table in zip(recipe.specialists, tables, strict=True):
        if table is None:
            if specialist.tasks:
                unknown.append(f"{specialist.path} has no task table, so not {specialist.tasks}")
            continue
        tasks = _claimed_tasks(specialist.tasks, table)
        known = list(map(str, table.rows))
        lacking = [str(task) for task in tasks if task not in table.rows]
        if lacking:
            unknown.append(
                f"{table.source} has no {describe_unknown(lacking, known)}; it has {shorten(known)}"
            )
        for task in dict.fromkeys(tasks):
            claimed.setdefault(task, []).append(table)
    if unknown:
        raise CheckpointError(
            f"tasks are not in the table of their specialist: {'; '.join(unknown)}. Correct the "
            "recipe"
        )
    shared = {task: [t.source for t in owners] for task, owners in claimed.items() if owners[1:]}
    if shared:
        raise CheckpointError(
            f"several specialists claim the same tasks: {shared}; say in the recipe which "
            "specialist each task belongs to, with tasks=[...]"
        )
    return {task: owners[0] for task, owners in claimed.items()}


def _claimed_tasks(tasks: Sequence[Task] | None, table: _Table) -> list[Task]:
    numbered = list(table.rows)
    if tasks is None:
        return [task for task in numbered if table.frames(task) != 0]
    return [
        numbered[task] if isinstance(task, int) and 0 <= task < len(numbered) else task
        for task in tasks
    ]


def _fallback(task: Task, tables: Sequence[_Table], base: _Table | None) -> _Table | None:
    if base is not None and task in base.rows:
        return base
    having = [table for table in tables if task in table.rows]
    rows = {table.row(task) for table in having}
    return having[0] if len(rows) == 1 else None
