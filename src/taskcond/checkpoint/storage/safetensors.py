"""`safetensors`: one file, or several with an index; read and written piece by piece.

A file is the length of a header, the header (JSON: name, dtype, shape, place), and the arrays. It
has no checksums: a cut file is found by its length, a flipped bit in the data is not found. A name
is the path of a leaf, joined by dots.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.storage.errors import CheckpointError, explained
from taskcond.checkpoint.storage.leaf import (
    Box,
    Leaf,
    as_bytes,
    box_shape,
    flat_index,
    is_contiguous,
)

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
SHARD_BYTES = 5 << 30
"""Size from which on another file is begun."""

_DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ABOUT = "__metadata__"
_MAX_HEADER = 100 << 20  # that of the reference implementation


class SafetensorsStore:
    """A `.safetensors` file, an index, or a directory with either, open for reading.

    Attributes:
        leaves: `{path: leaf}`.
    """

    kind = "safetensors"

    def __init__(self, root: epath.Path):
        self.leaves: dict[str, Leaf] = {}
        self._places: dict[str, tuple[Any, int]] = {}
        files, names = _files(root)
        for file in files:
            self._add(file)
        missing = sorted(name for name in names if _path(name) not in self.leaves)
        if missing or not self.leaves:
            raise CheckpointError(
                f"{root} is incomplete: its files lack {missing}" if missing else f"{root} is empty"
            )

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """A part of a leaf; cheap where it is contiguous."""
        leaf, (file, start) = self.leaves[path], self._places[path]
        value = np.empty(box_shape(box), leaf.dtype)
        if not value.size:
            return value
        with explained(f"{file} is damaged"), file.open("rb") as data:
            for part in _runs(box, leaf.shape):
                run = np.empty(box_shape(part), leaf.dtype)
                data.seek(start + flat_index(part, leaf.shape) * leaf.dtype.itemsize)
                if data.readinto(as_bytes(run)) != run.nbytes:
                    raise ValueError("it ends too early")
                inside = zip(part, box, strict=True)
                value[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in inside)] = run
        return value

    def _add(self, file: epath.Path) -> None:
        if not file.exists():
            raise CheckpointError(f"{file} does not exist")
        with explained(f"{file} is no complete safetensors file"):
            header, begin = _header(file)
            size = file.stat().length
            end = 0
            for name, entry in header.items():
                if entry["dtype"] not in _DTYPES:
                    raise ValueError(f"{name} has the unknown dtype {entry['dtype']}")
                shape = tuple(operator.index(n) for n in entry["shape"])
                leaf = Leaf(shape, _DTYPES[entry["dtype"]], shape)
                start, stop = entry["data_offsets"]
                if start != end or stop - start != leaf.nbytes:
                    raise ValueError(f"{name} is at {start}..{stop}, {leaf.nbytes} bytes expected")
                end = stop
                path = _path(name)
                if path in self.leaves:
                    raise ValueError(f"{name} occurs twice")
                self.leaves[path] = leaf
                self._places[path] = file, begin + start
            if begin + end != size:
                raise ValueError(f"it has {size} bytes, its header says {begin + end}")


class SafetensorsWriter:
    """Writes `model.safetensors`, or several such files and their index, piece by piece."""

    def __init__(self, root: Path, leaves: Mapping[str, Leaf]):
        self._root = root
        self._leaves = leaves
        self._places: dict[str, tuple[Any, int]] = {}
        self._files = []
        with explained(f"{root} cannot be written"):
            shards = _shards(leaves, SHARD_BYTES)
            for number, shard in enumerate(shards, 1):
                self._create(shard, f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else "")
            if len(shards) > 1:
                self._write_index()

    def write(self, path: str, box: Box, value: np.ndarray) -> None:
        """Writes a piece."""
        leaf, (file, start) = self._leaves[path], self._places[path]
        with explained(f"{self._root} cannot be written"):
            for part in _runs(box, leaf.shape):
                inside = zip(part, box, strict=True)
                run = value[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in inside)]
                file.seek(start + flat_index(part, leaf.shape) * leaf.dtype.itemsize)
                file.write(as_bytes(np.ascontiguousarray(run)))

    def abandon(self) -> None:
        """Closes the files, whether they are complete or not."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        """Writes what is left in buffers."""
        with explained(f"{self._root} cannot be written"):
            for file in self._files:
                file.close()

    def _create(self, shard: list[str], part: str) -> None:
        header: dict[str, Any] = {_ABOUT: {"format": "pt"}}
        end = 0
        for path in shard:
            leaf = self._leaves[path]
            header[path.replace("/", ".")] = {
                "dtype": _NAMES[leaf.dtype],
                "shape": list(leaf.shape),
                "data_offsets": [end, end + leaf.nbytes],
            }
            end += leaf.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the arrays are aligned
        file = (self._root / f"model{part}{SUFFIX}").open("wb")
        self._files.append(file)
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for path in shard:
            offset = header[path.replace("/", ".")]["data_offsets"][0]
            self._places[path] = file, 8 + len(text) + offset

    def _write_index(self) -> None:
        names = {path: Path(file.name).name for path, (file, _) in self._places.items()}
        index = {
            "metadata": {"total_size": sum(leaf.nbytes for leaf in self._leaves.values())},
            "weight_map": {path.replace("/", "."): name for path, name in names.items()},
        }
        (self._root / f"model{INDEX_SUFFIX}").write_text(json.dumps(index, indent=2))


def check_safetensors(leaves: Mapping[str, Leaf]) -> None:
    """Raises `CheckpointError` for leaves that a file cannot hold, all of them at once."""
    wrong = {path: str(x.dtype) for path, x in leaves.items() if x.dtype not in _NAMES}
    dots = [path for path in leaves if "." in path or path == _ABOUT]
    problems = [f"no dtype for {wrong}"] if wrong else []
    if dots:
        problems.append(f"names {dots}, as a dot cannot be told from a `/`")
    if problems:
        raise CheckpointError("safetensors cannot hold these leaves: " + "; ".join(problems))


def is_safetensors(root: epath.Path) -> bool:
    """Whether this is, or holds, a safetensors checkpoint."""
    if not root.is_dir():
        return root.name.endswith((SUFFIX, INDEX_SUFFIX))
    return any(child.name.endswith((SUFFIX, INDEX_SUFFIX)) for child in root.iterdir())


def _files(root: epath.Path) -> tuple[list[epath.Path], list[str]]:
    """The files, and the names that an index promises."""
    if root.is_dir():
        found = list(root.iterdir())
        indices = [child for child in found if child.name.endswith(INDEX_SUFFIX)]
        files = indices or [child for child in found if child.name.endswith(SUFFIX)]
        if len(files) != 1:
            names = sorted(file.name for file in files)
            raise CheckpointError(f"{root} holds {names}; pass the one that you mean")
        root = files[0]
    if not root.name.endswith(INDEX_SUFFIX):
        shard = re.search(r"-\d+-of-(\d+)\.safetensors$", root.name)
        if shard and int(shard[1]) > 1:
            raise CheckpointError(f"{root} is one of {int(shard[1])} files; pass their index")
        return [root], []
    with explained(f"{root} is no index of safetensors files"):
        places = json.loads(root.read_text())["weight_map"]
        names = sorted(set(places.values()))
        outside = [name for name in names if os.path.basename(name) != name or name in ("", "..")]
    if outside:
        raise CheckpointError(f"{root} names files outside of its directory: {outside}")
    return [root.parent / name for name in names], list(places)


def _header(file: epath.Path) -> tuple[dict[str, Any], int]:
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"its header would have {length} bytes")
        text = data.read(length)
    if len(text) != length:
        raise ValueError("its header is cut off")
    header = json.loads(text)
    header.pop(_ABOUT, None)
    return dict(sorted(header.items(), key=lambda x: x[1]["data_offsets"])), 8 + length


def _path(name: str) -> str:
    # PyTorch calls the table of an embedding `weight`; ports of policies with tasks have that name.
    if name == "task_embeddings.weight" or name.endswith(".task_embeddings.weight"):
        name = name.removesuffix("weight") + "embedding"
    return name.replace(".", "/")


def _shards(leaves: Mapping[str, Leaf], limit: int) -> list[list[str]]:
    shards, size = [[]], 0
    for path, leaf in leaves.items():
        if shards[-1] and size + leaf.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(path)
        size += leaf.nbytes
    return shards


def _runs(box: Box, shape: tuple[int, ...]) -> Any:
    """The contiguous runs that a box consists of."""
    axis = next(
        axis
        for axis in range(len(shape) + 1)
        if is_contiguous((*(slice(p.start, p.start + 1) for p in box[:axis]), *box[axis:]), shape)
    )
    outer = [[slice(i, i + 1) for i in range(p.start, p.stop)] for p in box[:axis]]
    return ((*index, *box[axis:]) for index in itertools.product(*outer))
