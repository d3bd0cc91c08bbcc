"""`Output`: where and how a checkpoint is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from taskcond.checkpoint.storage.errors import CheckpointError, as_checkpoint_error
from taskcond.checkpoint.storage.files import walk_files
from taskcond.checkpoint.storage.formats import FORMATS, Format, get_format
from taskcond.checkpoint.storage.leaf import Leaves, Progress, StrPath

_SHOWN = 20  # of the files that would be lost


@dataclasses.dataclass(frozen=True)
class Output:
    """The place and the manner in which a checkpoint is written.

    Attributes:
        path: The directory that appears when the checkpoint is complete; or the file, if its name
            ends as those of the format do.
        format: The format of its files.
        overwrite: Whether to replace a checkpoint at `path`.
        dry_run: Whether to refuse what cannot be written, and then write nothing.
        progress: See `Progress`.
        sources: Paths that are read while `path` is written.
        companions: Names of the other files that belong to a checkpoint.
        like: The source of a training state, whose names and structure are kept.
    """

    path: Path
    format: Format
    overwrite: bool = False
    dry_run: bool = False
    progress: Progress | None = None
    sources: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()
    like: Leaves | None = None

    @classmethod
    def at(
        cls,
        path: StrPath,
        format: str,
        *,
        overwrite: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
        sources: Iterable[str] = (),
        companions: Iterable[str] = (),
    ) -> Output:
        """Returns an output whose place has been checked.

        Raises:
            CheckpointError: The format does not exist or is not that of the name, or `path` is
                remote, exists, is not a checkpoint, or overlaps with a source.
        """
        if "://" in str(path):
            raise CheckpointError(
                f"{path} is remote, but checkpoints can only be written to a local disk; write "
                "there, and copy the directory"
            )
        output = cls(
            Path(path),
            get_format(format),
            overwrite,
            dry_run,
            progress,
            tuple(sources),
            tuple(companions),
        )
        meant = next((x.name for x in FORMATS.values() if _is_named(output.path, x)), format)
        if meant != format:
            raise CheckpointError(
                f"{path} has the name of a {meant} file, but the format is {format}; pass "
                f"format={meant!r} (--format {meant}), or another name"
            )
        with as_checkpoint_error(f"{path} cannot be written"):
            output.check_place()
        return output

    @property
    def is_file(self) -> bool:
        """Says whether the checkpoint is to be one file."""
        return _is_named(self.path, self.format)

    def check_place(self) -> None:
        """Raises `CheckpointError` if nothing may be written at `path`."""
        out, place = self.path, self.path.resolve()
        for source in self.sources:
            if "://" in source:
                continue
            other = Path(source).resolve()
            if place == other or other in place.parents or place in other.parents:
                raise CheckpointError(
                    f"{out} and the source {source} are the same or one lies within the other; "
                    "write to another path"
                )
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        if not self.overwrite:
            raise CheckpointError(f"{out} exists; overwrite=True (--overwrite) replaces it")
        if self.is_file and out.is_file():
            return
        if not out.is_dir() or self.is_file or not any(map(_is_root, out.iterdir())):
            raise CheckpointError(
                f"{out} is not a checkpoint and will not be overwritten; write to another path"
            )
        foreign = sorted(name for name in walk_files(out) if not self._is_part(name))
        if foreign:
            more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
            raise CheckpointError(
                f"{out} also holds {foreign[:_SHOWN]}{more}, which would be lost; move them, or "
                "write to another path"
            )

    def _is_part(self, name: str) -> bool:
        formats = FORMATS.values()
        return name in self.companions or any(x.is_part(self.path, name) for x in formats)


def _is_named(path: Path, format: Format) -> bool:
    """Returns whether a path has the name of a checkpoint that is one file."""
    return bool(format.file_suffix) and path.name.endswith(format.file_suffix)


def _is_root(entry: Path) -> bool:
    return any(format.is_root(entry) for format in FORMATS.values())
