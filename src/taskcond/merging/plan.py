"""`plan_merge`: which leaf of a merged tree comes from where.

A merge is planned on shapes and dtypes alone, and then carried out leaf by leaf. So files are
merged by the same rules as trees in memory, without ever holding a whole tree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from taskcond.merging.patterns import PathFilter, Patterns, Renaming, as_tuple
from taskcond.merging.prefix import find_rename
from taskcond.merging.report import TASK_ROWS, MergeError, MergeProblems, MergeReport
from taskcond.merging.tables import TASK_TABLES, NewRows, Rows, check_rows, describe_rows


@dataclasses.dataclass(frozen=True)
class MergeRules:
    """The rules of a merge; the arguments of `merge_params` explain them.

    Attributes:
        keep: Patterns of target leaves that may be absent from the source.
        drop: Patterns of source leaves that may be left out.
        rename: `{pattern of a source path: new path}`.
        task_rows: For each new row of a task table the old one, or `NULL_TASK`.
        new_rows: What new rows start from.
        task_tables: Patterns of the task tables.
        old_tasks: Names of the old rows, for the report.
    """

    keep: Patterns = ()
    drop: Patterns = ()
    rename: Mapping[str, str] | None = None
    task_rows: Rows | None = None
    new_rows: NewRows = "target"
    task_tables: Patterns = TASK_TABLES
    old_tasks: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """The origin of one leaf of the result.

    Attributes:
        source: Its path in the checkpoint; `None` if the model's own value stays.
        rows: For a remapped task table the old row of each row, `NULL_TASK` for a new one.
    """

    source: str | None
    rows: tuple[int, ...] | None = None


def plan_merge(
    target: Mapping[str, Any], source: Mapping[str, Any], rules: MergeRules
) -> tuple[dict[str, LeafPlan], MergeReport]:
    """Plans `merge_params` on flat trees of anything that has a shape and a dtype.

    Returns:
        A plan for each target path, and the report, in which only `nonfinite` is still empty.

    Raises:
        MergeError: Leaves are missing, unexpected, mis-shaped or of another kind of number.
        TypeError: A leaf is not an array; the message names all such leaves.
        ValueError: A pattern, `task_rows` or `new_rows` is malformed.
    """
    _check_arrays({"model": target, "checkpoint": source})
    keep, drop = PathFilter(rules.keep), PathFilter(rules.drop)
    renaming = Renaming(rules.rename or {})
    old_path = renaming.apply(source)
    plan, report, problems = _plan_leaves(target, source, old_path, rules)
    report.renamed = {old: new for new, old in old_path.items() if old != new}
    report.unused = [
        *(f"keep={pattern!r}" for pattern in keep.unused(target)),
        *(f"drop={pattern!r}" for pattern in drop.unused(source)),
        *(f"rename={pattern!r}" for pattern in renaming.unused(source)),
    ]
    if problems.idle_tables:
        report.unused.append(TASK_ROWS)
    if problems:
        raise MergeError(_with_rename(problems, target, source, rules))
    used = {leaf.source for leaf in plan.values()}
    report.dropped = [path for path in source if path not in used]
    return plan, report


def _plan_leaves(
    target: Mapping[str, Any],
    source: Mapping[str, Any],
    old_path: Mapping[str, str],
    rules: MergeRules,
) -> tuple[dict[str, LeafPlan], MergeReport, MergeProblems]:
    keep, drop = PathFilter(rules.keep), PathFilter(rules.drop)
    tables = PathFilter(rules.task_tables)
    plan: dict[str, LeafPlan] = {}
    report = MergeReport()
    missing, mismatched = {}, {}
    for path, new in target.items():
        if path not in old_path:
            if path in keep:
                plan[path] = LeafPlan(None)
            else:
                missing[path] = spec(new)
            continue
        old = source[old_path[path]]
        if path in tables and rules.task_rows is not None:
            rows = _check_rows(rules, path, old, new)
            plan[path] = LeafPlan(old_path[path], rows)
            report.resized[path] = describe_rows(
                rows, old.shape[0], rules.new_rows, rules.old_tasks
            )
        elif new.shape == old.shape:
            plan[path] = LeafPlan(old_path[path])
        elif path in keep and old_path[path] in drop:
            # The model's leaf is kept and the checkpoint's of the same name is dropped.
            plan[path] = LeafPlan(None)
        else:
            mismatched[path] = spec(old), spec(new)
    uncastable = {}
    for path, leaf in plan.items():
        if leaf.source is None:
            report.kept.append(path)
            continue
        report.loaded.append(path)
        old, new = source[leaf.source], target[path]
        if not _can_cast(old.dtype, new.dtype):
            uncastable[path] = spec(old), spec(new)
        elif old.dtype != new.dtype:
            report.cast[path] = str(old.dtype), str(new.dtype)
    unexpected = {
        new: spec(source[old])
        for new, old in old_path.items()
        if new not in target and old not in drop
    }
    resizable = tuple(sorted(path for path in mismatched if path in tables))
    is_idle = rules.task_rows is not None and not any(p in tables for p in target if p in old_path)
    problems = MergeProblems(
        missing,
        unexpected,
        mismatched,
        uncastable,
        resizable,
        sources={new: old for new, old in old_path.items() if new != old},
        idle_tables=as_tuple(rules.task_tables) if is_idle else (),
    )
    return plan, report, problems


def _with_rename(
    problems: MergeProblems, target: Mapping[str, Any], source: Mapping[str, Any], rules: MergeRules
) -> MergeProblems:
    """Adds the rename that solves most problems, if only the beginning of paths differs."""
    unexpected = [problems.sources.get(path, path) for path in problems.unexpected]
    found = find_rename(unexpected, problems.missing)
    if found is None:
        return problems
    rename = {**(rules.rename or {}), found[0]: found[1]}
    try:
        old_path = Renaming(rename).apply(source)
        _, _, left = _plan_leaves(target, source, old_path, rules)
    except ValueError:  # two paths would become one, or the rows do not fit
        return problems
    if left.count >= problems.count:
        return problems
    return dataclasses.replace(problems, rename=rename, left=left)


def _check_arrays(trees: Mapping[str, Mapping[str, Any]]) -> None:
    wrong = {
        name: {
            path: type(leaf).__name__
            for path, leaf in tree.items()
            if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
        }
        for name, tree in trees.items()
    }
    if wrong := {name: leaves for name, leaves in wrong.items() if leaves}:
        raise TypeError(
            f"these leaves are not arrays: {wrong}; make numbers arrays with np.asarray, and lists "
            "and tuples dicts with the keys 0, 1, ..., or leave them out"
        )


def spec(leaf: Any) -> str:
    """Returns shape and dtype of a leaf in words."""
    return f"{list(leaf.shape)} {leaf.dtype}"


def _check_rows(rules: MergeRules, path: str, old: Any, new: Any) -> tuple[int, ...]:
    assert rules.task_rows is not None
    try:
        return check_rows(rules.task_rows, rules.new_rows, old, new)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _can_cast(old: Any, new: Any) -> bool:
    if jnp.issubdtype(old, jnp.floating):
        return bool(jnp.issubdtype(new, jnp.floating))
    return old == new or bool(np.can_cast(old, new, "safe") and jnp.issubdtype(new, jnp.integer))
