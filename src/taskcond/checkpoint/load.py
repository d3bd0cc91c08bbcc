"""`load_params` and `save_params`: between files and arrays in memory or on devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Shaped

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.open import Checkpoint, StrPath, open_checkpoint, read_leaf
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Box, Leaf
from taskcond.checkpoint.storage.write import Progress, leaf_of, write_checkpoint
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.merging.merge import plan_merge
from taskcond.trees import flatten, rebuild, unwrap


def load_params(
    path: StrPath,
    like: Mapping[Any, Any] | None = None,
    sharding: jax.sharding.Sharding | Mapping[Any, Any] | None = None,
    *,
    scale: float | None = None,
    fusion: str | None = None,
    vocabulary: TaskVocabulary | None = None,
    progress: Progress | None = None,
) -> dict[Any, Any]:
    """Reads a checkpoint, leaf by leaf, straight to where the leaves belong.

    The largest leaf goes first, so that on a CPU the peak is little more than the parameters.

    Args:
        path: See `Checkpoint`.
        like: The model's parameters: nested dicts, or an `nnx.State`, of arrays or
            `jax.ShapeDtypeStruct`s. Gives structure, dtypes and shardings, and must have the
            paths and shapes of the checkpoint; `merge_params` is for where it has not. `None`
            stands for the checkpoint's own tree and dtypes.
        sharding: One for all leaves, or a tree of them; over those of `like`. Each process reads
            the shards of its devices alone.
        scale: The model's factor on task rows, to be compared with the checkpoint's.
        fusion: The model's, to be compared with the checkpoint's.
        vocabulary: The model's, to be compared with the checkpoint's.
        progress: Is called with the bytes that are done and those that there are.

    Returns:
        Nested dicts: of `jax.Array`s where there is a `sharding`, or a `like` that is not made of
        NumPy arrays, and of NumPy arrays elsewhere.

    Warns:
        UserWarning: Tasks that were never trained, by name.

    Raises:
        CheckpointError: It cannot be read, or its task conditioning is not the model's.
        MergeError: Paths or shapes differ from `like`; all of them at once.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.conditioning is not None:
        checkpoint.conditioning.check(scale=scale, fusion=fusion, vocabulary=vocabulary)
    flat = dict(checkpoint.leaves) if like is None else flatten(like)
    full = unwrap(flat)
    target = {path: flat[name] for path, name in full.items()}
    plan_merge(target, checkpoint.leaves)
    shardings = (
        flatten(sharding) if isinstance(sharding, Mapping) else dict.fromkeys(flat, sharding)
    )
    if isinstance(sharding, Mapping) and (extra := sorted(set(shardings) - set(flat))):
        raise CheckpointError(f"sharding has leaves that the parameters lack: {extra}")
    places = {name: _placement(target[name], shardings.get(full[name])) for name in target}
    narrow = {
        name: str(target[name].dtype)
        for name, place in places.items()
        if place is not np
        and jax.dtypes.canonicalize_dtype(target[name].dtype) != target[name].dtype
    }
    if narrow:
        raise CheckpointError(
            f"jax would cut these to 32 bits: {narrow}; switch on jax_enable_x64, or ask for "
            "another dtype with like"
        )
    result: dict[str, Any] = {}
    total, done = sum(leaf.nbytes for leaf in checkpoint.leaves.values()), 0
    for name in sorted(target, key=lambda name: -checkpoint.leaves[name].nbytes):
        result[full[name]] = _load(checkpoint, name, target[name].dtype, places[name])
        done += checkpoint.leaves[name].nbytes
        if progress is not None:
            progress(done, total)
    return _nested(result) if like is None else rebuild(like, result)


def save_params(
    params: Mapping[Any, Any],
    path: StrPath,
    *,
    conditioning: TaskConditioning | None = None,
    format: str = "orbax",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes parameters as a checkpoint that plain Orbax reads, in the layout of released weights.

    Args:
        params: Nested dicts, or an `nnx.State`, of arrays that this process can reach.
        path: A local directory, which appears when it is complete; for openpi, one that ends in
            `params`.
        conditioning: What the task table means; is written beside it.
        format: `"orbax"`, or `"safetensors"`: names are then the paths joined by dots.
        overwrite: Whether to replace a checkpoint that is there.
        progress: Is called with the bytes that are done and those that there are.

    Raises:
        CheckpointError: Refused or failed; then everything is as before.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "params")
    >>> save_params({"dense": {"kernel": np.ones((2, 3), np.float32)}}, path)
    >>> load_params(path)["dense"]["kernel"].shape
    (2, 3)
    """
    flat = flatten(params)
    arrays = {plain: flat[name] for plain, name in unwrap(flat).items()}
    if strange := [name for name, x in arrays.items() if not hasattr(x, "dtype")]:
        raise CheckpointError(f"no arrays: {strange}; make them arrays, or leave them out")
    far = [name for name, x in arrays.items() if not getattr(x, "is_fully_addressable", True)]
    if far:
        raise CheckpointError(f"other processes hold parts of {far}; save those with Orbax itself")

    def pieces(name: str) -> Iterator[tuple[Box, np.ndarray]]:
        value = np.asarray(arrays[name]).astype(leaves[name].dtype, copy=False)
        for box in leaves[name].chunks():
            yield box, value[(*box, ...)]  # an array also where it has no axes

    leaves = {name: leaf_of(value) for name, value in arrays.items()}
    write_checkpoint(
        path,
        leaves,
        pieces,
        conditioning=conditioning,
        format=format,
        overwrite=overwrite,
        progress=progress,
    )


def _placement(target: Any, sharding: Any) -> Any:
    """A sharding; `None` for the default device; `np` for NumPy."""
    if sharding is not None:
        return sharding
    if isinstance(target, Leaf | np.ndarray):
        return np
    committed = isinstance(target, jax.ShapeDtypeStruct) or getattr(target, "committed", False)
    return target.sharding if committed else None


def _load(
    checkpoint: Checkpoint, path: str, dtype: Any, where: Any
) -> Shaped[Array, "..."] | Shaped[np.ndarray, "..."]:
    def read(box: Box | None) -> np.ndarray:
        return read_leaf(checkpoint, path, box).astype(dtype, copy=False)

    if where is np:
        return read(None)
    if where is None:
        return jax.device_put(read(None)).block_until_ready()
    shape = checkpoint.leaves[path].shape
    shards: dict[Any, np.ndarray] = {}  # several devices may hold the same one

    def shard(index: Any) -> np.ndarray:
        box = tuple(slice(*part.indices(n)[:2]) for part, n in zip(index, shape, strict=True))
        key = tuple((part.start, part.stop) for part in box)
        if key not in shards:
            shards[key] = read(box)
        return shards[key]

    return jax.make_array_from_callback(shape, where, shard).block_until_ready()


def _nested(flat: Mapping[str, Any]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for path in sorted(flat):
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise CheckpointError(f"{path} lies below another leaf")
        node[name] = flat[path]
    return tree
