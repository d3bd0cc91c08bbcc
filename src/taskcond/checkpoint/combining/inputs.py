"""The checkpoints that are combined, open for reading, with hashes of what is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from taskcond.checkpoint.combining.lora import FoldedLora, has_lora
from taskcond.checkpoint.combining.recipe import Recipe
from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.storage.boxes import Box
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf, Leaves, as_bytes, read_leaf
from taskcond.merging.finite import count_nonfinite


class Input:
    """A checkpoint that is combined.

    Attributes:
        checkpoint: The checkpoint.
        path: The path of the checkpoint.
        leaves: The leaves that are combined; low-rank leaves are folded.
        table: The path of the task table, if there is one.
        tables: The paths of all leaves with one row per task.
        nonfinite: `{path: number of NaN and Inf}` among the values that were read by `pieces`.
    """

    def __init__(self, checkpoint: Checkpoint, source: Leaves):
        self.checkpoint = checkpoint
        self.path = checkpoint.path
        self.table = checkpoint.table
        about = checkpoint.conditioning
        self.tables = {self.table, *(() if about is None else about.more_tables)} - {None}
        self.leaves: Mapping[str, Leaf] = source.leaves
        self.nonfinite: dict[str, int] = {}
        self._source = source
        self._hashes: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """The SHA-256 of the hashes of all leaves that entered the result, sorted by path."""
        leaves = sorted((path, leaf.hexdigest()) for path, leaf in self._hashes.items())
        return hashlib.sha256(json.dumps(leaves).encode()).hexdigest()

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a part of a leaf, which does not enter the hash."""
        return self._source.read(path, box)

    def read_table(self, path: str) -> Shaped[np.ndarray, "tasks ..."]:
        """Reads a leaf with one row per task, which enters the hash."""
        table = read_leaf(self, path)
        self._hashes[path] = hashlib.sha256(np.ascontiguousarray(table).tobytes())
        return table

    def pieces(self, path: str, boxes: Iterable[Box]) -> Iterator[Shaped[np.ndarray, "..."]]:
        """Yields the pieces of a leaf, in order; they enter the hash."""
        self._hashes[path] = hashlib.sha256()
        for box in boxes:
            value = np.ascontiguousarray(self.read(path, box))
            self._hashes[path].update(as_bytes(value))
            if bad := count_nonfinite(value):
                self.nonfinite[path] = self.nonfinite.get(path, 0) + bad
            yield value


def open_inputs(recipe: Recipe) -> tuple[list[Input], Input | None]:
    """Opens the specialists and the base of a recipe.

    Raises:
        CheckpointError: Inputs cannot be opened. The message names all of them.
    """
    wanted = [(str(s.path), s.lora_alpha) for s in recipe.specialists]
    wanted += [] if recipe.base is None else [(str(recipe.base), None)]
    opened, problems = [], []
    for path, lora_alpha in wanted:
        try:
            opened.append(_open(path, lora_alpha))
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    count = len(recipe.specialists)
    return opened[:count], (opened[count] if recipe.base is not None else None)


def check_hashes(recorded: Mapping[str, str], inputs: Iterable[Input]) -> None:
    """Raises `CheckpointError` unless the inputs have the hashes of a `recipe.json`."""
    found = {one.path: one.digest for one in inputs}
    unknown = [path for path in found if path not in recorded]
    changed = [path for path, digest in found.items() if recorded.get(path, digest) != digest]
    if unknown or changed:
        raise CheckpointError(
            f"these are not the inputs of the recorded merge: {changed} have changed, {unknown} "
            "are not in the record; a recipe in TOML does not ask for the same inputs"
        )


def _open(path: str, lora_alpha: float | str | None) -> Input:
    checkpoint = open_checkpoint(path)
    if lora_alpha is not None:
        return Input(checkpoint, FoldedLora(checkpoint, lora_alpha))
    if has_lora(checkpoint.leaves):
        raise CheckpointError(
            f"{path} is a LoRA fine-tune; give its lora_alpha (its alpha, or 'rank') to fold it"
        )
    return Input(checkpoint, checkpoint)
