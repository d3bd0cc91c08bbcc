"""`TaskConditioning`: what a task table needs to be understood, in a file beside it.

A row of numbers does not say whose task it is, nor by which factor it is to be multiplied: served
under another scale, or with tasks in another order, a policy is wrong without a sound.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK

FILE = "task_conditioning.json"


@dataclasses.dataclass(frozen=True)
class TaskConditioning:
    """The meaning of a task table.

    Args:
        num_tasks: Height of the table.
        features: Width of the table.
        scale: Factor on a row, as the model was trained; `None` where it is unknown.
        fusion: How a row enters the model, as it was trained; `None` where it is unknown.
        vocabulary: The tasks' names; `None` where they are unknown.
        frames_seen: For each task the number of frames it was trained on; `None` for a task, or
            for all, where that is unknown.

    Raises:
        CheckpointError: The fields contradict each other; all contradictions at once.

    >>> tasks = TaskVocabulary(["pour", "wipe"])
    >>> TaskConditioning(2, 1024, vocabulary=tasks, frames_seen=(900, 0)).untrained()
    ['wipe']
    """

    num_tasks: int
    features: int
    scale: float | None = None
    fusion: str | None = None
    vocabulary: TaskVocabulary | None = None
    frames_seen: tuple[int | None, ...] | None = None

    def __post_init__(self):
        problems = []
        if self.num_tasks < 0 or self.features < 1:
            problems.append(f"a table of {self.num_tasks} x {self.features}")
        if self.scale is not None and not math.isfinite(self.scale):
            problems.append(f"scale is {self.scale}")
        for name in ("vocabulary", "frames_seen"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_tasks:
                problems.append(f"{name} has {len(value)} tasks, the table {self.num_tasks}")
        if any(frames is not None and frames < 0 for frames in self.frames_seen or ()):
            problems.append("frames_seen is negative")
        if problems:
            raise CheckpointError("task conditioning contradicts itself: " + "; ".join(problems))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TaskConditioning:
        """Reads what `save` wrote.

        Args:
            path: The file, or the directory that it is in.

        Raises:
            FileNotFoundError: No such file.
            CheckpointError: Malformed, or contradicting itself.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        return cls.from_json(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def from_json(cls, text: str, where: str = FILE) -> TaskConditioning:
        """Parses the content of the file; `where` is its name in errors."""
        try:
            content = json.loads(text)
            names, frames = content["tasks"], content["frames_seen"]
            return cls(
                num_tasks=_integer(content["num_tasks"]),
                features=_integer(content["features"]),
                scale=None if content["scale"] is None else float(content["scale"]),
                fusion=None if content["fusion"] is None else str(content["fusion"]),
                vocabulary=None if names is None else TaskVocabulary(names),
                frames_seen=None
                if frames is None
                else tuple(None if n is None else _integer(n) for n in frames),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{where} is malformed: {error!s}") from error

    def to_json(self) -> str:
        """The content of the file."""
        content = {
            "num_tasks": self.num_tasks,
            "features": self.features,
            "scale": self.scale,
            "fusion": self.fusion,
            "tasks": None if self.vocabulary is None else list(self.vocabulary),
            "frames_seen": None if self.frames_seen is None else list(self.frames_seen),
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file; an existing one is replaced at once or not at all.

        Args:
            path: The file, or the directory of a checkpoint: Orbax leaves unknown files alone.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        partial.write_text(self.to_json(), encoding="utf-8")
        os.replace(partial, path)

    def check(
        self,
        *,
        num_tasks: int | None = None,
        features: int | None = None,
        scale: float | None = None,
        fusion: str | None = None,
        vocabulary: TaskVocabulary | None = None,
    ) -> None:
        """Compares with what a model has; what is `None` here or there is not compared.

        Warns:
            UserWarning: Tasks that were never trained, by name.

        Raises:
            CheckpointError: Anything differs; all differences at once.

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
            warnings.warn(f"tasks that were never trained: {untrained}", stacklevel=2)

    def require(self, *, vocabulary: TaskVocabulary | None = None, **expected: Any) -> None:
        """`check` without the warning."""
        problems = [
            f"{name} is {getattr(self, name)!r} in the checkpoint, {value!r} in the model"
            for name, value in expected.items()
            if None not in (value, getattr(self, name)) and getattr(self, name) != value
        ]
        if vocabulary is not None and self.vocabulary not in (None, vocabulary):
            problems.append(_compare(self.vocabulary, vocabulary))
        if problems:
            raise CheckpointError(
                "the task conditioning of the checkpoint is not the model's: "
                + "; ".join(problems)
                + ". Build the model with the checkpoint's settings, or correct "
                + FILE
                + " if it is wrong"
            )

    def untrained(self) -> list[str]:
        """The tasks that are known to have seen no frame: by name, or by number."""
        return [self.name(task) for task, n in enumerate(self.frames_seen or ()) if n == 0]

    def name(self, task: int) -> str:
        """What a task is called."""
        return str(task) if self.vocabulary is None else self.vocabulary.names[task]

    def with_rows(self, rows: Any, vocabulary: TaskVocabulary | None) -> TaskConditioning:
        """That of a table whose row `i` is this one's `rows[i]`, or a new one for `NULL_TASK`.

        Raises:
            CheckpointError: A row would get the name of another task.
        """
        if vocabulary is not None and len(vocabulary) != len(rows):
            raise CheckpointError(f"the vocabulary has {len(vocabulary)} tasks, rows {len(rows)}")
        if vocabulary is not None and self.vocabulary is not None:
            pairs = [
                (self.vocabulary.names[row], name)
                for row, name in zip(rows, vocabulary, strict=True)
                if row != NULL_TASK
            ]
            if renamed := {old: new for old, new in pairs if old != new}:
                raise CheckpointError(
                    f"rows and vocabulary contradict each other: the rows of these tasks would "
                    f"get another's name: {renamed}. To rename tasks, edit {FILE}"
                )
        old = self.frames_seen or (None,) * self.num_tasks
        frames = tuple(0 if row == NULL_TASK else old[row] for row in rows)
        known = frames if any(n is not None for n in frames) else None
        if vocabulary is None and self.vocabulary is not None and NULL_TASK not in rows:
            names = [self.vocabulary.names[row] for row in rows]
            vocabulary = TaskVocabulary(names) if len(set(names)) == len(names) else None
        return dataclasses.replace(
            self, num_tasks=len(rows), vocabulary=vocabulary, frames_seen=known
        )


def _compare(old: Any, new: Any) -> str:
    for task, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return f"task {task} is {a!r} in the checkpoint, {b!r} in the model"
    return f"the checkpoint has {len(old)} tasks, the model {len(new)}"


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no integer")
    return value
