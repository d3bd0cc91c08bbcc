"""`open_checkpoint`: finds out what a path is, and reads it leaf by leaf."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.conditioning import FILE, TaskConditioning, check_table, find_table
from taskcond.checkpoint.storage.boxes import Box
from taskcond.checkpoint.storage.errors import CheckpointError, as_checkpoint_error
from taskcond.checkpoint.storage.formats import FORMATS, find_format
from taskcond.checkpoint.storage.leaf import Leaf, StrPath
from taskcond.trees import layout_name, plain_paths

_ITEMS = ("params", "default")  # the directories in which trainers put the parameters of a step


class Checkpoint:
    """A checkpoint on disk, open for reading.

    Attributes:
        path: The path as it was given.
        root: The directory or file that holds the arrays.
        kind: The format, `"Orbax"` or `"safetensors"`.
        layout: `"released"` (all leaves below `params`), `"trained"` (each leaf under `value`) or
            `"plain"`.
        leaves: `{path: leaf}`; the paths are the same for every layout.
        conditioning: The content of `task_conditioning.json`, or `None` if there is no such file.

    Args:
        path: A directory of Orbax or safetensors, a `.safetensors` file or its index, the
            directory of a training step, or that of all steps, which stands for the last step.
            It may be local, `gs://` or `s3://`.

    Raises:
        CheckpointError: There is nothing, something else, or an incomplete or damaged checkpoint.
    """

    def __init__(self, path: StrPath):
        self.path = os.fspath(path)
        with as_checkpoint_error(f"{self.path} cannot be read"):
            self.root = _locate(epath.Path(path))
            format = find_format(self.root)
            assert format is not None
            self._store = format.open(self.root)
        self.kind = format.title
        self._full = plain_paths(self._store.leaves)
        self.layout = layout_name(self._full)
        if format.has_torch_names:
            renamed = {path: _table_name(path) for path in self._full}
            self._full = {
                path if new in self._full else new: self._full[path]
                for path, new in renamed.items()
            }
        self.leaves: dict[str, Leaf] = {
            path: self._store.leaves[full] for path, full in self._full.items()
        }
        self.conditioning = _conditioning(self.root)

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a part of a leaf; this is cheap for pieces (`Leaf.pieces`) in order."""
        return self._store.read(self._full[path], box)

    def paths_in(self, tree: Iterable[str]) -> dict[str, str]:
        """Maps plain parameter paths to the paths in a model's tree, which may have any layout.

        A tree that has paths of this checkpoint is plain, even if its own keys are called `params`
        or `value`.
        """
        paths = list(tree)
        if any(path in self.leaves for path in paths):
            return {path: path for path in paths}
        return plain_paths(paths)

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


def _locate(path: epath.Path) -> epath.Path:
    """Returns the directory or file that holds the arrays."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist, or you may not see it; check the path")
    if find_format(path) is not None:
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is neither a directory nor a .safetensors file; pass one of them"
        )
    for item in _ITEMS:
        if (path / item).is_dir():
            return _locate(path / item)
    names = sorted(child.name for child in path.iterdir())
    steps = [name for name in names if name.isdecimal()]  # some trainers pad them with zeros
    if steps:
        return _locate(path / max(steps, key=int))
    marks = ", ".join(format.marks for format in FORMATS.values())
    raise CheckpointError(
        f"{path} is not a checkpoint: it has none of {marks}, params or a step, but "
        f"{names[:8] if names else 'is empty'}. A directory that was being written when its "
        "process ended looks like this; use an earlier step"
    )


def _table_name(path: str) -> str:
    # PyTorch calls the table of an embedding `weight`.
    is_table = path == "task_embeddings/weight" or path.endswith("/task_embeddings/weight")
    return path.removesuffix("weight") + "embedding" if is_table else path


def _conditioning(root: epath.Path) -> TaskConditioning | None:
    """Reads the task conditioning beside the arrays; for `RUN/STEP/params` also from above."""
    directory = root if root.is_dir() else root.parent
    places = [directory]
    if directory.name in _ITEMS:
        places.append(directory.parent)
    if places[-1].name.isdecimal():
        places.append(places[-1].parent)
    for place in places:
        if (place / FILE).exists():
            with as_checkpoint_error(f"{place / FILE} is malformed"):
                text = (place / FILE).read_text()
                return TaskConditioning.from_json(text, str(place / FILE))
    return None
