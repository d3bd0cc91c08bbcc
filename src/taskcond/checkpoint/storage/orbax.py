"""Orbax directories, leaf by leaf and piece by piece, by way of TensorStore.

This file is the one place that knows the format; no Orbax API is used, as those have changed while
the files have not. A directory holds

- `_METADATA`: JSON, the keys of every leaf. Releases differ: newer ones say `use_ocdbt`, older ones
  leave it to `manifest.ocdbt` being there;
- `manifest.ocdbt` and `d/`: a key-value store with a Zarr array under each leaf's name, its keys
  joined by dots. Or, without OCDBT, a directory for each leaf.

Orbax writes a leaf as one Zstandard chunk for each device that held it, up to gigabytes; such a
chunk is decoded as a stream. We write chunks of at most `PIECE_BYTES` with a CRC-32C each (Zarr 3),
which every reader checks, Orbax itself among them. In files that Orbax wrote, the index has
checksums and the array data has none: there a flipped bit is found only if it breaks the
compression.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.storage.errors import CheckpointError, explained
from taskcond.checkpoint.storage.leaf import (
    PIECE_BYTES,
    Box,
    Leaf,
    Shape,
    as_bytes,
    box_shape,
    flat_index,
    is_contiguous,
    relative,
    split,
)

METADATA = "_METADATA"
_PARTS = {
    METADATA,
    "_CHECKPOINT_METADATA",
    "_sharding",
    "_strings.json",
    "array_metadatas",
    "checkpoint",
    "commit_success.txt",
    "d",
    "descriptor",
    "manifest.ocdbt",
}
_EMPTY = {"None", "Dict", "List", "Tuple", "NamedTuple", "Unknown", "string"}  # no array behind
_PYTREE_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
_BATCH_BYTES = 16 << 20  # that are committed together
_STREAMS = 32  # chunks that may be half decoded
_BLOCK = 1 << 20  # encoded bytes that are read at a time


class OrbaxStore:
    """An Orbax directory, open for reading.

    Attributes:
        leaves: `{path: leaf}`, the path being the keys as they are in the file, joined by `/`.
    """

    kind = "Orbax"

    def __init__(self, root: epath.Path):
        self._root = root
        names, options = self._names()
        # The pool holds the nodes of OCDBT's index; without it every read parses them anew.
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 24}})
        self._base: Any = _kvstore(root)
        if (root / "manifest.ocdbt").exists():
            self._base = {"driver": "ocdbt", "base": self._base}
        elif any(child.name.startswith("ocdbt.process_") for child in root.iterdir()):
            raise CheckpointError(
                f"{root} is half-written: it has no manifest.ocdbt, as saving was interrupted"
            )
        with explained(f"{root} is damaged or half-written"):
            opened = {path: self._open(name, options) for path, name in names.items()}
            self._arrays = {path: future.result() for path, future in opened.items()}
        self.leaves = {path: _leaf(array) for path, array in self._arrays.items()}
        self._compressor = {path: _stream_compressor(a) for path, a in self._arrays.items()}
        self._streams: dict[tuple[str, str], _ChunkStream] = {}
        self._lock = threading.Lock()
        self._chunk: tuple[str, Box, np.ndarray] | None = None

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """A part of a leaf; cheap where the box is a piece, and they are read in order."""
        leaf = self.leaves[path]
        with explained(f"{self._root}: {path} is damaged"):
            if math.prod(leaf.chunk) * leaf.dtype.itemsize <= PIECE_BYTES:
                return self._arrays[path][box].read().result()
            parts = list(split(box, leaf.chunk))
            if len(parts) == 1:
                return self._read_part(path, box)
            value = np.empty(box_shape(box), leaf.dtype)
            for part in parts:
                value[relative(part, box)] = self._read_part(path, part)
            return value

    def _read_part(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """What lies in one large chunk."""
        leaf = self.leaves[path]
        chunk = tuple(
            slice(part.start // k * k, min(part.start // k * k + k, n))
            for part, k, n in zip(box, leaf.chunk, leaf.shape, strict=True)
        )
        inside, is_whole = relative(box, chunk), box_shape(chunk) == leaf.chunk
        if self._compressor[path] and is_whole and is_contiguous(inside, leaf.chunk):
            return self._read_stream(path, chunk, inside)
        held = self._chunk
        if held is None or held[:2] != (path, chunk):
            self._chunk = None
            self._chunk = held = path, chunk, self._arrays[path][chunk].read().result()
        return held[2][inside]

    def _names(self) -> tuple[dict[str, str], dict[str, Any]]:
        """The name of each leaf, and how they are to be opened."""
        with explained(f"{self._root}/{METADATA} is damaged or half-written"):
            metadata = json.loads((self._root / METADATA).read_text())
            rows = [
                tuple(str(part["key"]) for part in entry["key_metadata"])
                for entry in metadata["tree_metadata"].values()
                if entry["value_metadata"]["value_type"] not in _EMPTY
            ]
        names = {"/".join(keys): ".".join(keys) for keys in rows}
        if not rows or len(names) < len(rows):
            raise CheckpointError(f"{self._root}: {'two' if rows else 'no'} leaves of one path")
        # Where zeros were written too, a missing chunk is damage and not zeros.
        zeros_are_there = bool(metadata.get("store_array_data_equal_to_fill_value"))
        return names, {
            "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
            "fill_missing_data_reads": not zeros_are_there,
        }

    def _open(self, name: str, options: Mapping[str, Any]) -> Any:
        base = self._base
        is_key = isinstance(base, dict) and base["driver"] == "ocdbt"
        # Elsewhere a name is a directory, and must not lead out of this one.
        if not is_key and ("/" in name or "\\" in name or name in (".", "..")):
            raise CheckpointError(f"{self._root}: {name!r} is no name for a leaf")
        kvstore = ts.KvStore.Spec(base) / f"{name}/"
        spec = {**options, "kvstore": kvstore.to_json(), "recheck_cached_data": "open"}
        return ts.open(spec, open=True, context=self._context)

    def _read_stream(self, path: str, chunk: Box, inside: Box) -> np.ndarray:
        leaf, kvstore = self.leaves[path], self._arrays[path].kvstore
        start = flat_index(inside, leaf.chunk) * leaf.dtype.itemsize
        shape = box_shape(inside)
        index = (part.start // k for part, k in zip(chunk, leaf.chunk, strict=True))
        key = ".".join(map(str, index))
        if self._compressor[path] == "none":
            data = _read_value(kvstore, key, start, math.prod(shape) * leaf.dtype.itemsize)
            return np.frombuffer(data, leaf.dtype).reshape(shape)
        # One for each chunk: a piece may lie in several, and threads read several leaves.
        with self._lock:
            stream = self._streams.pop((path, key), None)
        if stream is None or stream.position > start:
            stream = _ChunkStream(_Value(kvstore, key))
        stream.skip(start - stream.position)
        value = stream.read(shape, leaf.dtype)
        if stream.position < math.prod(leaf.chunk) * leaf.dtype.itemsize:
            with self._lock:
                self._streams[path, key] = stream
                if len(self._streams) > _STREAMS:
                    del self._streams[next(iter(self._streams))]
        return value


class OrbaxWriter:
    """Writes an Orbax directory, piece by piece; every leaf in its chunks."""

    def __init__(self, root: Path, leaves: Mapping[str, Leaf]):
        self._root = root
        base = {
            "driver": "ocdbt",
            # Synced once, by the caller, when everything is there.
            "base": {"driver": "file", "path": f"{root.resolve()}/", "file_io_sync": False},
            "target_data_file_size": 16 * PIECE_BYTES,
        }
        context = ts.Context()
        with explained(f"{root} cannot be written"):
            opened = {
                path: ts.open(_new_array(base, path, leaf), create=True, context=context)
                for path, leaf in leaves.items()
            }
            for future in opened.values():
                future.exception()  # none may write any more when this raises
            self._arrays = {path: future.result() for path, future in opened.items()}
        self._leaves = leaves
        self._batch, self._batched = ts.Transaction(), 0
        self._pending: deque[Any] = deque()

    def write(self, path: str, box: Box, value: np.ndarray) -> None:
        """Writes a piece; returns when all but the last few are written."""
        with explained(f"{self._root} cannot be written"):
            # We never write to `value` again, so that it need not be copied.
            self._arrays[path].with_transaction(self._batch)[box].write(
                np.ascontiguousarray(value).reshape(box_shape(box)),
                can_reference_source_data_indefinitely=True,
            ).copy.result()
            self._batched += value.nbytes
            if self._batched >= _BATCH_BYTES:
                self._commit()
                while len(self._pending) > 1:
                    self._pending.popleft().result()

    def _commit(self) -> None:
        """Begins to write what is gathered: one file, one change of the index."""
        self._pending.append(self._batch.commit_async())
        self._batch, self._batched = ts.Transaction(), 0

    def abandon(self) -> None:
        """Returns when nothing writes any more, whether it succeeded or not."""
        self._batch.abort()
        while self._pending:
            self._pending.popleft().exception()

    def close(self) -> None:
        """Waits for the pieces, and adds what makes the directory an Orbax one."""
        with explained(f"{self._root} cannot be written"):
            self._commit()
            while self._pending:
                self._pending.popleft().result()
            (self._root / METADATA).write_text(json.dumps(_metadata(self._leaves)))
            now = time.time_ns()
            about = {
                "item_handlers": _PYTREE_HANDLER,
                "metrics": {},
                "performance_metrics": {},
                "init_timestamp_nsecs": now,
                "commit_timestamp_nsecs": now,
                "custom_metadata": {},
            }
            (self._root / "_CHECKPOINT_METADATA").write_text(json.dumps(about))


class _ChunkStream:
    """A Zstandard chunk, decoded from its beginning to its end."""

    def __init__(self, value: _Value):
        import zstandard

        self.position = 0
        source: Any = value
        self._file: Any = zstandard.ZstdDecompressor().stream_reader(source, read_size=_BLOCK)

    def read(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        value = np.empty(shape, dtype)
        view = as_bytes(value)
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise ValueError("a chunk ends too early")
            done += count
        self.position += len(view)
        return value

    def skip(self, nbytes: int) -> None:
        while nbytes > 0:
            step = min(nbytes, PIECE_BYTES)
            self.read((step,), np.dtype(np.uint8))
            nbytes -= step


class _Value:
    """The encoded bytes under a key, as a file; while a block is decoded the next one is read."""

    def __init__(self, kvstore: Any, key: str):
        self._kvstore, self._key, self._position = kvstore, key, 0
        self._next: Any = self._request()

    def read(self, size: int = -1) -> bytes:
        """The next block, whatever the `size`; empty at the end."""
        try:
            result = self._next.result()
        except ValueError:  # the block would go past the end
            data = _read_value(self._kvstore, self._key, self._position)
        else:
            data = _checked(result, self._key)
        self._position += len(data)
        self._next = self._request()
        return data

    def _request(self) -> Any:
        block = slice(self._position, self._position + _BLOCK)
        return self._kvstore.read(self._key, byte_range=block)


def _read_value(kvstore: Any, key: str, start: int, size: int | None = None) -> bytes:
    """A part of the bytes under a key: `size` of them, or all to the end."""
    byte_range = slice(start, None if size is None else start + size)
    return _checked(kvstore.read(key, byte_range=byte_range).result(), key)


def _checked(result: Any, key: str) -> bytes:
    if result.state != "value":
        raise CheckpointError(f"chunk {key} is missing")
    return result.value


def _stream_compressor(array: Any) -> str:
    """The compressor of an array whose chunks can be decoded as streams; "" for others."""
    spec = array.spec().to_json()
    metadata = spec["metadata"]
    if spec["driver"] != "zarr" or metadata["order"] != "C" or metadata["filters"]:
        return ""
    if metadata.get("dimension_separator", ".") != ".":
        return ""
    dtype = metadata["dtype"]
    if not isinstance(dtype, str) or not (dtype[0] in "<|" or dtype == "bfloat16"):
        return ""
    name = (metadata["compressor"] or {"id": "none"})["id"]
    # Without zstandard, TensorStore decodes the whole chunk at once.
    can = {"none": True, "zstd": importlib.util.find_spec("zstandard") is not None}
    return name if can.get(name) else ""


def _kvstore(root: epath.Path) -> Any:
    url = str(root)
    return f"{url}/" if "://" in url else {"driver": "file", "path": f"{Path(url).resolve()}/"}


def _leaf(array: Any) -> Leaf:
    chunk = array.chunk_layout.read_chunk.shape  # None for an array without axes
    return Leaf(tuple(array.shape), array.dtype.numpy_dtype, tuple(chunk or ()))


def is_part(entry: Path) -> bool:
    """Whether this is what Orbax writes into a checkpoint's directory."""
    is_leaf = (entry / ".zarray").exists() or (entry / "zarr.json").exists()
    return entry.name in _PARTS or entry.name.startswith("ocdbt.process_") or is_leaf


