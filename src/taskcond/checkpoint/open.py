"""`open_checkpoint`: finds out what a path is, and reads it leaf by leaf."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.conditioning import FILE, TaskConditioning
from taskcond.checkpoint.storage.errors import CheckpointError, explained
from taskcond.checkpoint.storage.leaf import (
    Box,
    Leaf,
    box_shape,
    grid,
    is_aligned,
    overlap,
    piece_shape,
    relative,
)
from taskcond.checkpoint.storage.orbax import METADATA, OrbaxStore
from taskcond.checkpoint.storage.safetensors import SafetensorsStore, is_safetensors
from taskcond.merging.merge import TASK_TABLES
from taskcond.trees import unwrap

StrPath = str | os.PathLike[str]
_ITEMS = ("params", "default")  # where trainers put the parameters in a step's directory


@runtime_checkable
class Leaves(Protocol):
    """Something whose leaves can be read in pieces."""

    leaves: dict[str, Leaf]

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """A part of a leaf."""
        ...


class Checkpoint:
    """A checkpoint on disk, open for reading.

    Attributes:
        path: As it was given.
        root: The directory or file that holds the arrays.
        kind: `"Orbax"` or `"safetensors"`.
        layout: `"released"` (all below `params`), `"trained"` (each leaf under `value`) or
            `"plain"`.
        leaves: `{path: leaf}`, the same paths for every layout.
        conditioning: What is in `task_conditioning.json`; `None` where there is none.

    Args:
        path: A directory of Orbax or safetensors, a `.safetensors` file or its index, the
            directory of a training step, or the one with all steps, which means the last one.
            Local, `gs://` or `s3://`.

    Raises:
        CheckpointError: Nothing there, something else, incomplete or damaged.
    """

    def __init__(self, path: StrPath):
        self.path = os.fspath(path)
        with explained(f"{self.path} cannot be read"):
            self.root = _locate(epath.Path(path))
            self._store: Any = (OrbaxStore if _is_orbax(self.root) else SafetensorsStore)(self.root)
        self.kind: str = self._store.kind
        self._full = unwrap(self._store.leaves)
        if len(self._full) < len(self._store.leaves):
            raise CheckpointError(f"{self.path}: two leaves have the same path")
        self.layout = _layout(self._full)
        self.leaves: dict[str, Leaf] = {
            path: self._store.leaves[full] for path, full in self._full.items()
        }
        self.conditioning = _conditioning(self.root)

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """A part of a leaf; cheap for pieces (`Leaf.boxes`) in order."""
        return self._store.read(self._full[path], box)

    @property
    def table(self) -> str | None:
        """The path of the task table, if there is one.

        Raises:
            CheckpointError: There are several.
        """
        return find_table(self.leaves, self.path)


def open_checkpoint(path: StrPath) -> Checkpoint:
    """Opens a checkpoint and checks that its task conditioning fits its task table.

    Args:
        path: See `Checkpoint`.

    Raises:
        CheckpointError: It cannot be read, or the two contradict each other.
    """
    checkpoint = Checkpoint(path)
    check_table(checkpoint.leaves, checkpoint.conditioning, checkpoint.path)
    return checkpoint


def check_table(
    leaves: Mapping[str, Leaf], conditioning: TaskConditioning | None, where: str
) -> None:
    """Raises `CheckpointError` where a task conditioning does not fit the task table."""
    table = find_table(leaves, where)
    if table is not None and len(leaves[table].shape) != 2:
        raise CheckpointError(
            f"{where}: a task table is [num_tasks, features], {table} has the shape "
            f"{list(leaves[table].shape)}"
        )
    if conditioning is None:
        return
    if table is None:
        raise CheckpointError(
            f"{where} has a {FILE} but no task table (a leaf task_embeddings/embedding); "
            f"delete {FILE} if that is right"
        )
    stated = conditioning.num_tasks, conditioning.features
    if stated != leaves[table].shape:
        raise CheckpointError(
            f"{where}: {FILE} is about a table of {list(stated)}, "
            f"{table} has the shape {list(leaves[table].shape)}; one of them is from elsewhere"
        )


def is_table(path: str) -> bool:
    """Whether a leaf is a task table."""
    return any(re.fullmatch(pattern, path) for pattern in TASK_TABLES)


def find_table(leaves: Iterable[str], where: str = "the checkpoint") -> str | None:
    """The path of the task table, if there is one; `CheckpointError` where there are several."""
    tables = [path for path in leaves if is_table(path)]
    if len(tables) > 1:
        raise CheckpointError(f"{where} has several task tables: {tables}")
    return tables[0] if tables else None


def read_pieces(source: Leaves, path: str) -> Iterator[tuple[Box, np.ndarray]]:
    """The pieces of a leaf, in order."""
    for box in source.leaves[path].boxes():
        yield box, source.read(path, box)


def read_leaf(source: Leaves, path: str, box: Box | None = None) -> Shaped[np.ndarray, "..."]:
    """A leaf, or any part of it, in one array; beyond that array it takes the memory of a piece."""
    leaf = source.leaves[path]
    box = tuple(slice(0, n) for n in leaf.shape) if box is None else box
    value = np.empty(box_shape(box), leaf.dtype)
    if not value.size:
        return value
    # Chunks can be read from the beginning alone: other boxes are cut from all that is there.
    aligned = is_aligned(box, leaf)
    cut = grid(box, piece_shape(box_shape(box), leaf.dtype.itemsize)) if aligned else leaf.boxes()
    for piece in cut:
        common = overlap(box, piece)
        if common is not None:
            value[relative(common, box)] = source.read(path, piece)[relative(common, piece)]
    return value


def _is_orbax(path: epath.Path) -> bool:
    return (path / METADATA).exists()


def _locate(path: epath.Path) -> epath.Path:
    """The directory or file with the arrays."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist, or may not be seen")
    if not path.is_dir():
        if is_safetensors(path):
            return path
        raise CheckpointError(f"{path} is neither a directory nor a .safetensors file")
    if _is_orbax(path) or is_safetensors(path):
        return path
    for item in _ITEMS:
        if (path / item).is_dir():
            return _locate(path / item)
    names = sorted(child.name for child in path.iterdir())
    steps = [name for name in names if name.isdecimal()]  # some pad them with zeros
    if steps:
        return _locate(path / max(steps, key=int))
    raise CheckpointError(
        f"{path} is no checkpoint: it has no {METADATA} (Orbax), no .safetensors file, no params "
        f"and no step, but {names[:8] if names else 'is empty'}. A directory that was being "
        "written when its process ended looks so; take an earlier step"
    )


def _layout(full: dict[str, str]) -> str:
    path, name = next(iter(full.items()))
    if name.endswith("/value") and not path.endswith("/value"):
        return "trained"
    return "released" if name != path else "plain"


def _conditioning(root: epath.Path) -> TaskConditioning | None:
    """From beside the arrays, or for `<run>/<step>/params` from the step or the run."""
    directory = root if root.is_dir() else root.parent
    places = [directory]
    if directory.name in _ITEMS:
        places.append(directory.parent)
    if places[-1].name.isdecimal():
        places.append(places[-1].parent)
    for place in places:
        if (place / FILE).exists():
            with explained(f"{place / FILE} is malformed"):
                text = (place / FILE).read_text()
                return TaskConditioning.from_json(text, str(place / FILE))
    return None
