"""`staged`: a directory that appears under its name only when it is complete.

It is written beside its place, as `.NAME.HOST.PID.partial`, and renamed at the end. To replace an
old directory the two are exchanged in one step where the system can do that (Linux); elsewhere the
old one is first renamed to `.NAME.HOST.PID.old`. Whatever a killed process leaves is dealt with by
the next run for the same name: an old directory without successor is put back, the rest is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from taskcond.checkpoint.combining.recipe import RECORD
from taskcond.checkpoint.conditioning import FILE
from taskcond.checkpoint.storage.errors import CheckpointError, explained
from taskcond.checkpoint.storage.orbax import METADATA, is_part
from taskcond.checkpoint.storage.safetensors import INDEX_SUFFIX, SUFFIX

_EXCHANGE, _AT_FDCWD = 2, -100  # of renameat2(2)


@contextlib.contextmanager
def staged(out: Path, overwrite: bool, sources: Iterable[str] = ()) -> Iterator[Path]:
    """Yields an empty directory; it becomes `out` at the end, unless there is an error.

    Where `out` is a symbolic link, what it points to is written, and the link stays.

    Args:
        out: Where the directory is to appear.
        overwrite: Whether a checkpoint that is there may be replaced.
        sources: What is read meanwhile: must not be `out`, nor within each other.

    Raises:
        CheckpointError: `out` exists, is no checkpoint, or overlaps with a source; no permission;
            the disk is full. Then everything is as before.
    """
    out = out.resolve()
    partial = _beside(out, "partial")
    with explained(f"{out} cannot be written"):
        check_place(out, overwrite, sources)
        _recover(out)
        _remove(partial)
        partial.mkdir(parents=True)
    try:
        with _named(partial, out):
            yield partial
        with explained(f"{out} cannot be written"):
            sync(partial)
            if out.exists():
                check_place(out, overwrite, sources)  # it may be there only since a moment ago
                _replace(partial, out)
            else:
                os.rename(partial, out)
            _sync_directory(out.parent)
    finally:
        _remove(partial)


@contextlib.contextmanager
def _named(partial: Path, out: Path) -> Iterator[None]:
    """Errors name `out`, and not where it is prepared."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(partial), str(out))) from error


def check_place(out: Path, overwrite: bool, sources: Iterable[str] = ()) -> None:
    """Raises `CheckpointError` where `staged` would refuse to write."""
    place = out.resolve()
    for source in sources:
        if "://" in source:
            continue
        other = Path(source).resolve()
        if place == other or other in place.parents or place in other.parents:
            raise CheckpointError(
                f"{out} and the source {source} are the same or within each other; write elsewhere"
            )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{out} exists; overwrite=True (--overwrite) replaces it")
    if not out.is_dir() or not any(map(_is_root, out.iterdir())):
        raise CheckpointError(f"{out} is no checkpoint, and will not be overwritten")
    if foreign := sorted(child.name for child in out.iterdir() if not _is_part(child)):
        raise CheckpointError(
            f"{out} also holds {foreign}, which would be lost; move them, or write elsewhere"
        )


def _is_root(child: Path) -> bool:
    return child.name == METADATA or child.name.endswith((SUFFIX, INDEX_SUFFIX))


def _is_part(child: Path) -> bool:
    """Whether an entry of a directory belongs to a checkpoint."""
    return _is_root(child) or child.name in (FILE, RECORD) or is_part(child)


def _recover(out: Path) -> None:
    """Cleans up after processes that were killed."""
    if not out.parent.is_dir():
        return
    for child in out.parent.iterdir():
        prefix, _, state = child.name.rpartition(".")
        if state not in ("partial", "old") or not prefix.startswith(f".{out.name}."):
            continue
        host, _, pid = prefix.removeprefix(f".{out.name}.").rpartition(".")
        if host != _host() or not pid.isdecimal() or _is_running(int(pid)):
            continue
        if state == "old" and not out.exists():
            os.rename(child, out)
        else:
            _remove(child)


def _replace(new: Path, old: Path) -> None:
    """Puts `new` in the place of `old`, and removes that."""
    if not _exchange(new, old):
        aside = _beside(old, "old")
        os.rename(old, aside)
        os.rename(new, old)
        _remove(aside)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two directories in one step; `False` where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _EXCHANGE) == 0


def _beside(out: Path, state: str) -> Path:
    return out.with_name(f".{out.name}.{_host()}.{os.getpid()}.{state}")


def _host() -> str:
    return socket.gethostname().replace(os.sep, "_")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return pid != os.getpid()


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def sync(directory: Path) -> None:
    """Returns when all that is in a directory would survive a power failure."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(parent))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
