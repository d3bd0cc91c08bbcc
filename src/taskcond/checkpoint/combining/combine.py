"""`combine_checkpoints`: specialists of one base become one checkpoint, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax.numpy as jnp
import numpy as np

from taskcond.checkpoint.combining import methods as arithmetic
from taskcond.checkpoint.combining.checks import check_alike, check_norm_stats, check_same_leaves
from taskcond.checkpoint.combining.lora import FoldedLora, has_lora
from taskcond.checkpoint.combining.recipe import RECORD, Recipe
from taskcond.checkpoint.combining.tables import combine_tables
from taskcond.checkpoint.open import Checkpoint, StrPath, is_table, open_checkpoint
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import (
    Box,
    Leaf,
    as_bytes,
    box_shape,
    flat_indices,
    grid,
    piece_shape,
    prefetch,
    relative,
)
from taskcond.checkpoint.storage.write import Progress, check_output, write_checkpoint
from taskcond.merging.merge import count_nonfinite

BLOCK_BYTES = 1 << 18
Combine = Callable[[Box, Any, Sequence[np.ndarray]], np.ndarray]
_PACKAGES = ("taskcond", "numpy", "jax", "orbax-checkpoint", "tensorstore")


@dataclasses.dataclass
class CombineReport:
    """What became of the specialists; prints as a table.

    Attributes:
        methods: `{path: method}` of the shared leaves.
        owners: `{task: the checkpoint that its row is from}`.
        hashes: `{checkpoint: SHA-256 of the values that were read}`; empty after a dry run.
        nonfinite: `{checkpoint: {path: number of NaN and Inf}}`; likewise.
    """

    methods: dict[str, str]
    owners: dict[str, str]
    hashes: dict[str, str]
    nonfinite: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        rows = [
            *((f"{n} leaves", method) for method, n in Counter(self.methods.values()).items()),
            *((f"task {task!r}", f"from {path}") for task, path in self.owners.items()),
            *((f"sha256 {digest[:16]}", path) for path, digest in self.hashes.items()),
            *(("NaN/Inf", f"{path}: {found}") for path, found in self.nonfinite.items()),
        ]
        width = max((len(row[0]) for row in rows), default=0)
        return "\n".join(f"{a:{width}}  {b}" for a, b in rows)


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
    versions, and the hashes of the inputs; as a recipe, it demands those same inputs.

    Args:
        recipe: A `Recipe`, a TOML file, or the `recipe.json` of an earlier result.
        out: A local directory, which appears when it is complete.
        format: `"orbax"` or `"safetensors"`.
        overwrite: Whether to replace a checkpoint that is there.
        dry_run: Whether to check everything but the values, and write nothing.
        progress: Is called with the bytes that are done and those that there are.

    Warns:
        UserWarning: NaN or Inf in an input.

    Raises:
        CheckpointError: The recipe cannot be followed, the specialists are not of one base or
            claim the same tasks, inputs are not those of a `recipe.json`, or files cannot be read
            or written. Whatever the error, everything is as before.
    """
    hashes: dict[str, str] | None = None
    if not isinstance(recipe, Recipe):
        recipe, hashes = Recipe.load(recipe)
    recipe = recipe.absolute()  # `recipe.json` is read from another directory
    specialists, base = _open_all(recipe)
    inputs = specialists if base is None else [*specialists, base]
    sources = [x for one in inputs for x in (one.path, str(one.checkpoint.root))]
    check_output(out, format, overwrite, sources)
    _check(recipe, specialists, base)
    table = combine_tables(recipe, specialists, base)
    shared = {path: x for path, x in specialists[0].leaves.items() if not is_table(path)}
    recipe.check_rules(shared)
    methods = {path: recipe.rule(path).method for path in shared}
    report = CombineReport(methods, table.owners if table else {}, {})
    leaves = {path: leaf.chunked() for path, leaf in shared.items()}
    if table is not None:
        leaves[table.path] = table.leaf

    def cut(path: str) -> Iterator[tuple[Box, np.ndarray]]:
        if table is not None and path == table.path:
            for box in table.leaf.chunks():
                yield box, table.value[box]
        else:
            yield from _combine_leaf(recipe, path, leaves[path], specialists, base)

    def record() -> dict[str, str]:
        report.hashes = {one.path: one.digest for one in inputs}
        if hashes is not None:
            _compare_hashes(hashes, report.hashes)
        content = {"recipe": recipe.to_dict(), "versions": _versions(), "inputs": report.hashes}
        return {RECORD: json.dumps(content, indent=2) + "\n"}

    write_checkpoint(
        out,
        leaves,
        cut,
        format=format,
        overwrite=overwrite,
        sources=sources,
        conditioning=table.conditioning if table else None,
        extra=record,
        dry_run=dry_run,
        progress=progress,
    )
    report.nonfinite = {one.path: one.nonfinite for one in inputs if one.nonfinite}
    if report.nonfinite:
        warnings.warn(f"NaN or Inf was combined: {report.nonfinite}", stacklevel=2)
    return report


class _Input:
    """A checkpoint that is combined, with a hash of what was read of it."""

    def __init__(self, checkpoint: Checkpoint, source: Any):
        self.checkpoint = checkpoint
        self.path = checkpoint.path
        self.conditioning = checkpoint.conditioning
        self.leaves: dict[str, Leaf] = source.leaves
        self.read = source.read
        self.hashes: dict[str, Any] = {}
        self.nonfinite: dict[str, int] = {}

    @property
    def digest(self) -> str:
        """SHA-256 of those of all leaves, in the order of their paths."""
        leaves = sorted((path, one.hexdigest()) for path, one in self.hashes.items())
        return hashlib.sha256(json.dumps(leaves).encode()).hexdigest()

    def pieces(self, path: str, boxes: Iterable[Box]) -> Iterator[np.ndarray]:
        """The pieces of a leaf that enters the result, in order."""
        self.hashes[path] = hashlib.sha256()
        for box in boxes:
            value = np.ascontiguousarray(self.read(path, box))
            self.hashes[path].update(as_bytes(value))
            if bad := count_nonfinite(value):
                self.nonfinite[path] = self.nonfinite.get(path, 0) + bad
            yield value


