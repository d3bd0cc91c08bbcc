"""The content of a directory: regular files, and things that must not be read or lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from taskcond.checkpoint.storage.errors import CheckpointError


def check_regular(paths: Iterable[epath.Path]) -> None:
    """Raises `CheckpointError` listing what exists, but is not a regular file.

    To open a pipe would wait for ever. Remote paths are not checked, as there are no pipes.
    """
    local = [str(path) for path in paths if "://" not in str(path)]
    # For etils, a pipe is a file.
    if odd := [path for path in local if os.path.exists(path) and not os.path.isfile(path)]:
        raise CheckpointError(
            f"these are not regular files, and are not read: {odd}; download or copy them again"
        )


def walk_files(root: Path) -> Iterator[str]:
    """Yields everything below a directory except directories, as relative paths with `/`.

    A link to a directory is not followed, and counts as a file.
    """
    for parent, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            yield Path(parent, name).relative_to(root).as_posix()
