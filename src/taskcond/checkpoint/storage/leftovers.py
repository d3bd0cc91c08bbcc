"""Working directories beside an output; the next run removes those whose process is dead.

A working directory `.NAME.RANDOM.partial` has a file `lock`, on which its process holds a lock
(flock). The kernel gives the lock back however the process ends. Names of hosts and numbers of
processes would not tell as much, because a container has its own.

On some shared file systems another machine does not see the lock. The file therefore says in which
boot of a machine it was locked. If that is not this one, a directory is left alone until nothing
has been written in it for a day. Where files cannot be locked at all, nothing is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

_LOCK = "lock"
_QUIET_SECONDS = 24 * 3600


class Workplace:
    """A working directory beside an output, which this process has locked.

    Attributes:
        new: A path in it for what is being written.

    Args:
        out: The output; its parent must exist.
    """

    def __init__(self, out: Path):
        while True:
            path = tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)
            self._path = Path(path)
            descriptor = _lock_new(self._path / _LOCK)
            if descriptor is not None:
                break
        self._out, self._descriptor = out, descriptor
        self.new = self._path / "new"

    def move_away(self) -> None:
        """Moves the output into the directory, unless another run has moved it into its own."""
        _delete(self._path / "old")  # of an earlier call; another run has written the output since
        try:
            os.rename(self._out, self._path / "old")
        except FileNotFoundError:
            if not self._path.exists():  # it is not the output that is missing
                raise

    def remove(self) -> None:
        """Removes the directory; what was moved away goes back if there is nothing in its place."""
        _remove(self._path, self._out)
        os.close(self._descriptor)


def appear(new: Path, out: Path) -> bool:
    """Gives a directory or file its name; returns `False` if there is something of that name."""
    if out.exists():
        return False
    try:
        if new.is_dir():
            os.rename(new, out)
        else:
            _link(new, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False  # another run has been faster
    return True


def clean_up(out: Path) -> None:
    """Removes what killed processes left beside an output, and restores what they moved away."""
    name = re.compile(rf"\.{re.escape(out.name)}\.\w{{8}}\.partial", re.DOTALL)
    for child in list(out.parent.iterdir()):
        if not name.fullmatch(child.name) or child.is_symlink():
            continue
        descriptor = _lock_dead(child)
        if descriptor is None:
            continue
        _remove(child, out)
        os.close(descriptor)


def _remove(place: Path, out: Path) -> None:
    if (place / "old").exists():
        appear(place / "old", out)
    for name in ("new", "old", ""):  # the lock goes last, or nobody could remove the rest
        _delete(place / name)


def _delete(path: Path) -> None:
    """Deletes a directory or file as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def _link(new: Path, out: Path) -> None:
    """Gives a file its name; replaces nothing that has appeared meanwhile.

    A file system without hard links cannot promise that.
    """
    try:
        os.link(new, out)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        os.rename(new, out)


def _lock_new(path: Path) -> int | None:
    """Creates and locks a file; returns `None` if another run has taken it for a leftover."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass  # this file system has no locks, so that nobody will remove the directory
    os.write(descriptor, _boot())
    os.fsync(descriptor)  # other machines see it before anything else is there
    if not path.exists():
        os.close(descriptor)
        return None
    return descriptor


def _lock_dead(directory: Path) -> int | None:
    """Locks a working directory whose process is dead; returns `None` if it may be alive."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            directory.rmdir()  # succeeds only if the process had not written anything
        return None
    except OSError:  # it belongs to another user
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    boot = os.read(descriptor, 256)  # empty if the process was killed before it did anything
    if boot not in (b"", _boot()) and not _is_quiet(directory):
        os.close(descriptor)
        return None
    return descriptor


def _is_quiet(directory: Path) -> bool:
    """Returns whether nothing has been written in a directory for a day."""
    times = [os.stat(parent).st_mtime for parent, _, _ in os.walk(directory)]
    times += [
        os.lstat(os.path.join(parent, name)).st_mtime
        for parent, _, names in os.walk(directory)
        for name in names
    ]
    return time.time() - max(times) > _QUIET_SECONDS


def _boot() -> bytes:
    """Returns what identifies this boot of this machine, in every container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return socket.gethostname().encode()
