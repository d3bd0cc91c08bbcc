"""`write`: leaves that come in pieces become a verified checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from taskcond.checkpoint.storage.atomic import staged, sync
from taskcond.checkpoint.storage.errors import CheckpointError, as_checkpoint_error
from taskcond.checkpoint.storage.formats import Format
from taskcond.checkpoint.storage.leaf import Leaf, Piece
from taskcond.checkpoint.storage.output import Output
from taskcond.checkpoint.storage.threads import interleave

_READERS = 2
"""The number of leaves that are read at a time, as decoding takes longest."""

PiecesOf = Callable[[str], Iterable[Piece]]
"""A function that gives the chunks of a leaf, in order."""


def write(
    output: Output,
    leaves: Mapping[str, Leaf],
    pieces: PiecesOf,
    files: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Writes a checkpoint, which appears when it is complete and has been read back.

    Args:
        output: Where and how.
        leaves: The leaves by path, with the chunks to write them in.
        pieces: See `PiecesOf`.
        files: Gives the names and the content of further text files. It is called when all pieces
            have been written.

    Raises:
        CheckpointError: Writing is refused or fails; everything is as before then.
    """
    output.format.check(leaves)
    if output.dry_run:
        return
    prefix = output.format.prefix if output.like is None else ""
    stored = {prefix + path: leaf for path, leaf in leaves.items()}
    only = output.format.file_name if output.is_file else None
    with staged(output.path, output.check_place, only) as partial:
        _write_leaves(output, partial, stored, lambda name: pieces(name.removeprefix(prefix)))
        content = files()
        with as_checkpoint_error(f"{output.path} cannot be written"):
            if only is not None:
                output.format.embed(partial / only, content)
            else:
                for name, text in content.items():
                    (partial / name).write_text(text, encoding="utf-8")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(sync, partial)  # the disk writes while the processors read back
            _verify(output.format, partial, stored)


def _write_leaves(output: Output, root: Path, leaves: Mapping[str, Leaf], pieces: PiecesOf) -> None:
    def named(name: str) -> Iterator[tuple[str, Piece]]:
        for piece in pieces(name):
            yield name, piece

    refused = f"{output.path} cannot be written"
    with as_checkpoint_error(refused):
        writer = output.format.create(root, leaves, output.like, one_file=output.is_file)
    total, done = sum(leaf.nbytes for leaf in leaves.values()), 0
    # The largest leaf comes first, so that at the end no thread works on one alone.
    order = sorted(leaves, key=lambda name: -leaves[name].nbytes)
    try:
        with contextlib.closing(interleave(map(named, order), _READERS)) as made:
            for name, (box, value) in made:
                with as_checkpoint_error(refused):
                    writer.write(name, box, value)
                done += value.nbytes
                if output.progress is not None:
                    output.progress(done, total)
        with as_checkpoint_error(refused):
            writer.close()
    finally:
        writer.abandon()  # before the directory under the writer is removed


def _verify(format: Format, root: Path, leaves: Mapping[str, Leaf]) -> None:
    """Opens what was written, and reads all of it if the format has checksums."""
    found = format.open(epath.Path(root)).leaves
    bad = [
        name
        for name, leaf in leaves.items()
        if name not in found or (found[name].shape, found[name].dtype) != (leaf.shape, leaf.dtype)
    ]
    if bad:
        raise CheckpointError(f"{root}: {bad} were not written completely; try again")
    format.verify(root, leaves)
