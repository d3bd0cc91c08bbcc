"""What every operation that writes a checkpoint shares."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

from taskcond.checkpoint.conditioning import FILE, TaskConditioning, check_table
from taskcond.checkpoint.open import Checkpoint
from taskcond.checkpoint.storage.leaf import Leaf, Progress, StrPath
from taskcond.checkpoint.storage.output import Output
from taskcond.checkpoint.storage.write import PiecesOf, write
from taskcond.trees import plain_paths

RECIPE = "recipe.json"
"""The file in which a combined checkpoint says what it is made of."""


def output_at(
    path: StrPath,
    sources: tuple[Checkpoint, ...] = (),
    *,
    format: str,
    overwrite: bool,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Output:
    """Returns an `Output` that has been checked against the checkpoints that are read."""
    return Output.at(
        path,
        format,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
        sources=[place for source in sources for place in (source.path, str(source.root))],
        companions=(FILE, RECIPE),
    )


def write_checkpoint(
    output: Output,
    leaves: Mapping[str, Leaf],
    pieces: PiecesOf,
    conditioning: TaskConditioning | None,
    table: str | None = None,
    more_files: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Writes leaves, and beside them what their task table means.

    Args:
        output: Where and how.
        leaves: The leaves by path.
        pieces: Gives the chunks of a leaf, in order.
        conditioning: The content of `task_conditioning.json`, if there is one.
        table: The path of the task table, if it is known.
        more_files: Gives further text files; it is called when all pieces have been written.

    Raises:
        CheckpointError: Writing is refused or fails; everything is as before then.
    """
    check_table(leaves, conditioning, str(output.path), table)

    def files() -> dict[str, str]:
        own = {} if conditioning is None else {FILE: conditioning.to_json()}
        return {**own, **more_files()}

    names = dict.fromkeys(leaves)
    plain = (
        {name: name for name in names}
        if output.like is not None
        else _stored_paths(names, output.format.prefix)
    )
    stored = {path: leaves[name] for path, name in plain.items()}
    write(output, stored, lambda path: pieces(plain[path]), files)


def _stored_paths(leaves: Iterable[str], prefix: str) -> dict[str, str]:
    """Maps the paths to store to the plain ones.

    Readers take a level that all leaves share, `params` or `value`, for the layout. Where a tree
    has such a level of its own, it is therefore stored below another one.
    """
    paths = list(leaves)
    for outer, inner in itertools.product(("", "params/"), ("", "/value")):
        stored = {f"{outer}{path}{inner}": path for path in paths}
        full = {f"{prefix}{path}": path for path in stored}
        if all(stored[full[name]] == path for path, name in plain_paths(full).items()):
            return stored
    raise AssertionError("with both levels added, a reader removes exactly these")
