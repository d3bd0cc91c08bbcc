"""A directory that appears under its name only when it is complete.

It is written in a working directory beside its place, and renamed at the end. To replace an old
directory, the two are exchanged in one step if the system can do that (Linux). Elsewhere the old
one is first moved into the working directory. The next run for the same name cleans up after a
killed process: it restores an old directory that has no successor, and removes everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from taskcond.checkpoint.storage.errors import as_checkpoint_error
from taskcond.checkpoint.storage.leftovers import Workplace, appear, clean_up

_EXCHANGE, _AT_FDCWD = 2, -100  # constants of renameat2(2)


@contextlib.contextmanager
def staged(out: Path, check: Callable[[], None], only: str | None = None) -> Iterator[Path]:
    """Yields an empty directory that becomes `out` at the end, unless there is an error.

    If `out` is a symbolic link, its target is written and the link stays.

    Args:
        out: Where the directory is to appear.
        check: Raises if an existing `out` must not be replaced. It is called just before `out` is
            replaced, as `out` may have appeared in the meantime.
        only: The name of a file in the directory, which alone becomes `out`.

    Raises:
        CheckpointError: There is no permission, or the disk is full. Everything is as before then.
    """
    out = out.resolve()
    with as_checkpoint_error(f"{out} cannot be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        clean_up(out)
        place = Workplace(out)
    try:
        with as_checkpoint_error(f"{out} cannot be written"):
            place.new.mkdir()
        yield place.new
        with as_checkpoint_error(f"{out} cannot be written"):
            sync(place.new)
            new = place.new / only if only else place.new
            while not appear(new, out):
                check()
                if _exchange(new, out):
                    break
                place.move_away()
            _sync_directory(out.parent)
    finally:
        place.remove()


def sync(directory: Path) -> None:
    """Returns when the content of a directory would survive a power failure."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(parent))


def write_text(path: Path, text: str) -> None:
    """Writes a text file; an existing file is replaced completely or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two paths in one step; returns `False` if the system cannot do that."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _EXCHANGE) == 0


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