def _open_all(recipe: Recipe) -> tuple[list[_Input], _Input | None]:
    """All inputs; `CheckpointError` names all that cannot be opened."""
    wanted = [(s.path, s.lora_alpha) for s in recipe.specialists]
    wanted += [] if recipe.base is None else [(recipe.base, None)]
    opened, problems = [], []
    for path, lora_alpha in wanted:
        try:
            opened.append(_Input(*_open(path, lora_alpha)))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    count = len(recipe.specialists)
    return opened[:count], (opened[count] if recipe.base is not None else None)


def _compare_hashes(recorded: Mapping[str, str], found: Mapping[str, str]) -> None:
    unknown = [path for path in found if path not in recorded]
    changed = [path for path, now in found.items() if recorded.get(path, now) != now]
    if unknown or changed:
        raise CheckpointError(
            f"not the inputs of the recorded merge: {changed} have changed, {unknown} are not in "
            "the record; a recipe in TOML does not ask for the same inputs"
        )


def _open(path: str, lora_alpha: float | str | None) -> tuple[Checkpoint, Any]:
    checkpoint = open_checkpoint(path)
    if lora_alpha is not None:
        return checkpoint, FoldedLora(checkpoint, lora_alpha)
    if has_lora(checkpoint.leaves):
        raise CheckpointError(
            f"{path} is a LoRA fine-tune; lora_alpha (its alpha, or 'rank') folds it"
        )
    return checkpoint, checkpoint


def _check(recipe: Recipe, specialists: Sequence[_Input], base: _Input | None) -> None:
    reference = base or specialists[0]
    others = [one for one in specialists if one is not reference]
    check_same_leaves(specialists[0], [*specialists[1:], *([base] if base else [])])
    if recipe.check_base:
        check_alike(reference, others)
    if recipe.check_norm_stats:
        check_norm_stats([one.checkpoint for one in specialists])


def _combine_leaf(
    recipe: Recipe, path: str, leaf: Leaf, specialists: Sequence[_Input], base: _Input | None
) -> Iterator[tuple[Box, np.ndarray]]:
    combine = _combiner(recipe, path, specialists, base)
    boxes = list(leaf.chunks())
    inputs = specialists if base is None else [*specialists, base]
    with contextlib.ExitStack() as stack:  # which ends the threads, whatever happens
        # One for each file, as decoding and hashing take longest.
        made = [
            stack.enter_context(contextlib.closing(prefetch(one.pieces(path, boxes))))
            for one in inputs
        ]
        for box, *values in zip(boxes, *made, strict=True):
            before = None if base is None else values.pop()
            yield box, _in_blocks(combine, box, before, values, leaf.dtype)


def _in_blocks(
    combine: Combine, box: Box, before: Any, values: Sequence[np.ndarray], dtype: np.dtype
) -> np.ndarray:
    """A piece, made from blocks so small that their arithmetic stays in the processor's cache."""
    shape = box_shape(box)
    result = np.empty(shape, dtype)
    for block in grid(box, piece_shape(shape, dtype.itemsize, BLOCK_BYTES)):
        inside = (*relative(block, box), ...)
        old = None if before is None else before[inside]
        result[inside] = combine(block, old, [value[inside] for value in values])
    return result


def _combiner(
    recipe: Recipe, path: str, specialists: Sequence[_Input], base: _Input | None
) -> Combine:
    """What makes a part of a leaf from those of the base and the specialists."""
    leaf, rule = specialists[0].leaves[path], recipe.rule(path)
    # A weight of zero means no part in it: not even in the vote of TIES.
    used = [i for i, weight in enumerate(rule.weights or ()) if weight != 0.0]
    weights = [(rule.weights or ())[i] for i in used]
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return lambda box, before, values: _equal(path, values)
    if not used:
        return lambda box, before, values: before
    if rule.method == "mean":
        return lambda box, before, values: arithmetic.weighted_mean(
            [values[i] for i in used], weights
        )
    if rule.method == "task_arithmetic":
        return lambda box, before, values: arithmetic.task_arithmetic(
            before, [values[i] for i in used], weights, rule.scale
        )
    assert base is not None
    assert rule.density is not None
    density = rule.density
    if rule.method == "ties":
        thresholds = [_threshold(specialists[i], base, path, density) for i in used]
        return lambda box, before, values: arithmetic.ties(
            before, [values[i] for i in used], weights, rule.scale, thresholds
        )
    keys = [arithmetic.leaf_key(recipe.seed, path, i) for i in used]
    return lambda box, before, values: arithmetic.dare(
        before,
        [values[i] for i in used],
        weights,
        rule.scale,
        density,
        flat_indices(box, leaf.shape),
        keys,
    )


def _equal(path: str, values: Sequence[np.ndarray]) -> np.ndarray:
    if any((value != values[0]).any() for value in values):
        raise CheckpointError(
            f"{path} differs, and is {values[0].dtype}: only floating-point leaves can be combined"
        )
    return values[0]


def _threshold(specialist: _Input, base: _Input, path: str, density: float) -> float:
    def differences() -> Iterator[np.ndarray]:
        for box in specialist.leaves[path].boxes():
            yield arithmetic.difference(specialist.read(path, box), base.read(path, box))

    return arithmetic.magnitude_threshold(differences, density)


def _versions() -> Mapping[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
