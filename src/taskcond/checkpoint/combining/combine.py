"""`combine_checkpoints`: specialists of one base become one checkpoint, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax.numpy as jnp
import numpy as np

from taskcond.checkpoint.combining import methods
from taskcond.checkpoint.combining.checks import check_alike, check_norm_stats, check_same_leaves
from taskcond.checkpoint.combining.inputs import Input, check_hashes, open_inputs
from taskcond.checkpoint.combining.recipe import Recipe, Rule
from taskcond.checkpoint.combining.tables import combine_tables
from taskcond.checkpoint.output import RECIPE, output_at, write_checkpoint
from taskcond.checkpoint.storage.boxes import (
    Box,
    box_shape,
    flat_indices,
    grid,
    largest_run,
    relative,
)
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf, Piece, Progress, StrPath
from taskcond.checkpoint.storage.threads import prefetch
from taskcond.merging.finite import count_nonfinite
from taskcond.messages import Readable, columns, warn

_BLOCK_BYTES = 1 << 18  # the arithmetic of a block stays in the processor's cache
_PACKAGES = ("taskcond", "numpy", "jax", "tensorstore")

Values = Sequence[np.ndarray]
Combine = Callable[[Box, np.ndarray | None, Values], np.ndarray]
"""A function of a box, the base's values in it, and those of each specialist."""


