"""Checks that specialists have enough in common for their weights to be combined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from taskcond.checkpoint.combining.inputs import Input
from taskcond.checkpoint.open import Checkpoint
from taskcond.checkpoint.storage.boxes import Box, largest_run, whole
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.merging.plan import MergeRules, plan_merge
from taskcond.merging.report import MergeError

_SAMPLE_BYTES = 1 << 18  # compared of each leaf
_MIN_COSINE = 0.5  # it is close to 1 for fine-tunes of one base, and to 0 for unrelated weights


def check_same_leaves(first: Input, others: Sequence[Input]) -> None:
    """Raises `CheckpointError` unless all inputs have the same leaves beside those of tasks."""
    problems = []
    for other in others:
        wanted, found = (
            {path: leaf for path, leaf in one.leaves.items() if path not in one.tables}
            for one in (first, other)
        )
        try:
            plan_merge(wanted, found, MergeRules())
        except MergeError as error:
            problems.append(f"{other.path} against {first.path}:\n{error.problems.details()}")
    if problems:
        raise CheckpointError("these checkpoints are not of one model:\n" + "\n".join(problems))


def check_alike(reference: Input, others: Sequence[Input]) -> None:
    """Raises `CheckpointError` if weights have nothing to do with those of the reference.

    Fine-tuning changes weights only a little. The beginning of each matrix is compared, by the
    mean cosine similarity.
    """
    leaves = reference.leaves.items()
    matrices = [
        path for path, leaf in leaves if len(leaf.shape) > 1 and path not in reference.tables
    ]
    cosines: dict[str, list[float]] = {other.path: [] for other in others}
    for path in matrices:
        box = _beginning(reference, path)
        expected = reference.read(path, box).astype(np.float64)
        for other in others:
            value = other.read(path, box).astype(np.float64)
            norm = np.linalg.norm(value) * np.linalg.norm(expected)
            if norm > 0 and np.isfinite(norm):
                cosines[other.path].append(float(np.vdot(value, expected) / norm))
    means = {path: float(np.mean(x)) for path, x in cosines.items() if x}
    strange = {path: round(mean, 3) for path, mean in means.items() if mean < _MIN_COSINE}
    if strange:
        raise CheckpointError(
            f"not fine-tuned from the base of {reference.path}, as the cosine similarity of their "
            f"weights shows: {strange}. Combining them would give noise; check_base=False does it "
            "all the same"
        )


def check_norm_stats(checkpoints: Sequence[Checkpoint]) -> None:
    """Raises `CheckpointError` if the files of normalization statistics differ.

    The weights of each specialist expect inputs and give outputs in its own units.
    """
    stats = {checkpoint.path: _norm_stats(checkpoint.root) for checkpoint in checkpoints}
    known = {path: x for path, x in stats.items() if x is not None}
    first = next(iter(known.values()), None)
    different = [path for path, x in known.items() if x != first]
    if different:
        raise CheckpointError(
            f"trained with other normalization statistics than {next(iter(known))}: {different}. "
            "Their weights expect inputs in other units; fine-tune them with shared statistics, "
            "or use check_norm_stats=False to combine them all the same"
        )


def _norm_stats(root: epath.Path) -> Any:
    """Reads the statistics beside the parameters, or in the step's `assets`."""
    folder = root if root.is_dir() else root.parent
    # An asset has the name of its dataset, such as "droid" or "owner/droid".
    patterns = ("*/norm_stats.json", "*/*/norm_stats.json")
    found = [file for p in patterns for file in sorted((folder.parent / "assets").glob(p))]
    found += [place / "norm_stats.json" for place in (folder, folder.parent)]
    files = [file for file in found if file.exists()]
    try:
        return [json.loads(file.read_text()) for file in files] or None
    except ValueError as error:
        raise CheckpointError(f"{files} cannot be read: {error}") from error


def _beginning(source: Input, path: str) -> Box:
    leaf = source.leaves[path]
    return whole(largest_run(leaf.shape, leaf.dtype.itemsize, _SAMPLE_BYTES))
