"""Remote files, fetched once into the cache that openpi uses too.

A file or folder `gs://BUCKET/PATH` lies in `BUCKET/PATH` below the folder of the variable
`OPENPI_DATA_HOME`, otherwise below `~/.cache/openpi`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
_PUBLIC = {"openpi-assets", "big_vision"}
_CHUNK = 8 * 2**20


def is_remote(path: str) -> bool:
    """Says whether a path is a URL that `fetch` downloads.

    >>> is_remote("gs://openpi-assets/checkpoints/pi05_base/params"), is_remote("runs/first")
    (True, False)
    """
    return path.startswith(tuple(f"{scheme}://" for scheme in _LIBRARIES))


def cached(path: str) -> Path:
    """Returns where a remote file or folder lies once it is fetched, and other paths as they are.

    >>> cached("gs://big_vision/paligemma_tokenizer.model").parts[-2:]
    ('big_vision', 'paligemma_tokenizer.model')
    """
    if not is_remote(path):
        return Path(path)
    home = Path(os.environ.get("OPENPI_DATA_HOME") or "~/.cache/openpi").expanduser()
    url = urlsplit(path)
    return home / url.netloc / url.path.strip("/")


def fetch(path: str) -> Path:
    """Returns a local path, after downloading a remote file or folder unless it is there.

    A download that was interrupted goes on where it ended, also within a file. Other processes that
    want the same wait.

    Raises:
        ImportError: The library for this kind of URL is missing. The message names it.
        FileNotFoundError: There is nothing at the URL.
        OSError: There is no space, or a file does not have its size.
    """
    local = cached(path)
    if not is_remote(path) or local.exists():
        return local
    files = _Remote(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    with _lock(local.with_suffix(".lock")):
        if not local.exists():
            partial = local.with_name(f"{local.name}.part")
            files.download(partial)
            partial.rename(local)
    return local


class _Remote:
    """The files at a URL, and their sizes."""

    def __init__(self, path: str):
        self._path = path
        self._system, root = _file_system(path)
        found = self._system.find(root, detail=True)
        self._sizes = {
            name.removeprefix(root.rstrip("/")).strip("/"): (name, int(about["size"]))
            for name, about in found.items()
            if not name.endswith("/")
        }
        if not self._sizes:
            raise FileNotFoundError(f"there is nothing at {path}; correct the path")

    def download(self, folder: Path) -> None:
        """Completes a copy of the files."""
        total = sum(size for _, size in self._sizes.values())
        done = sum(_size(folder / name) for name in self._sizes)
        _require_space(folder.parent, total - done)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        with Progress(*columns, TransferSpeedColumn()) as progress:
            bar = progress.add_task(f"fetching {self._path}", total=total, completed=done)
            for name, (remote, size) in self._sizes.items():
                self._complete(folder / name if name else folder, remote, size, progress, bar)

    def _complete(self, file: Path, remote: str, size: int, progress: Progress, bar: Any) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if _size(file) > size:
            file.unlink()  # it is not a part of this file
        with open(file, "ab") as out, self._system.open(remote, "rb") as source:
            source.seek(out.tell())
            while chunk := source.read(_CHUNK):
                out.write(chunk)
                progress.update(bar, advance=len(chunk))
        if _size(file) != size:
            raise OSError(
                f"{remote} has {size} bytes, but {_size(file)} came; run the command again"
            )


def _file_system(path: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it."""
    scheme, bucket, *_ = urlsplit(path)
    # Otherwise gcsfs first asks for the kind of the bucket, which takes a minute where it may not.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    options = {"token": "anon"} if scheme == "gs" and bucket in _PUBLIC else {}
    try:
        return fsspec.url_to_fs(path, **options)
    except ImportError as error:
        library = _LIBRARIES[scheme]
        raise ImportError(
            f"{scheme}:// needs {library}, which is not installed. Run pip install {library}, or "
            "copy the files yourself and pass the local path."
        ) from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{needed / 2**30:.1f} GiB are left to fetch into {folder}, but {free / 2**30:.1f} GiB "
            "are free; make space, or set OPENPI_DATA_HOME to a folder on another disk"
        )


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
