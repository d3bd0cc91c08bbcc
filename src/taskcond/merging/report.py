"""What a merge did, and what it refuses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from taskcond.messages import Readable, columns

TASK_ROWS = "task_rows"
"""The argument whose use needs a task table."""

_NO_TABLE = (
    "no leaf of both has the path of a task table; name it with task_tables=... (merge_params), "
    "table=... (merge_checkpoint) or --table PATH"
)


@dataclasses.dataclass(repr=False)
class MergeReport(Readable):
    """A report of what a merge did with every leaf; prints as a table.

    Attributes:
        loaded: Paths that have the checkpoint's values.
        kept: Paths that stay as they are in the model.
        without_value: Kept paths of which the model has a shape alone, as after `nnx.eval_shape`.
        dropped: Paths of the checkpoint that were left out.
        renamed: `{path in the checkpoint: path in the model}`, for paths that `rename` changed.
        cast: `{path: (dtype in the checkpoint, dtype in the model)}`, for dtypes that differ.
        resized: `{path: what became of the rows}`, for task tables that were remapped.
        nonfinite: `{path: number of NaN and Inf}` among the loaded values.
        unused: Arguments that had no effect, such as a pattern that matches nothing.
    """

    loaded: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)
    without_value: list[str] = dataclasses.field(default_factory=list)
    dropped: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    cast: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    resized: dict[str, str] = dataclasses.field(default_factory=dict)
    nonfinite: dict[str, int] = dataclasses.field(default_factory=dict)
    unused: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return columns(
            [
                ("loaded", f"{len(self.loaded)} leaves", ""),
                *(("kept", path, self._value_of(path)) for path in self.kept),
                *(("dropped", path, "left out") for path in self.dropped),
                *(("renamed", old, f"-> {new}") for old, new in self.renamed.items()),
                *(("cast", path, f"{old} -> {new}") for path, (old, new) in self.cast.items()),
                *(("resized", path, what) for path, what in self.resized.items()),
                *(("NaN/Inf", path, f"{n} values") for path, n in self.nonfinite.items()),
                *(
                    ("unused", what, _NO_TABLE if what == TASK_ROWS else "matches nothing")
                    for what in self.unused
                ),
            ]
        )

    def _value_of(self, path: str) -> str:
        if path in self.without_value:
            return "without a value: the model has a shape alone, so initialize it"
        return "as it is in the model"


@dataclasses.dataclass(frozen=True)
class MergeProblems:
    """Everything that keeps a checkpoint from fitting a model.

    Attributes:
        missing: Paths that the model has and the checkpoint lacks, and their spec in the model.
        unexpected: Paths that the checkpoint has and the model lacks, and their spec there.
        mismatched: Paths whose shapes differ: `(spec in the checkpoint, spec in the model)`.
        uncastable: Paths whose dtypes differ in kind, likewise.
        tables: Paths among `mismatched` that are task tables.
        sources: `{path: path in the checkpoint}`, for paths that `rename` changed.
        idle_tables: The patterns of task tables, if there are rows for them, but no table.
        rename: What `rename` would solve most problems; empty if there is nothing like that.
        left: The problems that this leaves.
    """

    missing: Mapping[str, str]
    unexpected: Mapping[str, str]
    mismatched: Mapping[str, tuple[str, str]]
    uncastable: Mapping[str, tuple[str, str]]
    tables: tuple[str, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    idle_tables: tuple[str, ...] = ()
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left: MergeProblems | None = None

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def count(self) -> int:
        """The number of problems."""
        kinds = (self.missing, self.unexpected, self.mismatched, self.uncastable)
        return sum(map(len, kinds))

    @property
    def keep(self) -> list[str]:
        """The patterns for `keep` with which a merge would be accepted, after `rename`."""
        if self.left is not None:
            return self.left.keep
        return [re.escape(path) for path in (*self.missing, *self.mismatched)]

    @property
    def drop(self) -> list[str]:
        """The patterns for `drop` with which a merge would be accepted, after `rename`."""
        if self.left is not None:
            return self.left.drop
        paths = (*self.unexpected, *self.mismatched)
        return [re.escape(self.sources.get(path, path)) for path in paths]

    def summary(self) -> str:
        """Returns one line with the number of problems of each kind."""
        counts = (
            (len(self.missing), "missing"),
            (len(self.unexpected), "unexpected"),
            (len(self.mismatched), "mis-shaped"),
            (len(self.uncastable), "of another kind of number"),
        )
        found = ", ".join(f"{count} {what}" for count, what in counts if count)
        return f"the checkpoint does not fit the model: {found}"

    def details(self) -> str:
        """Returns a line for each problem, under a title for each kind."""
        lines: list[str] = []
        for title, problems in (
            ("missing from the checkpoint", self.missing),
            ("unexpected in the checkpoint", self.unexpected),
            ("mis-shaped (checkpoint, model)", self.mismatched),
            ("refused casts (checkpoint, model)", self.uncastable),
        ):
            if problems:
                lines.append(f"{title}:")
                lines += [f"  {path}  {_joined(spec)}" for path, spec in problems.items()]
        return "\n".join(lines)


class MergeError(ValueError):
    """Raised when a checkpoint does not fit a model.

    The message lists every problem and ends with the arguments that would accept them.

    Attributes:
        problems: The problems as data.
        call: The call that takes the arguments which would accept them; `{}` stands for these.
    """

    def __init__(self, problems: MergeProblems, call: str = "{}"):
        self.problems = problems
        self.call = call
        super().__init__("\n".join([problems.summary(), problems.details(), *self._advice()]))

    @property
    def missing(self) -> tuple[str, ...]:
        """The paths that the model has and the checkpoint lacks."""
        return tuple(self.problems.missing)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """The paths that the checkpoint has and the model lacks."""
        return tuple(self.problems.unexpected)

    @property
    def mismatched(self) -> tuple[str, ...]:
        """The paths whose shapes differ."""
        return tuple(self.problems.mismatched)

    @property
    def uncastable(self) -> tuple[str, ...]:
        """The paths whose dtypes differ in kind."""
        return tuple(self.problems.uncastable)

    def __reduce__(self) -> tuple[Any, ...]:
        return MergeError, (self.problems, self.call)

    def _advice(self) -> list[str]:
        problems = self.problems
        names = ("rename", "keep", "drop")
        arguments = ", ".join(f"{name}={x}" for name in names if (x := getattr(problems, name)))
        lines = ["only the beginning of most paths differs"] if problems.rename else []
        lines += [f"to accept this: {self.call.replace('{}', arguments)}"] if arguments else []
        lines += [
            f"to remap the rows of {path}: task_rows=new_vocabulary.rows_from(old_vocabulary), "
            "or a list with the old row of each new one, -1 for a new task"
            for path in problems.tables
        ]
        if problems.idle_tables:
            lines.append(f"task_rows was not used: {_NO_TABLE}")
        if problems.uncastable:
            lines.append("convert the checkpoint's dtypes yourself if that is what you mean")
        return lines


def _joined(spec: str | tuple[str, str]) -> str:
    return spec if isinstance(spec, str) else ", ".join(spec)
