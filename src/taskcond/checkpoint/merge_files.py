"""`merge_checkpoint`: does `merge_params` from file to file, in bounded memory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from taskcond.checkpoint.conditioning import TaskConditioning, find_table
from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.output import output_at
from taskcond.checkpoint.rewrite import rewrite
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Progress, StrPath, read_leaf
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.merging.patterns import Patterns, Renaming
from taskcond.merging.plan import LeafPlan, MergeRules, plan_merge
from taskcond.merging.report import MergeReport
from taskcond.merging.tables import TASK_TABLES, Rows, Start, is_table, take_rows
from taskcond.nn.fusion import FUSIONS
from taskcond.trees import Tree, flatten


def merge_checkpoint(
    source: StrPath,
    target: Tree,
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
    table: str | None = None,
    format: str = "orbax",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> MergeReport:
    """Writes a new model's checkpoint from another checkpoint.

    This is `merge_params` from file to file.

    Args:
        source: See `Checkpoint`.
        target: The new model's parameters: nested dicts, or an `nnx.State`, of arrays or
            `jax.ShapeDtypeStruct`. Leaves that are kept must be arrays. A task table may also
            start from `new_rows="zeros"`.
        out: A local directory, which appears when it is complete. For openpi it must end in
            `params`.
        keep: Target leaves that may be absent from the source; see `merge_params`.
        drop: Source leaves that may be left out.
        rename: `{pattern of a source path: new path}`.
        task_rows: For each row of the new task table the row of the old one, or `NULL_TASK`.
        new_rows: What a new row starts from: `"target"`, `"zeros"`, `"mean"`, or an old row.
        vocabulary: The names of the new model's tasks. If the source has names too, rows are
            remapped by name.
        scale: The new model's factor on task rows. If the source has a table, the two must agree.
        fusion: The new model's fusion, likewise.
        table: The path of the new model's task table, if neither its name nor the source's
            `task_conditioning.json` says it.
        format: `"orbax"` or `"safetensors"`.
        overwrite: Whether to replace an existing checkpoint.
        dry_run: Whether to check everything and write nothing.
        progress: A function that is called with the number of bytes done and their total.

    Raises:
        MergeError: The checkpoint does not fit the model; see `merge_params`.
        CheckpointError: Files cannot be read or written, or task conditionings contradict each
            other. After any error everything is as before.
        ValueError: A pattern, `task_rows` or `new_rows` is malformed.

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
    output = output_at(
        out,
        (checkpoint,),
        format=format,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    flat = flatten(target)
    wanted = {path: flat[name] for path, name in checkpoint.paths_in(flat).items()}
    if task_rows is None and vocabulary is not None:
        task_rows = _rows_by_name(checkpoint.conditioning, vocabulary)
    is_used = any(x is not None for x in (task_rows, vocabulary, scale, fusion))
    table = _find_table(checkpoint, wanted, table, rename or {}, is_used)
    more = _more_tables(checkpoint.conditioning, wanted, rename or {})
    tables = TASK_TABLES if table is None else (*map(re.escape, (table, *more)),)
    rules = MergeRules(keep, drop, rename, task_rows, new_rows, tables)
    plan, report = plan_merge(wanted, checkpoint.leaves, rules)
    report.dropped += [
        f"{name} ({len(paths)} leaves beside the parameters)"
        for name, paths in checkpoint.beside.items()
    ]
    conditioning = _merge_conditioning(checkpoint, wanted, plan, table, vocabulary, scale, fusion)
    if conditioning is not None and more:
        conditioning = dataclasses.replace(conditioning, more_tables=more)
    values = _kept_values(wanted, plan, table, new_rows)
    for path, leaf in plan.items():
        if leaf.source is not None and leaf.rows is not None:
            old_table = read_leaf(checkpoint, leaf.source)
            values[path] = take_rows(old_table, leaf.rows, new_rows, wanted[path])
    rewrite(checkpoint, output, plan, wanted, values, conditioning, report, table)
    return report


def _find_table(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Any],
    table: str | None,
    rename: Mapping[str, str],
    is_used: bool,
) -> str | None:
    """Returns the path of the new model's task table, if there is one.

    A model may have several tables, as long as nobody asks for one of them.
    """
    about = checkpoint.conditioning
    if table is None and about is not None and checkpoint.table is not None:
        renamed = next(iter(Renaming(rename).apply([checkpoint.table])))
        table = renamed if renamed in wanted else None
    several = sum(is_table(path) for path in wanted) > 1
    if table is None and several and about is None and not is_used:
        return None
    return find_table(wanted, "the model", table)


def _more_tables(
    about: TaskConditioning | None, wanted: Mapping[str, Any], rename: Mapping[str, str]
) -> tuple[str, ...]:
    """Returns where the checkpoint's other leaves with one row per task are in the new model."""
    old = () if about is None else about.more_tables
    return tuple(path for path in Renaming(rename).apply(old) if path in wanted)


def _rows_by_name(old: TaskConditioning | None, vocabulary: TaskVocabulary) -> list[int] | None:
    if old is None or old.vocabulary is None:
        return None
    return None if old.vocabulary == vocabulary else vocabulary.rows_from(old.vocabulary)


def _merge_conditioning(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Any],
    plan: Mapping[str, LeafPlan],
    table: str | None,
    vocabulary: TaskVocabulary | None,
    scale: float | None,
    fusion: str | None,
) -> TaskConditioning | None:
    """Returns the meaning of the merged task table."""
    given: dict[str, Any] = {"scale": scale, "fusion": fusion, "vocabulary": vocabulary}
    given = {name: value for name, value in given.items() if value is not None}
    if table is None:
        if given:
            raise CheckpointError(
                f"{', '.join(given)} given, but the model has no task table; leave them out, add a "
                "task table to the model, or say which leaf it is with table=... (--table PATH)"
            )
        return None
    if fusion is not None and fusion not in FUSIONS:
        raise CheckpointError(f"fusion must be one of {list(FUSIONS)}, got {fusion!r}")
    part, height, width = plan[table], wanted[table].shape[0], wanted[table].shape[-1]
    if part.source is None:
        new = (0,) * height
        return TaskConditioning(height, width, scale, fusion, vocabulary, new).at(table, wanted)
    old = checkpoint.conditioning or TaskConditioning.unknown(checkpoint.leaves[part.source])
    old.require(scale=scale, fusion=fusion)
    result = old.named(vocabulary) if part.rows is None else old.with_rows(part.rows, vocabulary)
    given.pop("vocabulary", None)
    return dataclasses.replace(result, **given).at(table, wanted)


def _kept_values(
    wanted: Mapping[str, Any], plan: Mapping[str, LeafPlan], table: str | None, new_rows: Start
) -> dict[str, Any]:
    """Returns the values of the leaves that are the model's own."""
    kept = {path: wanted[path] for path, leaf in plan.items() if leaf.source is None}
    if table in kept and new_rows == "zeros":
        kept[table] = np.zeros(kept[table].shape, kept[table].dtype)
    shapes = [path for path, x in kept.items() if isinstance(x, jax.ShapeDtypeStruct)]
    if shapes:
        raise CheckpointError(
            f"the model's own values are needed for {shapes}: pass arrays instead of shapes"
            + (" (or new_rows='zeros' for the task table)" if table in shapes else "")
        )
    return kept
