"""`load_params`: from a checkpoint's files into arrays in memory or on devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Shaped

from taskcond.checkpoint.open import open_checkpoint
from taskcond.checkpoint.storage.boxes import Box
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf, Leaves, Progress, StrPath, read_leaf
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.merging.finite import cast_array, count_nonfinite, warn_nonfinite
from taskcond.merging.plan import MergeRules, plan_merge
from taskcond.merging.report import MergeError
from taskcond.trees import Tree, flatten, rebuild, sharding_of


def load_params(
    path: StrPath,
    like: Tree | None = None,
    sharding: jax.sharding.Sharding | Tree | None = None,
    *,
    scale: float | None = None,
    fusion: str | None = None,
    vocabulary: TaskVocabulary | None = None,
    table: str | None = None,
    progress: Progress | None = None,
) -> dict[Any, Any]:
    """Reads a checkpoint leaf by leaf, and puts each leaf where it belongs.

    The largest leaf comes first, so that on a CPU the peak of memory is little more than the
    parameters.

    Args:
        path: See `Checkpoint`.
        like: The model's parameters: nested dicts, or an `nnx.State`, of arrays or
            `jax.ShapeDtypeStruct`. It gives structure, dtypes and shardings, and must have the
            paths and shapes of the checkpoint; if it does not, use `merge_params`. `None` gives the
            checkpoint's own tree and dtypes; of a training state, the parameters.
        sharding: One sharding for all leaves, or a tree of shardings. It takes precedence over the
            shardings of `like`. Each process reads only the shards of its devices.
        scale: The model's factor on task rows, which is compared with the checkpoint's.
        fusion: The model's fusion, which is compared with the checkpoint's.
        vocabulary: The model's vocabulary, which is compared with the checkpoint's.
        table: The path of the task table; see `Checkpoint`.
        progress: A function that is called with the number of bytes done and their total.

    Returns:
        Nested dicts. The leaves are of the type `jax.Array` if there is a `sharding`, or a `like`
        that does not consist of NumPy arrays. Otherwise they are NumPy arrays.

    Warns:
        UserWarning: Some tasks were never trained, or leaves that were cast have NaN or Inf; the
            warning names them.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its task conditioning is not the
            model's.
        MergeError: Paths or shapes differ from `like`; one error lists all of them.
    """
    checkpoint = open_checkpoint(path, table)
    if checkpoint.conditioning is not None:
        checkpoint.conditioning.check(scale=scale, fusion=fusion, vocabulary=vocabulary)
    flat = dict(checkpoint.leaves) if like is None else flatten(like)
    source: Leaves = checkpoint
    full = checkpoint.paths_in(flat)
    if any(path in flat for paths in checkpoint.beside.values() for path in paths):
        # A whole training state is asked for.
        source, full = checkpoint.store, {checkpoint.everything.get(x, x): x for x in flat}
    target = {path: flat[name] for path, name in full.items()}
    try:
        _, report = plan_merge(target, source.leaves, MergeRules())
    except MergeError as error:
        call = "params, report = merge_params(like, load_params(path), {})"
        raise MergeError(error.problems, call) from None
    given = _shardings(sharding, flat)
    shardings = {path: given[name] for path, name in full.items()}
    dtypes = {path: np.dtype(leaf.dtype) for path, leaf in target.items()}
    on_device = [path for path in target if shardings[path] or not _is_numpy(target[path])]
    _check_dtypes({path: dtypes[path] for path in on_device})
    result: dict[str, Any] = {}
    nonfinite: dict[str, int] = {}
    total, done = sum(leaf.nbytes for leaf in source.leaves.values()), 0
    for path in sorted(target, key=lambda path: -source.leaves[path].nbytes):
        reader = _Reader(source, path, dtypes[path])
        result[full[path]] = reader.load(shardings[path], path in on_device)
        if reader.nonfinite:
            nonfinite[path] = reader.nonfinite
        done += source.leaves[path].nbytes
        if progress is not None:
            progress(done, total)
    warn_nonfinite(nonfinite, report.cast)
    return _nested(result) if like is None else rebuild(like, result)


class _Reader:
    """A leaf that is read and cast; counts the NaN and Inf among values that were cast."""

    def __init__(self, source: Leaves, path: str, dtype: np.dtype[Any]):
        self._source, self._path, self._dtype = source, path, dtype
        self.nonfinite = 0

    def load(
        self, sharding: jax.sharding.Sharding | None, on_device: bool
    ) -> Shaped[Array, "..."] | Shaped[np.ndarray, "..."]:
        """Reads the leaf, or the shards of this process's devices."""
        if not on_device:
            return self._read(None)
        if sharding is None:
            return jax.device_put(self._read(None)).block_until_ready()
        shape = self._source.leaves[self._path].shape
        shards: dict[Any, np.ndarray] = {}  # several devices may hold the same shard

        def shard(index: Any) -> np.ndarray:
            box = tuple(slice(*part.indices(n)[:2]) for part, n in zip(index, shape, strict=True))
            key = tuple((part.start, part.stop) for part in box)
            if key not in shards:
                shards[key] = self._read(box)
            return shards[key]

        return jax.make_array_from_callback(shape, sharding, shard).block_until_ready()

    def _read(self, box: Box | None) -> np.ndarray:
        value = read_leaf(self._source, self._path, box)
        if value.dtype == self._dtype:
            return value
        value = cast_array(value, self._dtype)
        self.nonfinite += count_nonfinite(value)
        return value


def _shardings(
    sharding: jax.sharding.Sharding | Tree | None, flat: Mapping[str, Any]
) -> dict[str, jax.sharding.Sharding | None]:
    """Returns the sharding of each leaf; `None` where nothing is said."""
    own = {name: None if _is_numpy(leaf) else sharding_of(leaf) for name, leaf in flat.items()}
    if sharding is None:
        return own
    if not isinstance(sharding, Mapping):
        return dict.fromkeys(flat, sharding)
    given = flatten(sharding)
    if extra := sorted(set(given) - set(flat)):
        raise CheckpointError(f"sharding has leaves that the parameters lack: {extra}; remove them")
    return {**own, **given}


def _is_numpy(leaf: Any) -> bool:
    return isinstance(leaf, Leaf | np.ndarray)


def _check_dtypes(dtypes: Mapping[str, np.dtype[Any]]) -> None:
    truncated = {
        path: str(dtype)
        for path, dtype in dtypes.items()
        if jax.dtypes.canonicalize_dtype(dtype) != dtype
    }
    if truncated:
        raise CheckpointError(
            f"jax would cut these to 32 bits: {truncated}; switch on jax_enable_x64, or ask for "
            "another dtype with like"
        )


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
