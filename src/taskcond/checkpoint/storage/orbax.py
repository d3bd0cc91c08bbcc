"""The Orbax format, read and written piece by piece with TensorStore.

This file is the only place that knows the format. It does not use Orbax itself, because Orbax's
interfaces have changed while its files have not. A directory holds

- `_METADATA`: JSON with the keys of every leaf. Newer releases of Orbax also write `use_ocdbt`;
  older ones show it by the presence of `manifest.ocdbt`.
- `manifest.ocdbt` and `d/`: a key-value store with a Zarr array for each leaf. The name of the
  array is the leaf's keys joined by dots. Without OCDBT there is a directory for each leaf instead.

Orbax writes a leaf as one Zstandard chunk for each device that held it; such a chunk may have
gigabytes and is decoded as a stream. We write chunks of at most `PIECE_BYTES`, each with a CRC-32C
(Zarr 3) that every reader checks, Orbax included. In files that Orbax wrote, only the index has
checksums: a flipped bit in the data is found there only if it breaks the compression.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.storage.boxes import (
    Box,
    box_shape,
    flat_index,
    is_contiguous,
    relative,
    split_at_chunks,
)
from taskcond.checkpoint.storage.errors import CheckpointError, as_checkpoint_error
from taskcond.checkpoint.storage.files import check_regular
from taskcond.checkpoint.storage.leaf import PIECE_BYTES, Leaf, Leaves, below_others
from taskcond.checkpoint.storage.zstd_stream import ChunkStream, read_value

METADATA = "_METADATA"
_PART = re.compile(
    rf"{METADATA}|_CHECKPOINT_METADATA|_sharding|_strings\.json|checkpoint|commit_success\.txt"
    r"|descriptor(/descriptor\.pbtxt)?|array_metadatas/process_\d+"
    r"|(ocdbt\.process_\w+/)?(manifest\.\w+|d/[0-9a-f]+)"
)
_PART_OF_ZARR = re.compile(r"\.zarray|\.zattrs|zarr\.json|(c/)?(\d+[./])*\d+|c")
# Types of leaves for which Orbax stores no array.
_EMPTY = {"None", "Dict", "List", "Tuple", "NamedTuple", "Unknown", "string"}
_PYTREE_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
_BATCH_BYTES = 16 << 20  # written in one transaction
_FILE_BYTES = 16 * PIECE_BYTES
_STREAMS = 32  # chunks that may be partly decoded at a time


class Orbax:
    """The Orbax format; see `taskcond.checkpoint.storage.formats.Format`."""

    name = "orbax"
    title = "Orbax"
    marks = f"{METADATA} (Orbax)"
    prefix = "params/"  # the layout of released weights, which openpi reads
    has_torch_names = False
    file_suffix = file_name = ""  # it is always a directory

    def holds(self, path: epath.Path) -> bool:
        """Returns whether the path is an Orbax directory."""
        return (path / METADATA).exists()

    def is_root(self, entry: Path) -> bool:
        """Returns whether an entry of a directory makes that an Orbax directory."""
        return entry.name == METADATA

    def is_part(self, root: Path, name: str) -> bool:
        """Returns whether Orbax writes a file of this name into a checkpoint's directory."""
        if _PART.fullmatch(name):
            return True
        leaf, _, part = name.partition("/")
        is_leaf = any((root / leaf / mark).exists() for mark in (".zarray", "zarr.json"))
        return is_leaf and _PART_OF_ZARR.fullmatch(part) is not None

    def check(self, leaves: Mapping[str, Leaf]) -> None:
        """Raises `CheckpointError` listing all leaves that a directory cannot hold."""
        problems = []
        if not leaves:
            problems.append("there are no leaves")
        if empty := [path for path, leaf in leaves.items() if not leaf.size]:
            problems.append(f"arrays without entries: {empty}; leave them out")
        names = Counter(path.replace("/", ".") for path in leaves)
        if double := [name for name, count in names.items() if count > 1]:
            problems.append(f"paths with the same name once `/` has become a dot: {double}")
        if odd := [path for path in leaves if {"", ".", ".."} & set(path.split("/"))]:
            problems.append(f"paths with an empty part: {odd}")
        if below := below_others(leaves):
            problems.append(f"leaves below other leaves: {below}")
        if problems:
            raise CheckpointError("Orbax cannot hold these leaves: " + "; ".join(problems))

    def open(self, root: epath.Path) -> OrbaxReader:
        """Opens a directory for reading."""
        return OrbaxReader(root)

    def create(
        self, root: Path, leaves: Mapping[str, Leaf], like: Leaves | None, *, one_file: bool
    ) -> OrbaxWriter:
        """Begins to write a directory, with the lists and empty nodes of `like`."""
        return OrbaxWriter(root, leaves, like.tree if isinstance(like, OrbaxReader) else {})

    def embed(self, file: Path, texts: Mapping[str, str]) -> None:
        """Is never called, because the output is always a directory."""
        raise NotImplementedError

    def verify(self, root: Path, leaves: Mapping[str, Leaf]) -> None:
        """Reads every chunk, and with it checks its checksum."""
        reader = self.open(epath.Path(root))

        def check(chunk: tuple[str, Box]) -> None:
            reader.read(*chunk)

        chunks = ((name, box) for name in leaves for box in reader.leaves[name].chunks())
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(check, chunks):
                pass