def check_names(leaves: Mapping[str, Leaf]) -> None:
    """Raises `CheckpointError` for leaves that a directory cannot hold."""
    problems = []
    if not leaves:
        problems.append("there are none")
    if empty := [path for path, leaf in leaves.items() if not leaf.size]:
        problems.append(f"arrays without entries: {empty}; leave them out")
    names = Counter(path.replace("/", ".") for path in leaves)
    if double := [name for name, count in names.items() if count > 1]:
        problems.append(f"the same name, once `/` has become a dot: {double}")
    if odd := [path for path in leaves if {"", ".", ".."} & set(path.split("/"))]:
        problems.append(f"paths with an empty part: {odd}")
    if below := [path for path in leaves if any(p in leaves for p in _parents(path))]:
        problems.append(f"leaves below other leaves: {below}")
    if problems:
        raise CheckpointError("Orbax cannot hold these leaves: " + "; ".join(problems))


def _parents(path: str) -> Iterator[str]:
    return itertools.accumulate(path.split("/")[:-1], "{}/{}".format)


def _new_array(base: Mapping[str, Any], path: str, leaf: Leaf) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {**base, "path": f"{path.replace('/', '.')}/"},
        # Zeros are data too: without this a reader cannot tell them from a missing chunk.
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": list(leaf.shape),
            "data_type": leaf.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(leaf.chunk)},
            },
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "crc32c"},
            ],
        },
    }


def _metadata(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    def entry(path: str, leaf: Leaf) -> dict[str, Any]:
        return {
            "key_metadata": [{"key": key, "key_type": 2} for key in path.split("/")],
            "value_metadata": {
                # Not `jax.Array`: that would tie the file to the devices of this machine.
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(leaf.shape),
            },
        }

    return {
        "tree_metadata": {
            str(tuple(path.split("/"))): entry(path, leaf) for path, leaf in leaves.items()
        },
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
