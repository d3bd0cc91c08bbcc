"""What specialists must have in common before their weights are combined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from taskcond.checkpoint.open import Checkpoint, is_table
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Box, piece_shape
from taskcond.merging.merge import MergeError, plan_merge

SAMPLE_BYTES = 1 << 18  # of each leaf
MIN_COSINE = 0.5  # fine-tunes of one base are close to 1, unrelated weights to 0


def check_same_leaves(first: Any, others: Sequence[Any]) -> None:
    """Raises `CheckpointError` unless all have the same leaves, but for the task table."""
    problems = []
    for other in others:
        wanted, found = (
            {path: leaf for path, leaf in one.leaves.items() if not is_table(path)}
            for one in (first, other)
        )
        try:
            plan_merge(wanted, found)
        except MergeError as error:
            lines = str(error).splitlines()[1:]
            advice = next((i for i, x in enumerate(lines) if x.startswith("to accept")), len(lines))
            problems.append("\n".join([f"{other.path} against {first.path}:", *lines[:advice]]))
    if problems:
        raise CheckpointError("these are not of one model:\n" + "\n".join(problems))


def check_alike(reference: Any, others: Sequence[Any]) -> None:
    """Raises `CheckpointError` where weights have nothing to do with those of the reference.

    Fine-tuning changes weights by a little. Of each matrix the beginning is compared; the measure
    is the mean cosine similarity.
    """
    leaves = reference.leaves.items()
    matrices = [path for path, leaf in leaves if len(leaf.shape) > 1 and not is_table(path)]
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
    strange = {path: round(mean, 3) for path, mean in means.items() if mean < MIN_COSINE}
    if strange:
        raise CheckpointError(
            f"not fine-tuned from the base of {reference.path}, as the cosine similarity of their "
            f"weights shows: {strange}. Combining them would give noise; check_base=False insists"
        )


def check_norm_stats(checkpoints: Sequence[Checkpoint]) -> None:
    """Raises `CheckpointError` where the files of normalization statistics differ.

    Each specialist's weights expect inputs and give outputs in its own units.
    """
    stats = {checkpoint.path: _norm_stats(checkpoint.root) for checkpoint in checkpoints}
    known = {path: x for path, x in stats.items() if x is not None}
    first = next(iter(known.values()), None)
    different = [path for path, x in known.items() if x != first]
    if different:
        raise CheckpointError(
            f"trained with other normalization statistics than {next(iter(known))}: {different}. "
            "Their weights expect inputs in other units; fine-tune them with shared statistics, "
            "or insist with check_norm_stats=False"
        )


def _norm_stats(root: epath.Path) -> Any:
    """From beside the parameters, or from the step's `assets`."""
    folder = root if root.is_dir() else root.parent
    # An asset is called as its dataset is: "droid", "owner/droid".
    patterns = ("*/norm_stats.json", "*/*/norm_stats.json")
    found = [file for p in patterns for file in sorted((folder.parent / "assets").glob(p))]
    found += [place / "norm_stats.json" for place in (folder, folder.parent)]
    files = [file for file in found if file.exists()]
    try:
        return [json.loads(file.read_text()) for file in files] or None
    except ValueError as error:
        raise CheckpointError(f"{files} cannot be read: {error}") from error


def _beginning(source: Any, path: str) -> Box:
    leaf = source.leaves[path]
    shape = piece_shape(leaf.shape, leaf.dtype.itemsize, SAMPLE_BYTES)
    return tuple(slice(0, n) for n in shape)
