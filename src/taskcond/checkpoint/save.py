"""`save_params`: from arrays into a checkpoint's files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.output import output_at, write_checkpoint
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf, Piece, Progress, StrPath
from taskcond.trees import Tree, flatten, plain_paths


def save_params(
    params: Tree,
    path: StrPath,
    *,
    conditioning: TaskConditioning | None = None,
    format: str = "orbax",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes parameters as a checkpoint that plain Orbax reads, in the layout of released weights.

    A tree that lies wholly below `params`, or whose leaves all lie under `value`, is in a layout of
    checkpoints; it is written, and loaded again, without that level.

    Args:
        params: Nested dicts, or an `nnx.State`, of arrays that this process can reach.
        path: A local directory, which appears when it is complete. For openpi it must end in
            `params`. With `format="safetensors"`, a path that ends in `.safetensors` is one file,
            and the conditioning is in its header.
        conditioning: The meaning of the task table, which is written beside it.
        format: `"orbax"`, or `"safetensors"`, in which names are the paths joined by dots.
        overwrite: Whether to replace an existing checkpoint.
        progress: A function that is called with the number of bytes done and their total.

    Raises:
        CheckpointError: Writing is refused or fails; everything is as before then.

    >>> import pathlib, tempfile
    >>> from taskcond.checkpoint import load_params
    >>> path = pathlib.Path(tempfile.mkdtemp(), "params")
    >>> save_params({"dense": {"kernel": np.ones((2, 3), np.float32)}}, path)
    >>> load_params(path)["dense"]["kernel"].shape
    (2, 3)
    """
    flat = flatten(params)
    arrays = {plain: flat[name] for plain, name in plain_paths(flat).items()}
    if strange := [name for name, x in arrays.items() if not hasattr(x, "dtype")]:
        raise CheckpointError(
            f"these leaves are not arrays: {strange}; make them arrays, and lists of arrays "
            "dicts with the keys 0, 1, ..., or leave them out"
        )
    far = [name for name, x in arrays.items() if not getattr(x, "is_fully_addressable", True)]
    if far:
        raise CheckpointError(
            f"other processes hold parts of {far}; save these parameters with Orbax itself"
        )
    leaves = {name: Leaf.of(value) for name, value in arrays.items()}

    def pieces(name: str) -> Iterator[Piece]:
        value = np.asarray(arrays[name]).astype(leaves[name].dtype, copy=False)
        for box in leaves[name].chunks():
            yield box, value[(*box, ...)]  # with `...` also a scalar stays an array

    output = output_at(path, format=format, overwrite=overwrite, progress=progress)
    write_checkpoint(output, leaves, pieces, conditioning)
