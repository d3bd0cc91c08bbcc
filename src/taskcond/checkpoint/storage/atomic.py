"""A directory that appears under its name only when it is complete.

It is written beside its place, as `.NAME.HOST.PID.partial`, and renamed at the end. To replace an
old directory, the two are exchanged in one step if the system can do that (Linux). Elsewhere the
old one is first renamed to `.NAME.HOST.PID.old`. The next run for the same name cleans up after a
killed process: it restores an old directory that has no successor, and removes everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from taskcond.checkpoint.storage.errors import as_checkpoint_error

_EXCHANGE, _AT_FDCWD = 2, -100  # constants of renameat2(2)


@contextlib.contextmanager
def staged(out: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Yields an empty directory that becomes `out` at the end, unless there is an error.

    If `out` is a symbolic link, its target is written and the link stays.

    Args:
        out: Where the directory is to appear.
        check: Raises if an existing `out` must not be replaced. It is called just before `out` is
            replaced, as `out` may have appeared in the meantime.

    Raises:
        CheckpointError: There is no permission, or the disk is full. Everything is as before then.
    """
    out = out.resolve()
    partial = _beside(out, "partial")
    with as_checkpoint_error(f"{out} cannot be written"):
        _clean_up(out)
        _remove(partial)
        partial.mkdir(parents=True)
    try:
        yield partial
        with as_checkpoint_error(f"{out} cannot be written"):
            sync(partial)
            if out.exists():
                check()
                _replace(partial, out)
            else:
                os.rename(partial, out)
            _sync_directory(out.parent)
    finally:
        _remove(partial)


def sync(directory: Path) -> None:
    """Returns when the content of a directory would survive a power failure."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(parent, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(parent))


def write_text(path: Path, text: str) -> None:
    """Writes a text file; an existing file is replaced completely or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _clean_up(out: Path) -> None:
    """Removes or restores what killed processes left behind."""
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
    """Puts `new` in the place of `old`, and removes `old`."""
    if not _exchange(new, old):
        aside = _beside(old, "old")
        os.rename(old, aside)
        os.rename(new, old)
        _remove(aside)


def _exchange(a: Path, b: Path) -> bool:
    """Exchanges two directories in one step; returns `False` if the system cannot do that."""
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
    except OSError:  # the process belongs to another user
        return True
    return pid != os.getpid()


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
