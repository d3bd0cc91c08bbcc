"""`change_tasks`: a checkpoint gets more, fewer or reordered tasks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.output import output_at
from taskcond.checkpoint.rewrite import rewrite
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaves, Progress, StrPath, read_leaf
from taskcond.checkpoint.training import find_mirrors, is_without_params
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK
from taskcond.merging.plan import MergeRules, plan_merge
from taskcond.merging.report import MergeReport
from taskcond.merging.tables import Rows, Start, describe_rows, take_rows
from taskcond.messages import warn


def change_tasks(
    source: StrPath,
    out: StrPath,
    vocabulary: TaskVocabulary | None = None,
    *,
    rows: Rows | None = None,
    new_rows: Start = "zeros",
    starts: Mapping[str, Start] | None = None,
    source_vocabulary: TaskVocabulary | None = None,
    table: str | None = None,
    format: str = "orbax",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Writes a checkpoint with more, fewer or reordered tasks; other leaves are not changed.

    The leaves that `task_conditioning.json` lists as `more_tables` change with the table. A
    training state is written whole, under the names that it has. The rows of moments and of
    averaged parameters change with those of the table. New rows of moments are zero.

    Args:
        source: See `Checkpoint`.
        out: A local directory, which appears when it is complete.
        vocabulary: The tasks of the new table. Rows are copied by name.
        rows: For each new row the old one, or `NULL_TASK`. This replaces names, or is needed if
            the source has none.
        new_rows: What a new task starts from: `"zeros"` (as if there were no task), `"mean"` of
            the old rows, or an old task, by name or number.
        starts: `{new task: what it starts from}`, for tasks that do not start from `new_rows`.
        source_vocabulary: The source's tasks, if its files do not say.
        table: The path of the task table; see `Checkpoint`.
        format: `"orbax"` or `"safetensors"`.
        overwrite: Whether to replace an existing checkpoint.
        dry_run: Whether to check everything and write nothing.
        progress: A function that is called with the number of bytes done and their total.

    Warns:
        UserWarning: New rows of `more_tables` start with zeros.

    Raises:
        CheckpointError: There is no task table, there are no names to go by, vocabularies
            contradict each other, or files cannot be read or written. After any error everything
            is as before.
        ValueError: `rows`, `new_rows` or `starts` is malformed.
    """
    checkpoint = open_checkpoint(source, table)
    output = output_at(
        out,
        (checkpoint,),
        format=format,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    path, old = _table(checkpoint, source_vocabulary)
    rows = _rows(rows, vocabulary, old)
    new = _new_rows(old, rows, vocabulary, new_rows, starts or {})
    names = [old.name(task) for task in range(old.num_tasks)]
    rules = MergeRules(task_rows=rows, new_rows=new, old_tasks=names)
    _warn_of_zeros(old, new)
    stored: Leaves = checkpoint
    place = path
    tables: dict[str, Mapping[int, Start]] = dict.fromkeys((path, *old.more_tables), new)
    if checkpoint.beside:
        stored, place = checkpoint.store, checkpoint.full[path]
        tables = _tables(checkpoint, [checkpoint.full[name] for name in tables], new)
        output = dataclasses.replace(output, like=checkpoint.store)
    wanted = _resized(stored, tables, len(rows))
    rules = dataclasses.replace(rules, task_tables=[re.escape(name) for name in tables])
    plan, report = plan_merge(wanted, stored.leaves, rules)
    values = {}
    for name, start in tables.items():
        values[name] = take_rows(read_leaf(stored, name), rows, start, None)
        report.resized[name] = describe_rows(rows, old.num_tasks, start, names)
    conditioning = old.with_rows(rows, vocabulary).at(path, checkpoint.leaves)
    rewrite(stored, output, plan, wanted, values, conditioning, report, place)
    return report


def _tables(
    checkpoint: Checkpoint, places: Iterable[str], new: Mapping[int, Start]
) -> dict[str, Mapping[int, Start]]:
    """Returns what new rows start from, for the tables of a training state and their mirrors."""
    zeros: dict[int, Start] = dict.fromkeys(new, "zeros")
    found: dict[str, Mapping[int, Start]] = {}
    for place in places:
        mirrors = find_mirrors(place, checkpoint.store.leaves)
        found[place] = new
        found |= {name: zeros if moment else new for name, moment in mirrors.items()}
    return found


def _warn_of_zeros(old: TaskConditioning, new: Mapping[int, Start]) -> None:
    if old.more_tables and "zeros" in new.values():
        warn(
            f"new rows of {[*old.more_tables]} start with zeros. Where two such leaves are "
            "multiplied, as the factors of TaskLoRA are, zeros are never learnt. Start from the "
            "mean or from an old task: new_rows='mean' (--new-rows mean)"
        )


def _resized(source: Leaves, tables: Iterable[str], height: int) -> dict[str, Any]:
    """Returns all leaves, and tables with their new height."""
    wanted: dict[str, Any] = dict(source.leaves)
    for name in tables:
        leaf = source.leaves[name]
        wanted[name] = jax.ShapeDtypeStruct((height, *leaf.shape[1:]), leaf.dtype)
    return wanted


def _table(
    checkpoint: Checkpoint, vocabulary: TaskVocabulary | None
) -> tuple[str, TaskConditioning]:
    """Returns the path and the meaning of the task table."""
    if is_without_params(checkpoint.everything):
        raise CheckpointError(
            f"{checkpoint.path} is a part of a training state, without parameters, so that its "
            "task table is not known; change the tasks of the parameters, which lie beside it, "
            "and start the optimizer afresh"
        )
    path = checkpoint.table
    if path is None:
        raise CheckpointError(
            f"{checkpoint.path} has no task table; if it has another name than task_embeddings/"
            "embedding, give it with table=... (--table PATH); if there is none, add one with "
            "merge_checkpoint or `python -m taskcond merge`"
        )
    conditioning = checkpoint.conditioning
    if conditioning is None:
        conditioning = TaskConditioning.unknown(checkpoint.leaves[path])
    return path, conditioning.named(vocabulary)


def _rows(rows: Rows | None, vocabulary: TaskVocabulary | None, old: TaskConditioning) -> list[int]:
    if rows is not None:
        if vocabulary is not None and len(vocabulary) != len(rows):
            raise CheckpointError(f"the vocabulary has {len(vocabulary)} tasks, rows {len(rows)}")
        return [int(row) for row in rows]
    if vocabulary is None or old.vocabulary is None:
        raise CheckpointError(
            "there are no names to go by: pass rows, or vocabulary and (unless the checkpoint has "
            "a task_conditioning.json with names) source_vocabulary"
        )
    return vocabulary.rows_from(old.vocabulary)


def _new_rows(
    old: TaskConditioning,
    rows: list[int],
    vocabulary: TaskVocabulary | None,
    new_rows: Start,
    starts: Mapping[str, Start],
) -> dict[int, Start]:
    """Returns for each new row `"zeros"`, `"mean"`, or the number of an old row."""
    names = [str(i) for i in range(len(rows))] if vocabulary is None else list(vocabulary)
    new = {name: i for i, name in enumerate(names) if i < len(rows) and rows[i] == NULL_TASK}
    if wrong := [name for name in starts if name not in new]:
        raise ValueError(f"starts has {wrong}, but may only name new tasks, which are {list(new)}")
    return {i: _resolve_start(starts.get(name, new_rows), old) for name, i in new.items()}


def _resolve_start(start: Start, old: TaskConditioning) -> Start:
    known = list(old.vocabulary or ())
    if start in known:  # a task of this name takes precedence over a number, "zeros" and "mean"
        return known.index(str(start))
    if start in ("zeros", "mean"):
        return start
    row = int(start) if isinstance(start, str) and start.isdecimal() else start
    if isinstance(row, str) or not 0 <= row < old.num_tasks:
        raise ValueError(
            f"a new task cannot start from {start!r}; it starts from 'zeros', 'mean', or an old "
            f"task: {known or f'a number from 0 to {old.num_tasks - 1}'}"
        )
    return row
