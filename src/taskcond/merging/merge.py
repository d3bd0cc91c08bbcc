"""`merge_params`: a checkpoint's values into a new model's parameters; nothing in silence.

A merge is planned on shapes and dtypes alone and then carried out leaf by leaf, so that files can
be merged by the same rules without ever holding a whole tree.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped

from taskcond.ids import NULL_TASK
from taskcond.nn.conditioner import TaskParam
from taskcond.trees import flatten, rebuild, to_dict, unwrap

TASK_TABLES = (r"(.*/)?task_embeddings/embedding",)
"""Paths of the leaves that have one row per task, as `merge_params` assumes them."""

Patterns = str | Sequence[str]
Rows = Sequence[int] | np.ndarray


class MergeError(ValueError):
    """A checkpoint does not fit a model.

    The message lists every problem and ends with the arguments that would accept them.

    Attributes:
        missing: Paths that the model has and the checkpoint lacks.
        unexpected: Paths that the checkpoint has and the model lacks.
        mismatched: Paths whose shapes differ.
        uncastable: Paths whose dtypes differ in kind.
    """

    def __init__(
        self,
        message: str,
        missing: Sequence[str],
        unexpected: Sequence[str],
        mismatched: Sequence[str],
        uncastable: Sequence[str],
    ):
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.mismatched = tuple(mismatched)
        self.uncastable = tuple(uncastable)


@dataclasses.dataclass
class MergeReport:
    """What a merge did with every leaf; prints as a table.

    Attributes:
        loaded: Paths with the checkpoint's values.
        kept: Paths that stay as they are in the model.
        dropped: The checkpoint's paths that were left out.
        renamed: `{path in the checkpoint: path in the model}`, where they differ by `rename`.
        cast: `{path: (dtype in the checkpoint, dtype in the model)}`.
        resized: `{path: what became of the rows}` of remapped task tables.
        nonfinite: `{path: number of NaN and Inf}` among the loaded values.
        unused: Arguments that had no effect: patterns that match nothing.
    """

    loaded: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)
    dropped: list[str] = dataclasses.field(default_factory=list)
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    cast: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    resized: dict[str, str] = dataclasses.field(default_factory=dict)
    nonfinite: dict[str, int] = dataclasses.field(default_factory=dict)
    unused: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            ("loaded", f"{len(self.loaded)} leaves", ""),
            *(("kept", path, "as it is in the model") for path in self.kept),
            *(("dropped", path, "left out") for path in self.dropped),
            *(("renamed", old, f"-> {new}") for old, new in self.renamed.items()),
            *(("cast", path, f"{old} -> {new}") for path, (old, new) in self.cast.items()),
            *(("resized", path, what) for path, what in self.resized.items()),
            *(("NaN/Inf", path, f"{n} values") for path, n in self.nonfinite.items()),
            *(("unused", what, "matches nothing") for what in self.unused),
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows)


@dataclasses.dataclass(frozen=True)
class LeafPlan:
    """How one leaf of the result comes about.

    Attributes:
        source: Its path in the checkpoint; `None` where the model's own value stays.
        rows: For a remapped task table: the source row of each row, `NULL_TASK` for a new one.
    """

    source: str | None
    rows: tuple[int, ...] | None = None


def merge_params(
    target: Mapping[Any, Any],
    source: Mapping[Any, Any],
    *,
    keep: Patterns = (),
    drop: Patterns = (),
    rename: Mapping[str, str] | None = None,
    task_rows: Rows | None = None,
    new_rows: str | int = "target",
    task_tables: Patterns = TASK_TABLES,
) -> tuple[dict[Any, Any], MergeReport]:
    r"""Returns `target`'s structure and dtypes with `source`'s values, and a report.

    Patterns are regular expressions on `/`-joined paths and must match the whole path. Everything
    that they do not cover has to match in path and shape.

    Args:
        target: The new model's parameters: nested dicts of arrays or of
            `jax.ShapeDtypeStruct`.
            Where a leaf names a sharding, its new value is put there.
        source: The checkpoint's: nested dicts, also below `params` or with each leaf under
            `value`, or a flat `{path: array}`.
        keep: Target leaves that may be absent from the source: they stay as they are.
        drop: Source leaves that may be left out where the target has no place for them.
        rename: `{pattern of a source path: new path}`; `\1` is the first group. The first pattern
            that matches a path renames it.
        task_rows: For each row of the new task table the row of the old one, or `NULL_TASK` for a
            new row; `new_vocabulary.rows_from(old_vocabulary)` gives it by name.
        new_rows: What a new row starts from: `"target"` (its initialization), `"zeros"`, `"mean"`
            (of all old rows), or the number of an old row.
        task_tables: Which leaves have a row per task.

    Raises:
        MergeError: Missing, unexpected, mis-shaped leaves, or a cast that changes the kind of
            number; one error for all of them.
        ValueError: A malformed pattern, `task_rows` or `new_rows`.

    >>> import numpy as np
    >>> base = {"dense": {"kernel": np.ones((2, 2), np.float32)}}
    >>> model = {**base, "task_embeddings": {"embedding": np.zeros((5, 2), np.float32)}}
    >>> params, report = merge_params(model, base, keep="task_embeddings/.*")
    >>> print(report)
    loaded  1 leaves
    kept    task_embeddings/embedding  as it is in the model
    """
    flat_target, flat_source = flatten(target), flatten(source)
    target_paths, source_paths = unwrap(flat_target), unwrap(flat_source)
    plan, report = plan_merge(
        {path: flat_target[full] for path, full in target_paths.items()},
        {path: flat_source[full] for path, full in source_paths.items()},
        keep=keep,
        drop=drop,
        rename=rename,
        task_rows=task_rows,
        new_rows=new_rows,
        task_tables=task_tables,
    )
    merged = {}
    for path, leaf in plan.items():
        old = flat_target[target_paths[path]]
        if leaf.source is None:
            merged[target_paths[path]] = old
            continue
        value = flat_source[source_paths[leaf.source]]
        bad = count_nonfinite(value)
        if bad:
            report.nonfinite[path] = bad
        if leaf.rows is not None:
            value = take_rows(value, leaf.rows, new_rows, old)
        merged[target_paths[path]] = _place(value, old)
    warn_nonfinite(report)
    return rebuild(target, merged), report


def merge_into(
    model: nnx.Module,
    source: Mapping[Any, Any],
    *,
    keep: Patterns = (),
    drop: Patterns = (),
    rename: Mapping[str, str] | None = None,
    task_rows: Rows | None = None,
    new_rows: str | int = "target",
) -> MergeReport:
    """Loads a checkpoint's values into a module's parameters, in place; `merge_params` for NNX.

    Each `TaskParam` is kept by itself where the checkpoint lacks it, and they are the tables that
    `task_rows` remaps. The other arguments and the errors are those of `merge_params`; after an
    error the module is as it was.

    >>> from flax import nnx
    >>> import taskcond
    >>> released = nnx.state(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Param)
    >>> class Policy(nnx.Linear):
    ...     def __init__(self, rngs):
    ...         super().__init__(4, 4, rngs=rngs)
    ...         self.task_embeddings = taskcond.TaskConditioner(3, 4, rngs=rngs)
    >>> print(merge_into(Policy(nnx.Rngs(1)), released))
    loaded  2 leaves
    kept    task_embeddings/embedding  as it is in the model
    """
    state = nnx.state(model, nnx.Param)
    tables = [re.escape(path) for path in flatten(nnx.state(model, TaskParam))]
    params, report = merge_params(
        to_dict(state),
        source,
        keep=(*_as_tuple(keep), *tables),
        drop=drop,
        rename=rename,
        task_rows=task_rows,
        new_rows=new_rows,
        task_tables=tables,
    )
    params = jax.tree.map(jnp.asarray, params)
    replace = getattr(nnx, "replace_by_pure_dict", None)  # a method in older releases of flax
    if replace:
        replace(state, params)
    else:
        state.replace_by_pure_dict(params)
    nnx.update(model, state)
    return report


def plan_merge(
    target: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    keep: Patterns = (),
    drop: Patterns = (),
    rename: Mapping[str, str] | None = None,
    task_rows: Rows | None = None,
    new_rows: str | int = "target",
    task_tables: Patterns = TASK_TABLES,
) -> tuple[dict[str, LeafPlan], MergeReport]:
    """Plans `merge_params` on flat trees of anything that has a shape and a dtype.

    Returns:
        A plan for each target path, and the report but for `nonfinite`.
    """
    keep_re, drop_re, table_re = (_compile(p) for p in (keep, drop, task_tables))
    new_name = _rename(source, rename or {})
    old_name = {new: old for old, new in new_name.items()}
    tables = [path for path in target if path in old_name and _matches(table_re, path)]
    plan: dict[str, LeafPlan] = {}
    problems = _Problems(target, {new: source[old] for new, old in old_name.items()})
    report = MergeReport(
        renamed={old: new for old, new in new_name.items() if old != new},
        unused=_unused(keep=(keep_re, target), drop=(drop_re, source), rename=(rename, source)),
    )
    if task_rows is not None and not tables:
        report.unused.append("task_rows")
    for path in [*target, *(new for new in old_name if new not in target)]:
        may_keep, may_drop = _matches(keep_re, path), _matches(drop_re, old_name.get(path, path))
        if path not in old_name:
            if may_keep:
                plan[path] = LeafPlan(None)
            else:
                problems.missing.append(path)
        elif path not in target:
            if not may_drop:
                problems.unexpected.append(path)
        elif path in tables and task_rows is not None:
            rows = _check_rows(task_rows, new_rows, target[path], problems.source[path], path)
            plan[path] = LeafPlan(old_name[path], rows)
            report.resized[path] = _describe_rows(rows, problems.source[path].shape[0], new_rows)
        elif target[path].shape == problems.source[path].shape:
            plan[path] = LeafPlan(old_name[path])
        elif may_keep and may_drop:
            plan[path] = LeafPlan(None)
        else:
            problems.mismatched.append(path)
            problems.tables |= {path} & set(tables)
    for path, leaf in plan.items():
        if leaf.source is None:
            report.kept.append(path)
            continue
        report.loaded.append(path)
        old, new = source[leaf.source].dtype, target[path].dtype
        if not _can_cast(old, new):
            problems.uncastable.append(path)
        elif old != new:
            report.cast[path] = (str(old), str(new))
    problems.raise_if_any()
    used = {leaf.source for leaf in plan.values()}
    report.dropped = [path for path in source if path not in used]
    return plan, report


def take_rows(
    table: Any, rows: Rows, new_rows: str | int, target: Any
) -> Shaped[np.ndarray, "tasks d"]:
    """The table whose row `i` is `table[rows[i]]`, or a new one where that is `NULL_TASK`.

    >>> take_rows(np.array([[1.0], [3.0]]), [1, -1], "mean", None).tolist()
    [[3.0], [2.0]]
    """
    table = np.asarray(table)
    index = np.asarray(rows, np.int64)
    result = table[np.where(index == NULL_TASK, 0, index)]
    fresh = index == NULL_TASK
    if not fresh.any():
        return result
    if new_rows == "zeros":
        result[fresh] = 0
    elif new_rows == "mean":
        result[fresh] = table.astype(np.float64).mean(0).astype(table.dtype)
    elif new_rows == "target":
        result = result.astype(target.dtype)  # so that the target's own values stay exact
        result[fresh] = np.asarray(target)[fresh]
    else:
        result[fresh] = table[int(new_rows)]
    return result


def count_nonfinite(value: Any) -> int:
    """How many entries are NaN or infinite; 0 for integers."""
    if not jnp.issubdtype(value.dtype, jnp.inexact):
        return 0
    if isinstance(value, jax.Array):
        return int(jnp.sum(~jnp.isfinite(value)))
    # Piece by piece: the mask of a leaf of 2 GB should not take another 0.5 GB.
    flat = np.asarray(value).reshape(-1)
    step = 1 << 22
    return sum(
        int(np.count_nonzero(~np.isfinite(flat[i : i + step]))) for i in range(0, flat.size, step)
    )


def warn_nonfinite(report: MergeReport) -> None:
    """Warns where the report lists NaN or Inf: a table is not always read."""
    if report.nonfinite:
        leaves = ", ".join(f"{path} ({count})" for path, count in report.nonfinite.items())
        warnings.warn(f"the checkpoint has NaN or Inf in {leaves}", stacklevel=3)


@dataclasses.dataclass
class _Problems:
    """All that is wrong with a merge, to be said at once."""

    target: Mapping[str, Any]
    source: Mapping[str, Any]  # by its new name
    missing: list[str] = dataclasses.field(default_factory=list)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[str] = dataclasses.field(default_factory=list)
    uncastable: list[str] = dataclasses.field(default_factory=list)
    tables: set[str] = dataclasses.field(default_factory=set)

    def raise_if_any(self) -> None:
        lists = (self.missing, self.unexpected, self.mismatched, self.uncastable)
        if not any(lists):
            return
        names = ("missing", "unexpected", "mis-shaped", "of another kind of number")
        counts = ", ".join(f"{len(x)} {n}" for x, n in zip(lists, names, strict=True) if x)
        message = [f"the checkpoint does not fit the model: {counts}"]
        for title, paths, trees in (
            ("missing from the checkpoint", self.missing, [self.target]),
            ("unexpected in the checkpoint", self.unexpected, [self.source]),
            ("mis-shaped (checkpoint, model)", self.mismatched, [self.source, self.target]),
            ("refused casts (checkpoint, model)", self.uncastable, [self.source, self.target]),
        ):
            if paths:
                message.append(f"{title}:")
                message += [f"  {p}  {', '.join(_spec(t[p]) for t in trees)}" for p in paths]
        raise MergeError("\n".join([*message, *self._advice()]), *lists)

    def _advice(self) -> list[str]:
        keep = [re.escape(path) for path in (*self.missing, *self.mismatched)]
        drop = [re.escape(path) for path in (*self.unexpected, *self.mismatched)]
        accept = [f"{name}={x}" for name, x in (("keep", keep), ("drop", drop)) if x]
        lines = [f"to accept this: {', '.join(accept)}"] if accept else []
        lines += [
            f"to remap the rows of {path}: task_rows=new_vocabulary.rows_from(old_vocabulary), "
            "or a list with the old row of each new one, -1 for a new task"
            for path in sorted(self.tables)
        ]
        if self.uncastable:
            lines.append("convert the checkpoint's dtypes yourself where that is what you mean")
        return lines


def _spec(leaf: Any) -> str:
    return f"{list(leaf.shape)} {leaf.dtype}"


def _as_tuple(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def _compile(patterns: Patterns) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in _as_tuple(patterns):
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return compiled


def _matches(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)


def _unused(**arguments: tuple[Any, Iterable[str]]) -> list[str]:
    return [
        f"{name}={pattern.pattern!r}"
        for name, (patterns, paths) in arguments.items()
        for pattern in (_compile(list(patterns or ())) if name == "rename" else patterns)
        if not any(pattern.fullmatch(path) for path in paths)
    ]


def _rename(source: Iterable[str], rename: Mapping[str, str]) -> dict[str, str]:
    """The new path of every source path; `ValueError` where two become one."""
    rules = list(zip(_compile(list(rename)), rename.values(), strict=True))
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for path in source:
        match = next(((m, new) for rule, new in rules if (m := rule.fullmatch(path))), None)
        names[path] = _expand(*match) if match else path
        if names[path] in taken:
            raise ValueError(
                f"rename gives {taken[names[path]]!r} and {path!r} the same path {names[path]!r}"
            )
        taken[names[path]] = path
    return names


def _expand(match: re.Match[str], new: str) -> str:
    try:
        return match.expand(new)
    except (re.error, IndexError) as error:
        raise ValueError(f"rename to {new!r} does not fit {match.re.pattern!r}: {error}") from error


def _can_cast(old: Any, new: Any) -> bool:
    if jnp.issubdtype(old, jnp.floating):
        return bool(jnp.issubdtype(new, jnp.floating))
    return old == new or bool(np.can_cast(old, new, "safe") and jnp.issubdtype(new, jnp.integer))


def _check_rows(
    task_rows: Rows, new_rows: str | int, target: Any, source: Any, path: str
) -> tuple[int, ...]:
    rows, height = tuple(int(row) for row in task_rows), source.shape[0]
    bad = sorted({row for row in rows if not NULL_TASK <= row < height})
    problem = None
    if target.shape[1:] != source.shape[1:]:
        problem = f"rows have the shape {source.shape[1:]}, those of the model {target.shape[1:]}"
    elif len(rows) != target.shape[0]:
        problem = f"task_rows has {len(rows)} entries; the model has num_tasks={target.shape[0]}"
    elif bad:
        problem = f"task_rows {bad} out of range: old rows are 0 to {height - 1}, -1 is a new one"
    elif isinstance(new_rows, str) and new_rows not in ("target", "zeros", "mean"):
        problem = f"new_rows must be 'target', 'zeros', 'mean' or an old row, got {new_rows!r}"
    elif not isinstance(new_rows, str) and not 0 <= new_rows < height:
        problem = f"new_rows={new_rows} out of range: old rows are 0 to {height - 1}"
    elif new_rows == "target" and NULL_TASK in rows and isinstance(target, jax.ShapeDtypeStruct):
        problem = "new_rows='target' needs the model's values, not shapes; use 'zeros' or 'mean'"
    if problem:
        raise ValueError(f"{path}: {problem}")
    return rows


def _describe_rows(rows: tuple[int, ...], height: int, new_rows: str | int) -> str:
    fresh = rows.count(NULL_TASK)
    unused = sorted(set(range(height)) - set(rows))
    text = f"{height} -> {len(rows)} rows, {len(rows) - fresh} from the checkpoint"
    if fresh:
        start = new_rows if isinstance(new_rows, str) else f"row {new_rows}"
        text += f", {fresh} new ({start})"
    return text + (f", old rows {unused} left out" if unused else "")


def _place(value: Any, target: Any) -> Shaped[Array, "..."] | Shaped[np.ndarray, "..."]:
    """Casts to the target's dtype, and puts it where the target says."""
    if value.dtype != target.dtype:
        value = value.astype(target.dtype)
    committed = isinstance(target, jax.ShapeDtypeStruct) or getattr(target, "committed", False)
    sharding = getattr(target, "sharding", None) if committed else None
    return value if sharding is None else jax.device_put(value, sharding)
