"""`TaskConditioning`: the meaning of a task table, in a file beside it.

A row of numbers does not say which task it is for, nor by which factor it is to be multiplied. A
policy that is served with another scale, or with tasks in another order, is wrong without an error.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
from flax import nnx
from pydantic import Field, InstanceOf

from taskcond.checkpoint.storage.atomic import write_text
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf
from taskcond.checkpoint.training import find_params
from taskcond.checkpoint.validation import CONFIG, Count, Number, refuses
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK
from taskcond.merging.tables import Rows, is_table
from taskcond.messages import warn
from taskcond.nn.conditioner import TaskConditioner
from taskcond.params import SharedTaskParam, TaskParam
from taskcond.trees import flatten, to_dict

FILE = "task_conditioning.json"


@refuses("the task conditioning is invalid")
@pydantic.dataclasses.dataclass(frozen=True, config=CONFIG)
class TaskConditioning:
    """The meaning of a task table.

    Args:
        num_tasks: Height of the table.
        features: Width of the table, its last axis.
        scale: Factor on a row with which the model was trained; `None` if it is unknown.
        fusion: The fusion with which the model was trained; `None` if it is unknown.
        vocabulary: The names of the tasks; `None` if they are unknown.
        frames_seen: For each task the number of frames on which it was trained. `None` for a task,
            or for all tasks, if that is unknown.
        table: The path of the table, if its name does not tell; `None` for the only leaf called
            `task_embeddings/embedding`. Any leaf with one row per task may be the table of a model
            that has none of that name, such as the tokens of `TaskTokens`.
        more_tables: The paths of the other leaves with one row per task, such as the factors of
            `TaskLoRA`. Their rows follow those of the table.

    Raises:
        CheckpointError: A field has a wrong type or value, or fields contradict each other. One
            error lists all problems.

    >>> tasks = TaskVocabulary(["pour", "wipe"])
    >>> TaskConditioning(2, 1024, vocabulary=tasks, frames_seen=(900, 0)).untrained()
    ['wipe']
    """

    num_tasks: Count
    features: Annotated[Count, Field(ge=1)]
    scale: Number | None = None
    fusion: str | None = None
    vocabulary: InstanceOf[TaskVocabulary] | None = None
    frames_seen: tuple[Count | None, ...] | None = None
    table: str | None = None
    more_tables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            f"{name} has {len(value)} tasks, the table {self.num_tasks}"
            for name in ("vocabulary", "frames_seen")
            if (value := getattr(self, name)) is not None and len(value) != self.num_tasks
        ]
        if problems:
            raise ValueError("; ".join(problems))

    @classmethod
    def unknown(cls, table: Leaf) -> TaskConditioning:
        """Returns the conditioning of a table whose checkpoint does not say what it means."""
        return cls(table.shape[0], table.shape[-1])

    @classmethod
    def of(
        cls,
        model: nnx.Module,
        *,
        vocabulary: TaskVocabulary | None = None,
        frames_seen: tuple[int | None, ...] | None = None,
    ) -> TaskConditioning | None:
        """Returns the conditioning of a model; `None` if it has no `TaskParam` leaves.

        The table is that of its only `TaskConditioner`, or else the first leaf with rows.

        Args:
            model: The model.
            vocabulary: See the class.
            frames_seen: See the class.

        Raises:
            CheckpointError: The model has more than one `TaskConditioner`, or leaves with
                different numbers of rows.

        >>> from flax import nnx
        >>> import taskcond
        >>> lora = taskcond.TaskLoRA(3, (8, 4), 2, rngs=nnx.Rngs(0))
        >>> about = TaskConditioning.of(lora)
        >>> about.table, about.more_tables
        ('down', ('up',))
        """
        has_rows = nnx.All(TaskParam, nnx.Not(SharedTaskParam))
        leaves = flatten(to_dict(nnx.state(model, has_rows)))
        if not leaves:
            return None
        found = {
            "/".join((*map(str, path), "embedding")): node
            for path, node in nnx.iter_graph(model)
            if isinstance(node, TaskConditioner) and node.embedding is not None
        }
        heights = {path: leaf.shape[0] for path, leaf in leaves.items()}
        if len(found) > 1 or len({*heights.values()}) > 1:
            raise CheckpointError(
                f"one {FILE} cannot say what these leaves mean: {heights}; make a TaskConditioning "
                "for the table that names the tasks"
            )
        table, conditioner = next(iter(found.items()), (next(iter(leaves)), None))
        return cls(
            leaves[table].shape[0],
            leaves[table].shape[-1],
            scale=None if conditioner is None else conditioner.scale,
            fusion=None if conditioner is None else conditioner.fusion,
            vocabulary=vocabulary,
            frames_seen=frames_seen,
            more_tables=tuple(path for path in leaves if path != table),
        ).at(table, leaves)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskConditioning:
        """Reads a file that `save` wrote.

        Args:
            path: The file, or the directory that it is in.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file is malformed, or contradicts itself.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        return cls.from_json(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def from_json(cls, text: str, where: str = FILE) -> TaskConditioning:
        """Parses the content of the file; `where` is its name in errors."""
        try:
            content = json.loads(text)
            if not isinstance(content, dict):
                raise ValueError(f"it holds {content!r} instead of fields in braces")
            names = content.pop("tasks", None)
            vocabulary = None if names is None else TaskVocabulary(names)
            return cls(**content, vocabulary=vocabulary)
        except (ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{where} is malformed: {error}") from error

    def to_json(self) -> str:
        """Returns the content of the file."""
        content: dict[str, Any] = {
            "num_tasks": self.num_tasks,
            "features": self.features,
            "scale": self.scale,
            "fusion": self.fusion,
            "tasks": None if self.vocabulary is None else list(self.vocabulary),
            "frames_seen": None if self.frames_seen is None else list(self.frames_seen),
        }
        if self.table is not None:
            content["table"] = self.table
        if self.more_tables:
            content["more_tables"] = list(self.more_tables)
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file; an existing file is replaced completely or not at all.

        Args:
            path: The file, or the directory of a checkpoint. Orbax ignores files that it does not
                know.
        """
        path = Path(path)
        write_text(path / FILE if path.is_dir() else path, self.to_json())

    def check(
        self,
        *,
        num_tasks: int | None = None,
        features: int | None = None,
        scale: float | None = None,
        fusion: str | None = None,
        vocabulary: TaskVocabulary | None = None,
    ) -> None:
        """Compares the conditioning with a model; what is `None` on either side is not compared.

        Warns:
            UserWarning: Some tasks were never trained; the warning names them.

        Raises:
            CheckpointError: Something differs; one error lists all differences.

        >>> TaskConditioning(2, 8, scale=0.5).check(scale=1.0)
        Traceback (most recent call last):
        ...
        taskcond....CheckpointError: the task conditioning of the checkpoint is not
        the model's: scale is 0.5 in the checkpoint, 1.0 in the model. ...
        """
        self.require(
            num_tasks=num_tasks,
            features=features,
            scale=scale,
            fusion=fusion,
            vocabulary=vocabulary,
        )
        if untrained := self.untrained():
            warn(f"tasks that were never trained: {untrained}")

    def require(self, *, vocabulary: TaskVocabulary | None = None, **expected: Any) -> None:
        """Does what `check` does, without the warning."""
        problems = [
            f"{name} is {getattr(self, name)!r} in the checkpoint, {value!r} in the model"
            for name, value in expected.items()
            if None not in (value, getattr(self, name)) and getattr(self, name) != value
        ]
        if vocabulary is not None and self.vocabulary not in (None, vocabulary):
            problems.append(_first_difference(self.vocabulary, vocabulary))
        if problems:
            raise CheckpointError(
                "the task conditioning of the checkpoint is not the model's: "
                + "; ".join(problems)
                + ". Build the model with the checkpoint's settings, or correct "
                + FILE
                + " if it is wrong"
            )

    def untrained(self) -> list[str]:
        """Returns the tasks that are known to have seen no frame, by name or by number."""
        return [self.name(task) for task, n in enumerate(self.frames_seen or ()) if n == 0]

    def name(self, task: int) -> str:
        """Returns the name of a task, or its number if names are unknown."""
        return str(task) if self.vocabulary is None else self.vocabulary[task]

    def named(self, vocabulary: TaskVocabulary | None) -> TaskConditioning:
        """Returns the conditioning with these names.

        Raises:
            CheckpointError: The tasks have other names already.
        """
        if vocabulary is None:
            return self
        self.require(vocabulary=vocabulary)
        return dataclasses.replace(self, vocabulary=vocabulary)

    def at(self, table: str, leaves: Iterable[str]) -> TaskConditioning:
        """Returns the conditioning of the table at a path; records it if its name does not tell.

        Args:
            table: The path of the table.
            leaves: The paths of all leaves.
        """
        is_obvious = [path for path in leaves if is_table(path)] == [table]
        return dataclasses.replace(self, table=None if is_obvious else table)

    def with_rows(self, rows: Rows, vocabulary: TaskVocabulary | None) -> TaskConditioning:
        """Returns the conditioning of a table whose row `i` is this table's row `rows[i]`.

        `NULL_TASK` marks a new row.

        Raises:
            CheckpointError: A row would get the name of another task.
        """
        self._check_names(rows, vocabulary)
        old = self.frames_seen or (None,) * self.num_tasks
        frames = tuple(0 if row == NULL_TASK else old[row] for row in rows)
        known = frames if any(n is not None for n in frames) else None
        if vocabulary is None and self.vocabulary is not None and NULL_TASK not in rows:
            names = [self.vocabulary[row] for row in rows]
            vocabulary = TaskVocabulary(names) if len(set(names)) == len(names) else None
        return dataclasses.replace(
            self, num_tasks=len(rows), vocabulary=vocabulary, frames_seen=known
        )

    def _check_names(self, rows: Rows, vocabulary: TaskVocabulary | None) -> None:
        if vocabulary is None:
            return
        if len(vocabulary) != len(rows):
            raise CheckpointError(f"the vocabulary has {len(vocabulary)} tasks, rows {len(rows)}")
        if self.vocabulary is None:
            return
        pairs = [
            (self.vocabulary[row], name)
            for row, name in zip(rows, vocabulary, strict=True)
            if row != NULL_TASK
        ]
        if renamed := {old: new for old, new in pairs if old != new}:
            raise CheckpointError(
                "rows and vocabulary contradict each other: the rows of these tasks would get the "
                f"name of another task: {renamed}. To rename tasks, edit {FILE}"
            )


def find_table(
    leaves: Collection[str], where: str = "the checkpoint", table: str | None = None
) -> str | None:
    """Returns the path of the task table, if there is one.

    Args:
        leaves: The paths of all leaves.
        where: Begins the message of an error.
        table: The path, if somebody has said it.

    Raises:
        CheckpointError: There are several, or none at `table`.
    """
    tables = [path for path in leaves if is_table(path)]
    if table is not None:
        if table not in leaves:
            similar = tables or [p for p in leaves if p.endswith("/embedding")][:8] or [*leaves][:8]
            raise CheckpointError(
                f"{where} has no leaf {table!r} to be the task table, but {similar}; correct "
                f"table (--table) or the field table of {FILE}"
            )
        return table
    if len(tables) > 1:
        raise CheckpointError(
            f"{where} has several task tables: {tables}; say which one with table=... "
            f"(--table PATH), or in the field table of {FILE}"
        )
    return tables[0] if tables else None


def check_table(
    leaves: Mapping[str, Leaf],
    conditioning: TaskConditioning | None,
    where: str,
    table: str | None = None,
) -> None:
    """Raises `CheckpointError` if a task conditioning does not fit the task table."""
    if table is None and conditioning is not None:
        table = conditioning.table
    tables = [path for path in leaves if is_table(path)]
    if conditioning is not None or table is not None:
        found = find_table(leaves, where, table)
        tables = [] if found is None else [found]
    is_named = conditioning is not None and conditioning.table is not None
    if len(tables) == 1 and len(leaves[tables[0]].shape) != 2 and not is_named:
        raise CheckpointError(
            f"{where}: the task table {tables[0]} has the shape {list(leaves[tables[0]].shape)}, "
            "but must be [num_tasks, features]"
        )
    if conditioning is None:
        return
    if not tables:
        raise CheckpointError(
            f"{where} has a {FILE} but no task table (a leaf task_embeddings/embedding); if the "
            f"table has another name, give it with table=... (--table PATH); if there is none, "
            f"delete {FILE}"
        )
    stated, shape = (conditioning.num_tasks, conditioning.features), leaves[tables[0]].shape
    if len(shape) < 2 or stated != (shape[0], shape[-1]):
        raise CheckpointError(
            f"{where}: {FILE} is about a table of {list(stated)}, but {tables[0]} has the shape "
            f"{list(shape)}; one of them belongs to another checkpoint"
        )
    params = find_params(leaves) or ""  # where the parameters of a training state are
    shapes = {
        path: list(leaves[params + path].shape) if params + path in leaves else "not there"
        for path in conditioning.more_tables
    }
    wrong = {path: x for path, x in shapes.items() if x[:1] != [conditioning.num_tasks]}
    if wrong:
        raise CheckpointError(
            f"{where}: {FILE} has more_tables that must have {conditioning.num_tasks} rows, but "
            f"are {wrong}; correct the field more_tables"
        )


def _first_difference(old: Any, new: Any) -> str:
    for task, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return f"task {task} is {a!r} in the checkpoint, {b!r} in the model"
    return f"the checkpoint has {len(old)} tasks, the model {len(new)}"
