"""`merge_params` and `merge_into`: a checkpoint's values go into a new model's parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Shaped

from taskcond.merging.finite import cast_array, count_nonfinite, warn_nonfinite
from taskcond.merging.patterns import Patterns, as_tuple
from taskcond.merging.plan import MergeRules, plan_merge
from taskcond.merging.report import MergeReport
from taskcond.merging.tables import TASK_TABLES, Rows, Start, take_rows
from taskcond.params import SharedTaskParam, TaskParam
from taskcond.trees import (
    Tree,
    flatten,
    plain_paths,
    rebuild,
    replace_values,
    sharding_of,
    to_dict,
)


def merge_params(
    target: Tree,
    source: Tree,
    *,
    keep: Patterns = (),
    drop: Patterns = (),
    rename: Mapping[str, str] | None = None,
    task_rows: Rows | None = None,
    new_rows: Start = "target",
    task_tables: Patterns = TASK_TABLES,
) -> tuple[dict[Any, Any], MergeReport]:
    r"""Returns `target`'s structure and dtypes with `source`'s values, and a report.

    Patterns are regular expressions on `/`-joined paths, and must match a whole path. All leaves
    that no pattern covers must match in path and shape.

    Args:
        target: The new model's parameters: nested dicts of arrays or of `jax.ShapeDtypeStruct`.
            If a leaf names a sharding, its new value is put there.
        source: The checkpoint's parameters: nested dicts, also below `params` or with each leaf
            under `value`, or a flat `{path: array}`.
        keep: Target leaves that may be absent from the source; they then stay as they are.
        drop: Source leaves that may be left out if the target has no place for them.
        rename: `{pattern of a source path: new path}`; `\1` is the first group. The first pattern
            that matches a path renames it.
        task_rows: For each row of the new task table the row of the old one, or `NULL_TASK` for a
            new row. `new_vocabulary.rows_from(old_vocabulary)` gives it by name.
        new_rows: What a new row starts from: `"target"` (its initialization), `"zeros"`, `"mean"`
            (of all old rows), or the number of an old row.
        task_tables: The leaves that have one row per task.

    Raises:
        MergeError: Leaves are missing, unexpected or mis-shaped, or a cast would change the kind
            of number. One error lists all of them.
        ValueError: A pattern, `task_rows` or `new_rows` is malformed.

    >>> import numpy as np
    >>> base = {"dense": {"kernel": np.ones((2, 2), np.float32)}}
    >>> model = {**base, "task_embeddings": {"embedding": np.zeros((5, 2), np.float32)}}
    >>> params, report = merge_params(model, base, keep="task_embeddings/.*")
    >>> print(report)
    loaded  1 leaves
    kept    task_embeddings/embedding  as it is in the model
    """
    rules = MergeRules(keep, drop, rename, task_rows, new_rows, task_tables)
    return _merge(target, source, rules)


def merge_into(
    model: nnx.Module,
    source: Tree,
    *,
    keep: Patterns = (),
    drop: Patterns = (),
    rename: Mapping[str, str] | None = None,
    task_rows: Rows | None = None,
    new_rows: Start = "target",
) -> MergeReport:
    """Loads a checkpoint's values into a module's parameters, in place.

    This is `merge_params` for NNX. A `TaskParam` that the checkpoint lacks is kept without being
    named in `keep`, and each `TaskParam` with an axis of tasks is a table that `task_rows` remaps.
    The other arguments and the errors are those of `merge_params`. After an error the
    module is unchanged.

    The module may come from `nnx.eval_shape`. Its leaves then become arrays, except those that
    the checkpoint lacks. The report lists these in `without_value`.

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
    added = [re.escape(path) for path in flatten(nnx.state(model, TaskParam))]
    has_rows = nnx.All(TaskParam, nnx.Not(SharedTaskParam))
    tables = [re.escape(path) for path in flatten(nnx.state(model, has_rows))]
    rules = MergeRules((*as_tuple(keep), *added), drop, rename, task_rows, new_rows, tables)
    params, report = _merge(to_dict(state), source, rules)
    replace_values(state, jax.tree.map(_as_array, params))
    nnx.update(model, state)
    return report


def _merge(target: Tree, source: Tree, rules: MergeRules) -> tuple[dict[Any, Any], MergeReport]:
    flat_target, flat_source = flatten(target), flatten(source)
    target_paths, source_paths = plain_paths(flat_target), plain_paths(flat_source)
    plan, report = plan_merge(
        {path: flat_target[full] for path, full in target_paths.items()},
        {path: flat_source[full] for path, full in source_paths.items()},
        rules,
    )
    merged = {}
    for path, leaf in plan.items():
        own = flat_target[target_paths[path]]
        if leaf.source is None:
            merged[target_paths[path]] = own
            if isinstance(own, jax.ShapeDtypeStruct):
                report.without_value.append(path)
            continue
        value = flat_source[source_paths[leaf.source]]
        bad = count_nonfinite(value, own.dtype)
        if bad:
            report.nonfinite[path] = bad
        if leaf.rows is not None:
            value = take_rows(value, leaf.rows, rules.new_rows, own)
        merged[target_paths[path]] = _put(value, own)
    warn_nonfinite(report.nonfinite, report.cast)
    return rebuild(target, merged), report


def _as_array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def _put(value: Any, target: Any) -> Shaped[Array, "..."] | Shaped[np.ndarray, "..."]:
    """Casts a value to the target's dtype, and puts it where the target wants it."""
    if isinstance(value, np.ndarray):
        value = cast_array(value, target.dtype)
    elif value.dtype != target.dtype:
        value = value.astype(target.dtype)
    sharding = sharding_of(target)
    return value if sharding is None else jax.device_put(value, sharding)
