"""`merge_checkpoint` and `change_tasks`: `merge_params` from file to file, in bounded memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.open import (
    Checkpoint,
    StrPath,
    find_table,
    open_checkpoint,
    read_leaf,
)
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Box, Leaf
from taskcond.checkpoint.storage.write import Progress, check_output, leaf_of, write_checkpoint
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK
from taskcond.merging.merge import (
    LeafPlan,
    MergeReport,
    Patterns,
    Rows,
    count_nonfinite,
    plan_merge,
    take_rows,
    warn_nonfinite,
)
from taskcond.nn.fusion import FUSIONS
from taskcond.trees import flatten, unwrap

Start = str | int


def merge_checkpoint(
    source: StrPath,
    target: Mapping[Any, Any],
    out: StrPath,
    *,
    keep: Patterns = (),
    drop: Patterns = (),
    rename: Mapping[str, str] | None = None,
    task_rows: Rows | None = None,
    new_rows: Start = "target",
    vocabulary: TaskVocabulary | None = None,
    scale: float | None = None,
    fusion: str | None = None,
    format: str = "orbax",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Writes a new model's checkpoint from another one's: `merge_params`, from file to file.

    Args:
        source: See `Checkpoint`.
        target: The new model's parameters: nested dicts, or an `nnx.State`, of arrays or
            `jax.ShapeDtypeStruct`s. Leaves that are kept must be arrays; a task table may start
            from `new_rows="zeros"` instead.
        out: A local directory, which appears when it is complete; for openpi, one that ends in
            `params`.
        keep: See `merge_params`, as for `drop`, `rename` and `task_rows`.
        drop: Source leaves that may be left out.
        rename: `{pattern of a source path: new path}`.
        task_rows: For each row of the new task table the row of the old one, or `NULL_TASK`.
        new_rows: What a new row starts from: `"target"`, `"zeros"`, `"mean"`, or an old row.
        vocabulary: The names of the new model's tasks. Where the source has names too, rows are
            remapped by them.
        scale: The new model's factor on task rows; must be the source's, where that has a table.
        fusion: The new model's; likewise.
        format: `"orbax"` or `"safetensors"`.
        overwrite: Whether to replace a checkpoint that is there.
        dry_run: Whether to check everything and write nothing.
        progress: Is called with the bytes that are done and those that there are.

    Raises:
        MergeError: The checkpoint does not fit; see `merge_params`.
        CheckpointError: The files cannot be read or written, or task conditionings contradict
            each other. Whatever the error, everything is as before.
        ValueError: A malformed pattern, `task_rows` or `new_rows`.

    >>> import pathlib, tempfile
    >>> from taskcond.checkpoint import save_params
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> base = {"dense": {"kernel": np.ones((2, 2), np.float32)}}
    >>> save_params(base, folder / "base")
    >>> model = {**base, "task_embeddings": {"embedding": np.zeros((5, 2), np.float32)}}
    >>> print(merge_checkpoint(folder / "base", model, folder / "new", keep="task_embeddings/.*"))
    loaded  1 leaves
    kept    task_embeddings/embedding  as it is in the model
    """
    checkpoint = open_checkpoint(source)
    job = _Job(checkpoint, out, format, overwrite, dry_run, progress)
    flat = flatten(target)
    wanted = {path: flat[name] for path, name in unwrap(flat).items()}
    if task_rows is None and vocabulary is not None:
        task_rows = _rows_by_name(checkpoint.conditioning, vocabulary)
    plan, report = plan_merge(
        wanted,
        checkpoint.leaves,
        keep=keep,
        drop=drop,
        rename=rename,
        task_rows=task_rows,
        new_rows=new_rows,
    )
    conditioning = _merged(checkpoint, wanted, plan, vocabulary, scale, fusion)
    values = _kept(wanted, plan, new_rows)
    for path, leaf in plan.items():
        if leaf.source is not None and leaf.rows is not None:
            table = read_leaf(checkpoint, leaf.source)
            values[path] = take_rows(table, leaf.rows, new_rows, wanted[path])
    job.write(wanted, plan, values, conditioning, report)
    return report


