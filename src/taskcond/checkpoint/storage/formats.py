"""The file formats that there are. A new one is one class with the members of `Format`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.storage.boxes import Box
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf, Leaves
from taskcond.checkpoint.storage.orbax import Orbax
from taskcond.checkpoint.storage.safetensors import Safetensors


@runtime_checkable
class Writer(Protocol):
    """Writes the leaves of a checkpoint, piece by piece."""

    def write(self, path: str, box: Box, value: Shaped[np.ndarray, "..."]) -> None:
        """Writes a piece of a leaf."""
        ...

    def close(self) -> None:
        """Completes the files."""
        ...

    def abandon(self) -> None:
        """Stops all writing; also harmless after `close`."""
        ...


@runtime_checkable
class Format(Protocol):
    """A way to keep arrays in files.

    Attributes:
        name: The name that users give, as in `format="orbax"`.
        title: The name in reports.
        marks: The files by which the format is recognised, in words.
        prefix: Begins the paths of all leaves that are written.
        has_torch_names: Whether names are usually given by PyTorch.
        file_suffix: Ends the name of an output that is one file; empty if outputs are directories.
        file_name: The name of that file while it is written.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def marks(self) -> str: ...  # noqa: D102
    @property
    def prefix(self) -> str: ...  # noqa: D102
    @property
    def has_torch_names(self) -> bool: ...  # noqa: D102
    @property
    def file_suffix(self) -> str: ...  # noqa: D102
    @property
    def file_name(self) -> str: ...  # noqa: D102

    def holds(self, path: epath.Path) -> bool:
        """Returns whether a path is a checkpoint in this format."""
        ...

    def is_root(self, entry: Path) -> bool:
        """Returns whether an entry of a directory makes that a checkpoint in this format."""
        ...

    def is_part(self, root: Path, name: str) -> bool:
        """Returns whether a file of a checkpoint's directory belongs to this format.

        Args:
            root: The directory.
            name: The path of the file in it.
        """
        ...

    def check(self, leaves: Mapping[str, Leaf]) -> None:
        """Raises `CheckpointError` listing all leaves that this format cannot hold."""
        ...

    def open(self, root: epath.Path) -> Leaves:
        """Opens a checkpoint for reading."""
        ...

    def create(
        self, root: Path, leaves: Mapping[str, Leaf], like: Leaves | None, *, one_file: bool
    ) -> Writer:
        """Begins to write a checkpoint, with the structure of `like` if that says more.

        Args:
            root: The directory.
            leaves: The leaves by path.
            like: The source of a training state.
            one_file: Whether `file_name` is to hold all of it.
        """
        ...

    def embed(self, file: Path, texts: Mapping[str, str]) -> None:
        """Puts text files into an output that is one file."""
        ...

    def verify(self, root: Path, leaves: Mapping[str, Leaf]) -> None:
        """Reads everything back that has a checksum."""
        ...


FORMATS: dict[str, Format] = {format.name: format for format in (Orbax(), Safetensors())}


def get_format(name: str) -> Format:
    """Returns the format of this name; raises `CheckpointError` if there is none."""
    if name not in FORMATS:
        raise CheckpointError(f"format is {name!r}, but must be one of {list(FORMATS)}")
    return FORMATS[name]


def find_format(path: epath.Path) -> Format | None:
    """Returns the format that a path is in, or `None`."""
    return next((format for format in FORMATS.values() if format.holds(path)), None)