class OrbaxReader:
    """An Orbax directory, open for reading.

    Attributes:
        leaves: The leaves by path: the keys as they are in the file, joined by `/`.
        tree: Orbax's description of each leaf and of each empty node.
    """

    def __init__(self, root: epath.Path):
        self._root = root
        names, options = self._names()
        # The pool holds the nodes of OCDBT's index. Without it, every read parses them anew.
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 24}})
        self._base: Any = _kvstore(root)
        if (root / "manifest.ocdbt").exists():
            self._base = {"driver": "ocdbt", "base": self._base}
        elif any(child.name.startswith("ocdbt.process_") for child in root.iterdir()):
            raise CheckpointError(
                f"{root} is half-written: it has no manifest.ocdbt, because saving was "
                "interrupted; use an earlier step"
            )
        check_regular(self._data_files())
        with as_checkpoint_error(f"{root} is damaged or half-written"):
            self._check_names(names.values())
            opened = {path: self._open(name, options) for path, name in names.items()}
            bad = {path: error for path, x in opened.items() if (error := x.exception())}
            if bad:
                first = str(next(iter(bad.values()))).partition(" [")[0]
                listed = ", ".join(bad)
                raise ValueError(f"{len(bad)} leaves cannot be opened ({listed}): {first}")
            self._arrays = {path: future.result() for path, future in opened.items()}
        self.leaves = {path: _leaf(array) for path, array in self._arrays.items()}
        self._compressor = {path: _stream_compressor(a) for path, a in self._arrays.items()}
        self._streams: dict[tuple[str, str], ChunkStream] = {}
        self._lock = threading.Lock()
        self._chunk: tuple[str, Box, np.ndarray] | None = None

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a part of a leaf; this is cheap if the box is a piece and pieces come in order."""
        leaf = self.leaves[path]
        with as_checkpoint_error(f"{self._root}: {path} is damaged"):
            if leaf.has_small_chunks:
                return self._arrays[path][box].read().result()
            parts = list(split_at_chunks(box, leaf.chunk))
            if len(parts) == 1:
                return self._read_part(path, box)
            value = np.empty(box_shape(box), leaf.dtype)
            for part in parts:
                value[relative(part, box)] = self._read_part(path, part)
            return value

    def _read_part(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a box that lies in one large chunk."""
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
        """Returns the name of each leaf's array, and the options to open arrays with."""
        check_regular([self._root / METADATA])
        with as_checkpoint_error(f"{self._root}/{METADATA} is damaged or half-written"):
            metadata = json.loads((self._root / METADATA).read_text())
            self.tree: dict[str, Any] = metadata["tree_metadata"]
            rows = [
                _keys(entry)
                for entry in self.tree.values()
                if entry["value_metadata"]["value_type"] not in _EMPTY
            ]
        names = {"/".join(keys): ".".join(keys) for keys in rows}
        if not rows:
            raise CheckpointError(f"{self._root} has no leaves")
        if len(names) < len(rows):
            raise CheckpointError(f"{self._root}: two leaves have the same path")
        # If zeros were written too, a missing chunk is damage and does not stand for zeros.
        zeros_are_there = bool(metadata.get("store_array_data_equal_to_fill_value"))
        return names, {
            "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
            "fill_missing_data_reads": not zeros_are_there,
        }

    def _data_files(self) -> Iterator[epath.Path]:
        yield self._root / "manifest.ocdbt"
        if (self._root / "d").is_dir():
            yield from (self._root / "d").iterdir()

    def _check_names(self, names: Iterable[str]) -> None:
        if isinstance(self._base, dict) and self._base["driver"] == "ocdbt":
            return
        # Without OCDBT a name is a directory, and must not lead out of this one.
        bad = [name for name in names if "/" in name or "\\" in name or name in (".", "..")]
        if bad:
            raise CheckpointError(f"{self._root}: these are not valid names of leaves: {bad}")

    def _open(self, name: str, options: Mapping[str, Any]) -> Any:
        kvstore = ts.KvStore.Spec(self._base) / f"{name}/"
        spec = {**options, "kvstore": kvstore.to_json(), "recheck_cached_data": "open"}
        return ts.open(spec, open=True, context=self._context)

    def _read_stream(self, path: str, chunk: Box, inside: Box) -> Shaped[np.ndarray, "..."]:
        leaf, kvstore = self.leaves[path], self._arrays[path].kvstore
        start = flat_index(inside, leaf.chunk) * leaf.dtype.itemsize
        shape = box_shape(inside)
        index = (part.start // k for part, k in zip(chunk, leaf.chunk, strict=True))
        key = ".".join(map(str, index))
        if self._compressor[path] == "none":
            data = read_value(kvstore, key, start, math.prod(shape) * leaf.dtype.itemsize)
            return np.frombuffer(data, leaf.dtype).reshape(shape)
        # Each chunk has a stream of its own: a piece may lie in several chunks, and threads read
        # several leaves.
        with self._lock:
            stream = self._streams.pop((path, key), None)
        if stream is None or stream.position > start:
            stream = ChunkStream(kvstore, key)
        stream.skip(start - stream.position)
        value = stream.read(shape, leaf.dtype)
        if stream.position < math.prod(leaf.chunk) * leaf.dtype.itemsize:
            with self._lock:
                self._streams[path, key] = stream
                if len(self._streams) > _STREAMS:
                    del self._streams[next(iter(self._streams))]
        return value


class OrbaxWriter:
    """Writes an Orbax directory piece by piece; a piece of a leaf is one of its chunks."""

    def __init__(self, root: Path, leaves: Mapping[str, Leaf], tree: Mapping[str, Any]):
        self._root, self._tree = root, tree
        base = {
            "driver": "ocdbt",
            # The caller syncs once, when everything is written.
            "base": {"driver": "file", "path": f"{root.resolve()}/", "file_io_sync": False},
            "target_data_file_size": _FILE_BYTES,
        }
        context = ts.Context()
        opened = {
            path: ts.open(_new_array(base, path, leaf), create=True, context=context)
            for path, leaf in leaves.items()
        }
        for future in opened.values():
            future.exception()  # waits, so that nothing is being created when this raises
        self._arrays = {path: future.result() for path, future in opened.items()}
        self._leaves = leaves
        self._batch, self._batched = ts.Transaction(), 0
        self._pending: deque[Any] = deque()

    def write(self, path: str, box: Box, value: Shaped[np.ndarray, "..."]) -> None:
        """Writes a piece; returns when all but the last few pieces are written."""
        # TensorStore need not copy `value`, because nobody writes to it again.
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
        """Starts to write the gathered pieces, with one change of the index."""
        self._pending.append(self._batch.commit_async())
        self._batch, self._batched = ts.Transaction(), 0

    def abandon(self) -> None:
        """Returns when nothing is being written any more, whether that succeeded or not."""
        self._batch.abort()
        while self._pending:
            self._pending.popleft().exception()

    def close(self) -> None:
        """Waits for the pieces, and adds the files that make the directory an Orbax one."""
        self._commit()
        while self._pending:
            self._pending.popleft().result()
        (self._root / METADATA).write_text(json.dumps(_metadata(self._leaves, self._tree)))
        now = time.time_ns()
        content = {
            "item_handlers": _PYTREE_HANDLER,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {},
        }
        (self._root / "_CHECKPOINT_METADATA").write_text(json.dumps(content))


def _stream_compressor(array: Any) -> str:
    """Returns the compressor of an array whose chunks can be decoded as streams, "" for others."""
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
    # Without zstandard, TensorStore decodes the whole chunk.
    can_stream = {"none": True, "zstd": importlib.util.find_spec("zstandard") is not None}
    return name if can_stream.get(name) else ""


def _kvstore(root: epath.Path) -> Any:
    url = str(root)
    return f"{url}/" if "://" in url else {"driver": "file", "path": f"{Path(url).resolve()}/"}


def _leaf(array: Any) -> Leaf:
    chunk = array.chunk_layout.read_chunk.shape  # None for an array without axes
    return Leaf(tuple(array.shape), array.dtype.numpy_dtype, tuple(chunk or ()))


def _new_array(base: Mapping[str, Any], path: str, leaf: Leaf) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": {**base, "path": f"{path.replace('/', '.')}/"},
        # Without this, a chunk of zeros is left out, and a reader cannot tell it from a lost one.
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


def _keys(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(part["key"]) for part in entry["key_metadata"])


def _metadata(leaves: Mapping[str, Leaf], tree: Mapping[str, Any]) -> dict[str, Any]:
    def entry(leaf: Leaf, keys: Any) -> dict[str, Any]:
        return {
            "key_metadata": keys,
            "value_metadata": {
                # `jax.Array` would tie the file to the devices of this machine.
                "value_type": "np.ndarray",
                "skip_deserialize": False,
                "write_shape": list(leaf.shape),
            },
        }

    # Orbax restores nothing into another structure: its lists, their order and empty nodes stay.
    entries, missing = {}, dict(leaves)
    for name, old in tree.items():
        path = "/".join(_keys(old))
        if path in missing:
            entries[name] = entry(missing.pop(path), old["key_metadata"])
        elif old["value_metadata"]["value_type"] in _EMPTY - {"string"}:
            entries[name] = old
    for path, leaf in missing.items():
        keys = path.split("/")
        entries[str(tuple(keys))] = entry(leaf, [{"key": k, "key_type": 2} for k in keys])
    return {
        "tree_metadata": entries,
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