@dataclasses.dataclass(repr=False)
class CombineReport(Readable):
    """A report of what became of the specialists; prints as a table.

    Attributes:
        methods: `{path: method}` of the shared leaves.
        owners: `{task: the checkpoint that its row comes from}`.
        hashes: `{checkpoint: SHA-256 of the values that were read}`; empty after a dry run.
        nonfinite: `{checkpoint: {path: number of NaN and Inf}}`; empty after a dry run.
        cast: `{checkpoint: {path: (dtype there, dtype of the result)}}`, for dtypes that differ.
        overflowed: `{path: number of entries that are finite in every checkpoint, but not in the
            result}`; empty after a dry run.
    """

    methods: dict[str, str]
    owners: dict[str, str]
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)
    nonfinite: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    cast: dict[str, dict[str, tuple[str, str]]] = dataclasses.field(default_factory=dict)
    overflowed: dict[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return columns(
            [
                *((f"{n} leaves", method) for method, n in Counter(self.methods.values()).items()),
                *((f"task {task!r}", f"from {path}") for task, path in self.owners.items()),
                *((f"sha256 {digest[:16]}", path) for path, digest in self.hashes.items()),
                *(
                    (f"cast {n} leaves", f"{old} -> {new}, from {path}")
                    for path, found in self.cast.items()
                    for (old, new), n in Counter(found.values()).items()
                ),
                *(("NaN/Inf", f"{path}: {found}") for path, found in self.nonfinite.items()),
                *(("overflowed", f"{path}: {n}") for path, n in self.overflowed.items()),
            ]
        )


def combine_checkpoints(
    recipe: Recipe | StrPath,
    out: StrPath,
    *,
    format: str = "orbax",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> CombineReport:
    """Makes one checkpoint of several that were fine-tuned from the same base.

    Each task's row comes from its owner, exactly. All other weights are combined as the recipe
    says, leaf by leaf and piece by piece. `recipe.json` beside the result records the recipe, the
    versions, and the hashes of the inputs. Used as a recipe, it demands those same inputs.

    Args:
        recipe: A `Recipe`, a TOML file, or the `recipe.json` of an earlier result.
        out: A local directory, which appears when it is complete.
        format: `"orbax"` or `"safetensors"`.
        overwrite: Whether to replace an existing checkpoint.
        dry_run: Whether to check everything except the values, and write nothing.
        progress: A function that is called with the number of bytes done and their total.

    Warns:
        UserWarning: An input has NaN or Inf, or finite values become NaN or Inf in the result.

    Raises:
        CheckpointError: The recipe cannot be followed, the specialists do not have one base or
            claim the same tasks, inputs are not those of a `recipe.json`, or files cannot be read
            or written. After any error everything is as before.
    """
    hashes: dict[str, str] | None = None
    if not isinstance(recipe, Recipe):
        recipe, hashes = Recipe.load(recipe)
    recipe = recipe.absolute()  # `recipe.json` lies in another directory
    specialists, base = open_inputs(recipe)
    inputs = specialists if base is None else [*specialists, base]
    output = output_at(
        out,
        tuple(one.checkpoint for one in inputs),
        format=format,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    _check(recipe, specialists, base)
    table = combine_tables(recipe, specialists, base)
    of_tasks = {} if table is None else {table.path: table.value, **table.more}
    first = specialists[0]
    shared = {path: leaf for path, leaf in first.leaves.items() if path not in first.tables}
    recipe.check_rules(shared)
    rules = {path: recipe.rule(path) for path in shared}
    dtypes = {path: _dtype(recipe, path, specialists, base) for path in shared}
    leaves = {path: leaf.rechunked(dtypes[path]) for path, leaf in shared.items()}
    methods = {path: rule.method for path, rule in rules.items()}
    report = CombineReport(methods, {} if table is None else table.owners)
    report.cast = _casts(dtypes, inputs)
    leaves |= {path: Leaf.of(value) for path, value in of_tasks.items()}

    def pieces(path: str) -> Iterator[Piece]:
        if path not in rules:
            return ((box, of_tasks[path][box]) for box in leaves[path].chunks())
        combine = _combiner(rules[path], recipe.seed, path, specialists, base)
        return _combine_leaf(combine, path, leaves[path], specialists, base, report.overflowed)

    def record() -> dict[str, str]:
        if hashes is not None:
            check_hashes(hashes, inputs)
        report.hashes = {one.path: one.digest for one in inputs}
        content = {"recipe": recipe.to_dict(), "versions": _versions(), "inputs": report.hashes}
        return {RECIPE: json.dumps(content, indent=2) + "\n"}

    about = table.conditioning.at(table.path, leaves) if table else None
    write_checkpoint(output, leaves, pieces, about, table.path if table else None, record)
    report.nonfinite = {one.path: one.nonfinite for one in inputs if one.nonfinite}
    report.overflowed = {path: n for path, n in report.overflowed.items() if n}
    _warn(report)
    return report


def _warn(report: CombineReport) -> None:
    if report.nonfinite:
        warn(f"NaN or Inf was combined: {report.nonfinite}")
    if report.overflowed:
        warn(
            f"finite values became NaN or Inf in the result: {report.overflowed}; give the recipe "
            "a dtype with a larger range, such as 'float32'"
        )


def _check(recipe: Recipe, specialists: Sequence[Input], base: Input | None) -> None:
    reference = base or specialists[0]
    others = [one for one in specialists if one is not reference]
    check_same_leaves(specialists[0], [*specialists[1:], *([base] if base else [])])
    if recipe.check_base:
        check_alike(reference, others)
    if recipe.check_norm_stats:
        check_norm_stats([one.checkpoint for one in specialists])


def _dtype(
    recipe: Recipe, path: str, specialists: Sequence[Input], base: Input | None
) -> np.dtype[Any]:
    """Returns the dtype of a leaf of the result, whatever the order of the specialists."""
    dtypes = [one.leaves[path].dtype for one in specialists]
    if jnp.issubdtype(dtypes[0], jnp.floating):
        if recipe.dtype is not None:
            return jnp.dtype(recipe.dtype)
        if base is not None:
            return base.leaves[path].dtype
    return functools.reduce(jnp.promote_types, dtypes)


def _casts(
    dtypes: Mapping[str, np.dtype[Any]], inputs: Sequence[Input]
) -> dict[str, dict[str, tuple[str, str]]]:
    """Returns the leaves of each input whose dtype is not that of the result."""
    found = {
        one.path: {
            path: (str(one.leaves[path].dtype), str(dtype))
            for path, dtype in dtypes.items()
            if one.leaves[path].dtype != dtype
        }
        for one in inputs
    }
    return {path: casts for path, casts in found.items() if casts}


def _combine_leaf(
    combine: Combine,
    path: str,
    leaf: Leaf,
    specialists: Sequence[Input],
    base: Input | None,
    overflowed: dict[str, int],
) -> Iterator[Piece]:
    boxes = list(leaf.chunks())
    inputs = specialists if base is None else [*specialists, base]
    with contextlib.ExitStack() as stack:  # ends the threads, whatever happens
        # Each input has a thread of its own, because decoding and hashing take longest.
        read = [
            stack.enter_context(contextlib.closing(prefetch(one.pieces(path, boxes))))
            for one in inputs
        ]
        for box, *values in zip(boxes, *read, strict=True):
            all_values = list(values)
            before = None if base is None else values.pop()
            result = _combine_blocks(combine, box, before, values, leaf.dtype)
            if count_nonfinite(result):
                new = np.isfinite(all_values).all(0) & ~np.isfinite(result)
                overflowed[path] = overflowed.get(path, 0) + int(np.count_nonzero(new))
            yield box, result


def _combine_blocks(
    combine: Combine, box: Box, before: np.ndarray | None, values: Values, dtype: np.dtype
) -> np.ndarray:
    """Combines a piece block by block."""
    shape = box_shape(box)
    result = np.empty(shape, dtype)
    for block in grid(box, largest_run(shape, dtype.itemsize, _BLOCK_BYTES)):
        inside = (*relative(block, box), ...)
        old = None if before is None else before[inside]
        with np.errstate(over="ignore", invalid="ignore"):  # the caller counts NaN and Inf
            result[inside] = combine(block, old, [value[inside] for value in values])
    return result


def _combiner(
    rule: Rule, seed: int, path: str, specialists: Sequence[Input], base: Input | None
) -> Combine:
    """Returns the function that combines the parts of a leaf."""
    leaf = specialists[0].leaves[path]
    # A weight of zero means that a specialist takes no part, not even in the election of TIES.
    used = [i for i, weight in enumerate(rule.weights or ()) if weight != 0.0]
    weights = [(rule.weights or ())[i] for i in used]
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return lambda box, before, values: _equal(path, values)
    if not used:
        return lambda box, before, values: _present(before)
    if rule.method == "mean":
        return lambda box, before, values: methods.weighted_mean([values[i] for i in used], weights)
    if rule.method == "task_arithmetic":
        return lambda box, before, values: methods.task_arithmetic(
            _present(before), [values[i] for i in used], weights, rule.scale
        )
    density = rule.density
    assert base is not None
    assert density is not None
    if rule.method == "ties":
        thresholds = [_threshold(specialists[i], base, path, density) for i in used]
        return lambda box, before, values: methods.ties(
            _present(before), [values[i] for i in used], weights, rule.scale, thresholds
        )
    keys = [methods.leaf_key(seed, path, i) for i in used]
    return lambda box, before, values: methods.dare(
        _present(before),
        [values[i] for i in used],
        weights,
        rule.scale,
        density,
        flat_indices(box, leaf.shape),
        keys,
    )


def _present(before: np.ndarray | None) -> np.ndarray:
    assert before is not None, "a recipe whose method needs a base has one"
    return before


def _equal(path: str, values: Values) -> np.ndarray:
    if any((value != values[0]).any() for value in values):
        raise CheckpointError(
            f"{path} differs, and is {values[0].dtype}: only floating-point leaves can be combined"
        )
    return values[0]


def _threshold(specialist: Input, base: Input, path: str, density: float) -> float:
    def differences() -> Iterator[np.ndarray]:
        for box in specialist.leaves[path].pieces():
            yield methods.difference(specialist.read(path, box), base.read(path, box))

    return methods.magnitude_threshold(differences, density)


def _versions() -> Mapping[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