def change_tasks(
    source: StrPath,
    out: StrPath,
    vocabulary: TaskVocabulary | None = None,
    *,
    rows: Rows | None = None,
    new_rows: Start = "zeros",
    starts: Mapping[str, Start] | None = None,
    source_vocabulary: TaskVocabulary | None = None,
    format: str = "orbax",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Writes a checkpoint with more, fewer or reordered tasks; all other leaves stay as they are.

    Args:
        source: See `Checkpoint`.
        out: A local directory, which appears when it is complete.
        vocabulary: The tasks of the new table. Rows are taken over by name.
        rows: Instead of names, or where the source has none: for each new row the old one, or
            `NULL_TASK`.
        new_rows: What a new task starts from: `"zeros"` (as no task at all), `"mean"` of the old
            rows, or an old task, by name or number.
        starts: `{new task: what it starts from}`, where that is not `new_rows`.
        source_vocabulary: The source's tasks, where its files do not say.
        format: `"orbax"` or `"safetensors"`.
        overwrite: Whether to replace a checkpoint that is there.
        dry_run: Whether to check everything and write nothing.
        progress: Is called with the bytes that are done and those that there are.

    Raises:
        CheckpointError: No task table; no names to go by; vocabularies contradict each other; the
            files cannot be read or written. Whatever the error, everything is as before.
        ValueError: Malformed `rows`, `new_rows` or `starts`.
    """
    checkpoint = open_checkpoint(source)
    job = _Job(checkpoint, out, format, overwrite, dry_run, progress)
    path = checkpoint.table
    if path is None:
        raise CheckpointError(f"{checkpoint.path} has no task table; merge adds one")
    leaf = checkpoint.leaves[path]
    old = _named(checkpoint.conditioning or _unknown(leaf), source_vocabulary)
    if rows is None:
        if vocabulary is None or old.vocabulary is None:
            raise CheckpointError(
                "no names to go by: pass rows, or vocabulary and (unless the checkpoint has a "
                "task_conditioning.json with names) source_vocabulary"
            )
        rows = vocabulary.rows_from(old.vocabulary)
    rows = [int(row) for row in rows]
    begin = _starts(old, rows, vocabulary, new_rows, starts or {})
    wanted: dict[str, Any] = dict(checkpoint.leaves)
    wanted[path] = jax.ShapeDtypeStruct((len(rows), *leaf.shape[1:]), leaf.dtype)
    plan, report = plan_merge(wanted, checkpoint.leaves, task_rows=rows, new_rows="zeros")
    table = read_leaf(checkpoint, path)
    value = take_rows(table, rows, "zeros", None)
    for row, start in begin.items():
        value[row] = take_rows(table, [NULL_TASK], start, None)[0]
    report.resized[path] = report.resized[path].replace("zeros", _describe(old, begin))
    job.write(wanted, plan, {path: value}, old.with_rows(rows, vocabulary), report)
    return report


@dataclasses.dataclass
class _Job:
    """From where to where, and how."""

    checkpoint: Checkpoint
    out: StrPath
    format: str
    overwrite: bool
    dry_run: bool
    progress: Progress | None

    def __post_init__(self):
        self.sources = [self.checkpoint.path, str(self.checkpoint.root)]
        check_output(self.out, self.format, self.overwrite, self.sources)

    def write(
        self,
        wanted: Mapping[str, Any],
        plan: Mapping[str, LeafPlan],
        values: Mapping[str, Any],
        conditioning: TaskConditioning | None,
        report: MergeReport,
    ) -> None:
        """Writes what was planned; `values` has the leaves that do not come as they are."""
        leaves = {
            path: self._leaf(values.get(path, part.source)).chunked(wanted[path].dtype)
            for path, part in plan.items()
        }

        def cut(path: str) -> Iterator[tuple[Box, np.ndarray]]:
            source, leaf = plan[path].source, leaves[path]
            for box in leaf.chunks():
                if path in values:
                    value = np.asarray(values[path])[(*box, ...)]
                else:
                    assert source is not None
                    value = self.checkpoint.read(source, box)
                bad = count_nonfinite(value)
                if bad and source is not None:
                    report.nonfinite[path] = report.nonfinite.get(path, 0) + bad
                yield box, value.astype(leaf.dtype, copy=False)

        write_checkpoint(
            self.out,
            leaves,
            cut,
            format=self.format,
            overwrite=self.overwrite,
            sources=self.sources,
            conditioning=conditioning,
            dry_run=self.dry_run,
            progress=self.progress,
        )
        warn_nonfinite(report)

    def _leaf(self, value: Any) -> Leaf:
        """Of a value in memory, or of a path in the checkpoint."""
        return self.checkpoint.leaves[value] if isinstance(value, str) else leaf_of(value)


def _unknown(table: Leaf) -> TaskConditioning:
    """That of a table whose checkpoint does not say what it means."""
    num_tasks, features = table.shape
    return TaskConditioning(num_tasks, features)


def _rows_by_name(old: TaskConditioning | None, vocabulary: TaskVocabulary) -> list[int] | None:
    if old is None or old.vocabulary is None:
        return None
    return None if old.vocabulary == vocabulary else vocabulary.rows_from(old.vocabulary)


def _named(conditioning: TaskConditioning, vocabulary: TaskVocabulary | None) -> TaskConditioning:
    if vocabulary is None:
        return conditioning
    conditioning.require(vocabulary=vocabulary)
    return dataclasses.replace(conditioning, vocabulary=vocabulary)


def _merged(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Any],
    plan: Mapping[str, LeafPlan],
    vocabulary: TaskVocabulary | None,
    scale: float | None,
    fusion: str | None,
) -> TaskConditioning | None:
    """What the merged task table means."""
    table = find_table(wanted, "the model")
    given = {name: x for name, x in (("scale", scale), ("fusion", fusion)) if x is not None}
    if table is None:
        if given or vocabulary is not None:
            named = [*given, *(["vocabulary"] if vocabulary is not None else [])]
            raise CheckpointError(f"{', '.join(named)} given, but the model has no task table")
        return None
    if fusion is not None and fusion not in FUSIONS:
        raise CheckpointError(f"fusion must be one of {list(FUSIONS)}, got {fusion!r}")
    part, (height, width) = plan[table], wanted[table].shape
    if part.source is None:
        new = (0,) * height
        result = TaskConditioning(height, width, vocabulary=vocabulary, frames_seen=new)
    else:
        old = checkpoint.conditioning or _unknown(checkpoint.leaves[part.source])
        old.require(scale=scale, fusion=fusion)
        if part.rows is not None:
            result = old.with_rows(part.rows, vocabulary)
        else:
            result = _named(old, vocabulary)
    return dataclasses.replace(result, **given)


def _kept(
    wanted: Mapping[str, Any], plan: Mapping[str, LeafPlan], new_rows: Start
) -> dict[str, Any]:
    """The values of the leaves that are the model's own."""
    kept = {path: wanted[path] for path, leaf in plan.items() if leaf.source is None}
    table = find_table(kept)
    if table is not None and new_rows == "zeros":
        kept[table] = np.zeros(kept[table].shape, kept[table].dtype)
    shapes = [path for path, x in kept.items() if isinstance(x, jax.ShapeDtypeStruct)]
    if shapes:
        raise CheckpointError(
            f"the model's own values are needed for {shapes}: pass arrays instead of shapes"
            + (" (or new_rows='zeros' for the task table)" if table in shapes else "")
        )
    return kept


def _starts(
    old: TaskConditioning,
    rows: Rows,
    vocabulary: TaskVocabulary | None,
    new_rows: Start,
    starts: Mapping[str, Start],
) -> dict[int, Start]:
    """For each new row `"zeros"`, `"mean"`, or the number of an old row."""
    names = [str(i) for i in range(len(rows))] if vocabulary is None else list(vocabulary)
    fresh = {name: i for i, name in enumerate(names) if i < len(rows) and rows[i] == NULL_TASK}
    wrong = [name for name in starts if name not in fresh]
    if wrong:
        raise ValueError(f"starts is for new tasks, which {wrong} are not; those are {list(fresh)}")

    def resolve(start: Start) -> Start:
        known = list(old.vocabulary or ())
        if start in known:  # a name goes before a number, and before what else the word could mean
            return known.index(start)
        if start in ("zeros", "mean"):
            return start
        row = int(start) if isinstance(start, str) and start.isdecimal() else start
        if isinstance(row, str) or not 0 <= row < old.num_tasks:
            raise ValueError(
                f"a new task starts from 'zeros', 'mean', or an old task; {start!r} is none of "
                f"{known or f'the {old.num_tasks} old ones'}"
            )
        return row

    return {i: resolve(starts.get(name, new_rows)) for name, i in fresh.items()}


def _describe(old: TaskConditioning, begin: Mapping[int, Start]) -> str:
    kinds = dict.fromkeys(s if isinstance(s, str) else f"as {old.name(s)}" for s in begin.values())
    return ", ".join(kinds)
