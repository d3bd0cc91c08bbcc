"""`write_checkpoint`: leaves that come in pieces become a verified directory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.open import StrPath, check_table
from taskcond.checkpoint.storage.atomic import check_place, staged, sync
from taskcond.checkpoint.storage.errors import CheckpointError, explained
from taskcond.checkpoint.storage.leaf import Box, Leaf, concurrently
from taskcond.checkpoint.storage.orbax import OrbaxStore, OrbaxWriter, check_names
from taskcond.checkpoint.storage.safetensors import (
    SafetensorsStore,
    SafetensorsWriter,
    check_safetensors,
)

_READERS = 2
"""Leaves that are read at a time: decoding is what takes longest."""

Progress = Callable[[int, int], None]
"""Is called with the bytes that are done and those that there are."""


def write_checkpoint(
    out: StrPath,
    leaves: Mapping[str, Leaf],
    pieces: Callable[[str], Iterable[tuple[Box, np.ndarray]]],
    *,
    format: str = "orbax",
    overwrite: bool = False,
    sources: Iterable[str] = (),
    conditioning: TaskConditioning | None = None,
    extra: Callable[[], Mapping[str, str]] = dict,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a checkpoint; it appears at `out` when it is complete and has been read back.

    Args:
        out: A local directory; for openpi, one that ends in `params`.
        leaves: What to write, by plain path, with the chunks to write it in.
        pieces: Gives the chunks of a leaf and their values, in order.
        format: `"orbax"` (all below `params`, as released weights are) or `"safetensors"`.
        overwrite: Whether to replace a checkpoint that is there.
        sources: Paths that are read meanwhile.
        conditioning: What to write to `task_conditioning.json`.
        extra: Gives the names and the content of more text files, once the pieces are written.
        dry_run: Whether to refuse what cannot be written, and write nothing.
        progress: See `Progress`.

    Raises:
        CheckpointError: Refused or failed; then everything is as before.
    """
    out = check_output(out, format, overwrite, sources)
    check_table(leaves, conditioning, str(out))
    (check_safetensors if format == "safetensors" else check_names)(leaves)
    if dry_run:
        return
    # Orbax gets the layout of released weights, which openpi reads.
    full = {path if format == "safetensors" else f"params/{path}": path for path in leaves}
    todo = {name: leaves[path] for name, path in full.items()}
    with staged(out, overwrite, sources) as partial:
        writer = (SafetensorsWriter if format == "safetensors" else OrbaxWriter)(partial, todo)
        total, done = sum(leaf.nbytes for leaf in todo.values()), 0
        try:
            # The largest first, so that no thread is left with one at the end.
            order = sorted(todo, key=lambda name: -todo[name].nbytes)
            parts = (_with_name(name, pieces(full[name])) for name in order)
            with contextlib.closing(concurrently(parts, _READERS)) as made:
                for name, box, value in made:
                    writer.write(name, box, value)
                    done += value.nbytes
                    if progress is not None:
                        progress(done, total)
            writer.close()
        finally:
            writer.abandon()  # before the directory is removed from under it
        if conditioning is not None:
            conditioning.save(partial)
        for name, text in extra().items():
            (partial / name).write_text(text, encoding="utf-8")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(sync, partial)  # the disk writes while the processors read back
            _verify(partial, todo, format)


def check_output(out: StrPath, format: str, overwrite: bool, sources: Iterable[str]) -> Path:
    """Raises `CheckpointError` where `write_checkpoint` would refuse to begin."""
    if format not in ("orbax", "safetensors"):
        raise CheckpointError(f"format must be 'orbax' or 'safetensors', got {format!r}")
    if "://" in str(out):
        raise CheckpointError(f"{out} is not local; write to a disk and copy the directory")
    with explained(f"{out} cannot be written"):
        check_place(Path(out), overwrite, sources)
    return Path(out)


def leaf_of(value: Any) -> Leaf:
    """How an array in memory is written."""
    dtype = np.dtype(value.dtype).newbyteorder("=")
    return Leaf(tuple(value.shape), dtype, tuple(value.shape)).chunked()


def _with_name(
    name: str, pieces: Iterable[tuple[Box, np.ndarray]]
) -> Iterator[tuple[str, Box, np.ndarray]]:
    for box, value in pieces:
        yield name, box, value


def _verify(root: Path, leaves: Mapping[str, Leaf], format: str) -> None:
    """Opens what was written, and reads all of it where the format has checksums."""
    store = (SafetensorsStore if format == "safetensors" else OrbaxStore)(epath.Path(root))
    for name, leaf in leaves.items():
        found = store.leaves.get(name)
        if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            raise CheckpointError(f"{root}: {name} was not written as it should be")
    if format == "orbax":

        def check(piece: tuple[str, Box]) -> None:
            store.read(*piece)

        pieces = ((name, box) for name in leaves for box in store.leaves[name].chunks())
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(check, pieces):
                pass
