"""`open_checkpoint`: finds out what a path is, and reads it leaf by leaf."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.conditioning import FILE, TaskConditioning, check_table, find_table
from taskcond.checkpoint.storage.boxes import Box
from taskcond.checkpoint.storage.errors import CheckpointError, as_checkpoint_error
from taskcond.checkpoint.storage.files import check_regular
from taskcond.checkpoint.storage.formats import FORMATS, find_format
from taskcond.checkpoint.storage.leaf import Leaf, Leaves, StrPath
from taskcond.checkpoint.storage.safetensors import SafetensorsReader
from taskcond.checkpoint.training import find_params
from taskcond.trees import layout_name, plain_paths

_ITEMS = ("params", "default")  # the directories in which trainers put the parameters of a step
_ASSETS = "assets"  # the directory of a step in which trainers put small files
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of what Orbax is still writing


class Checkpoint:
    """A checkpoint on disk, open for reading.

    Attributes:
        path: The path as it was given.
        root: The directory or file that holds the arrays.
        kind: The format, `"Orbax"` or `"safetensors"`.
        layout: `"released"` (all leaves below `params`), `"trained"` (each leaf under `value`),
            `"plain"`, or `"training state"`.
        leaves: `{path: leaf}`; the paths are the same for every layout. Of a training state these
            are the parameters.
        store: All leaves as they are in the files. A training state has more of them, such as
            moments of the optimizer.
        full: `{path: path in the files}` of `leaves`.
        everything: `{path: path in the files}` of all leaves of a training state.
        conditioning: The content of `task_conditioning.json`, or `None` if there is no such file.

    Args:
        path: A directory of Orbax or safetensors, a `.safetensors` file or its index, a directory
            that holds a single one of any name, the directory of a training step, or that of all
            steps, which stands for the last step. It may be local, `gs://` or `s3://`.
        table: The path of the task table, if neither its name nor `task_conditioning.json` says it.

    Raises:
        CheckpointError: There is nothing, something else, or an incomplete or damaged checkpoint.
    """

    def __init__(self, path: StrPath, table: str | None = None):
        self.path = os.fspath(path)
        with as_checkpoint_error(f"{self.path} cannot be read"):
            self.root = _locate(epath.Path(path))
            format = find_format(self.root)
            assert format is not None
            self.store: Leaves = format.open(self.root)
        self.kind = format.title
        self.everything = plain_paths(self.store.leaves)
        self.full, self.layout = _parameters(self.everything)
        if format.has_torch_names:
            renamed = {path: _table_name(path) for path in self.full}
            self.full = {
                path if new in self.full else new: self.full[path] for path, new in renamed.items()
            }
        self.leaves: dict[str, Leaf] = {
            path: self.store.leaves[full] for path, full in self.full.items()
        }
        self.conditioning = _conditioning(self.root, self.store, epath.Path(path))
        self._table = table

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a part of a leaf; this is cheap for pieces (`Leaf.pieces`) in order."""
        return self.store.read(self.full[path], box)

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
        table = self._table
        if table is None and self.conditioning is not None:
            table = self.conditioning.table
        return find_table(self.leaves, self.path, table)

    @property
    def beside(self) -> dict[str, list[str]]:
        """The leaves of a training state that are no parameters, by their first key."""
        groups: dict[str, list[str]] = {}
        parameters = set(self.full.values())
        for path in sorted(path for path, x in self.everything.items() if x not in parameters):
            groups.setdefault(path.split("/")[0], []).append(path)
        return groups


def open_checkpoint(path: StrPath, table: str | None = None) -> Checkpoint:
    """Opens a checkpoint and checks that its task conditioning fits its task table.

    Args:
        path: See `Checkpoint`.
        table: See `Checkpoint`.

    Raises:
        CheckpointError: It cannot be read, or the two contradict each other.
    """
    checkpoint = Checkpoint(path, table)
    check_table(checkpoint.leaves, checkpoint.conditioning, checkpoint.path, table)
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
    items = [name for name in names if _is_item(path / name)]
    if len(items) == 1:
        return _locate(path / items[0])
    if items:
        raise CheckpointError(
            f"{path} holds several checkpoints, {items}; pass the path of one of them, such as "
            f"{path / items[-1]}"
        )
    marks = ", ".join(format.marks for format in FORMATS.values())
    raise CheckpointError(
        f"{path} is not a checkpoint: it has none of {marks}, params or a step, but "
        f"{names[:8] if names else 'is empty'}. A directory that was being written when its "
        "process ended looks like this; use an earlier step, or the path of the directory that "
        "has one of them"
    )


def _is_item(path: epath.Path) -> bool:
    """Returns whether an entry of a directory is a checkpoint, or a step that holds some."""
    if path.name.startswith(".") or _UNFINISHED in path.name or not path.is_dir():
        return False
    places = [path, *(child for child in path.iterdir() if child.is_dir())]
    return any(find_format(place) is not None for place in places)


def _parameters(everything: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Returns those of all leaves that are parameters, and the name of the layout."""
    params = find_params(everything)
    if params is None:
        return dict(everything), layout_name(everything)
    inner = {
        path.removeprefix(params): full
        for path, full in everything.items()
        if path.startswith(params)
    }
    return {path: inner[name] for path, name in plain_paths(inner).items()}, "training state"


def _table_name(path: str) -> str:
    # PyTorch calls the table of an embedding `weight`.
    is_table = path == "task_embeddings/weight" or path.endswith("/task_embeddings/weight")
    return path.removesuffix("weight") + "embedding" if is_table else path


def _conditioning(root: epath.Path, store: Leaves, given: epath.Path) -> TaskConditioning | None:
    """Reads the task conditioning beside the arrays; for `RUN/STEP/params` also from above.

    It may lie in `assets` of such a directory, or in the header of a single file.
    """
    if isinstance(store, SafetensorsReader) and FILE in store.texts:
        with as_checkpoint_error(f"{FILE} in the header of {root} is malformed"):
            return TaskConditioning.from_json(store.texts[FILE], str(root))
    places = [root if root.is_dir() else root.parent]
    while given in places[-1].parents:
        places.append(places[-1].parent)
    if places[-1].name in _ITEMS or places[-1].parent.name.isdecimal():
        places.append(places[-1].parent)
    if places[-1].name.isdecimal():
        places.append(places[-1].parent)
    for file in (place / part / FILE for place in places for part in ("", _ASSETS)):
        if file.exists():
            check_regular([file])
            with as_checkpoint_error(f"{file} is malformed"):
                return TaskConditioning.from_json(file.read_text(), str(file))
    return None
