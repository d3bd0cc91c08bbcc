"""The safetensors format: one file, or several with an index, read and written piece by piece.

A file consists of the length of its header, the header (JSON: name, dtype, shape and place of each
array), and the arrays. A name is the path of a leaf, joined by dots. There are no checksums: a file
that was cut off is found by its length, but a flipped bit in the data is not found.

The `safetensors` package has no counterpart for the writer. Its reader (0.8.0) could replace about
60 lines here, but it raises `AttributeError` for float8 arrays and reads local files only.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Shaped

from taskcond.checkpoint.storage.boxes import (
    Box,
    box_shape,
    contiguous_runs,
    flat_index,
    relative,
)
from taskcond.checkpoint.storage.errors import CheckpointError, as_checkpoint_error
from taskcond.checkpoint.storage.files import check_regular
from taskcond.checkpoint.storage.leaf import Leaf, Leaves, as_bytes, below_others

_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_METADATA = "__metadata__"
_MAX_HEADER = 100 << 20  # the limit of the reference implementation
_ROOM = 1 << 20  # for task_conditioning.json and recipe.json in the header of one file
SHARD_BYTES = 5 << 30
"""The size at which another file is begun."""

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


class Safetensors:
    """The safetensors format; see `taskcond.checkpoint.storage.formats.Format`."""

    name = "safetensors"
    title = "safetensors"
    marks = "a .safetensors file"
    prefix = ""
    has_torch_names = True
    file_suffix = _SUFFIX
    file_name = "model" + _SUFFIX

    def holds(self, path: epath.Path) -> bool:
        """Returns whether the path is a safetensors file, or a directory with one."""
        if not path.is_dir():
            return path.name.endswith((_SUFFIX, _INDEX_SUFFIX))
        return any(child.name.endswith((_SUFFIX, _INDEX_SUFFIX)) for child in path.iterdir())

    def is_root(self, entry: Path) -> bool:
        """Returns whether an entry of a directory makes that a safetensors checkpoint."""
        return entry.name.endswith((_SUFFIX, _INDEX_SUFFIX))

    def is_part(self, root: Path, name: str) -> bool:
        """Returns whether a file of this name belongs to a safetensors checkpoint."""
        return "/" not in name and name.endswith((_SUFFIX, _INDEX_SUFFIX))

    def check(self, leaves: Mapping[str, Leaf]) -> None:
        """Raises `CheckpointError` listing all leaves that a file cannot hold."""
        wrong = {path: str(x.dtype) for path, x in leaves.items() if x.dtype not in _NAMES}
        dots = [path for path in leaves if "." in path or path == _METADATA]
        problems = [f"the format has no dtype for {wrong}"] if wrong else []
        if dots:
            problems.append(f"the names {dots} hold a dot, which cannot be told from a `/`")
        if below := below_others(leaves):
            problems.append(f"leaves below other leaves: {below}")
        if problems:
            raise CheckpointError("safetensors cannot hold these leaves: " + "; ".join(problems))

    def open(self, root: epath.Path) -> SafetensorsReader:
        """Opens a file, an index, or a directory with either."""
        return SafetensorsReader(root)

    def create(
        self, root: Path, leaves: Mapping[str, Leaf], like: Leaves | None, *, one_file: bool
    ) -> SafetensorsWriter:
        """Begins to write the files."""
        return SafetensorsWriter(root, leaves, one_file=one_file)

    def embed(self, file: Path, texts: Mapping[str, str]) -> None:
        """Writes texts into the metadata of a header, which was made with room for them."""
        with file.open("r+b") as data:
            length = int.from_bytes(data.read(8), "little")
            header = json.loads(data.read(length))
            header[_METADATA] |= texts
            text = json.dumps(header).encode()
            if len(text) > length:
                raise CheckpointError(
                    f"{list(texts)} need {len(text) - length} bytes more than a header has room "
                    "for; write to a directory"
                )
            data.seek(8)
            data.write(text.ljust(length))

    def verify(self, root: Path, leaves: Mapping[str, Leaf]) -> None:
        """Does nothing: the format has no checksums, and opening checks the lengths."""


class SafetensorsReader:
    """A safetensors checkpoint, open for reading.

    Attributes:
        leaves: The leaves by path.
        texts: The metadata of a checkpoint that is one file.
    """

    def __init__(self, root: epath.Path):
        self.leaves: dict[str, Leaf] = {}
        self.texts: dict[str, str] = {}
        self._places: dict[str, tuple[epath.Path, int]] = {}
        files, names = _files(root)
        problems = [
            f"{file} does not exist; download or copy it too" for file in files if not file.exists()
        ]
        check_regular(files)
        for file in files:
            try:
                if file.exists():
                    self._add(file)
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError("; ".join(problems))
        missing = sorted(name for name in names if _path(name) not in self.leaves)
        if missing:
            raise CheckpointError(f"{root} is incomplete: its files lack {missing}")
        if not self.leaves:
            raise CheckpointError(f"{root} has no leaves")

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a part of a leaf; this is cheap if the part is contiguous."""
        leaf, (file, start) = self.leaves[path], self._places[path]
        value = np.empty(box_shape(box), leaf.dtype)
        if not value.size:
            return value
        with as_checkpoint_error(f"{file} is damaged"), file.open("rb") as data:
            for part in contiguous_runs(box, leaf.shape):
                run = np.empty(box_shape(part), leaf.dtype)
                data.seek(start + flat_index(part, leaf.shape) * leaf.dtype.itemsize)
                if data.readinto(as_bytes(run)) != run.nbytes:  # type: ignore[attr-defined]
                    raise ValueError("it ends too early")
                value[relative(part, box)] = run
        return value

    def _add(self, file: epath.Path) -> None:
        with as_checkpoint_error(f"{file} is not a complete safetensors file"):
            header, begin, self.texts = _header(file)
            unknown = {name: x["dtype"] for name, x in header.items() if x["dtype"] not in _DTYPES}
            if unknown:
                raise ValueError(f"it has leaves of unknown dtypes: {unknown}")
            size = file.stat().length
            end = 0
            for name, entry in header.items():
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
    """Writes `model.safetensors`, or several such files and their index, piece by piece.

    Args:
        root: The directory.
        leaves: The leaves by path.
        one_file: Whether there is one file of any size, with room for texts in its header.
    """

    def __init__(self, root: Path, leaves: Mapping[str, Leaf], *, one_file: bool):
        self._room = _ROOM if one_file else 0
        self._root = root
        self._leaves = leaves
        self._places: dict[str, tuple[IO[bytes], int]] = {}
        self._files: list[IO[bytes]] = []
        shards = [list(leaves)] if one_file else _shards(leaves, SHARD_BYTES)
        for number, shard in enumerate(shards, 1):
            self._create(shard, f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else "")
        if len(shards) > 1:
            self._write_index()

    def write(self, path: str, box: Box, value: Shaped[np.ndarray, "..."]) -> None:
        """Writes a piece."""
        leaf, (file, start) = self._leaves[path], self._places[path]
        for part in contiguous_runs(box, leaf.shape):
            file.seek(start + flat_index(part, leaf.shape) * leaf.dtype.itemsize)
            file.write(as_bytes(np.ascontiguousarray(value[relative(part, box)])))

    def abandon(self) -> None:
        """Closes the files, whether they are complete or not."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()

    def close(self) -> None:
        """Writes the rest of the buffers."""
        for file in self._files:
            file.close()

    def _create(self, shard: list[str], part: str) -> None:
        header: dict[str, Any] = {_METADATA: {"format": "pt"}}
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
        text += b" " * (-len(text) % 8 + self._room)  # aligns the arrays
        file = (self._root / f"model{part}{_SUFFIX}").open("wb")
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
        (self._root / f"model{_INDEX_SUFFIX}").write_text(json.dumps(index, indent=2))


def _files(root: epath.Path) -> tuple[list[epath.Path], list[str]]:
    """Returns the files of a checkpoint, and the names that its index promises."""
    if root.is_dir():
        found = list(root.iterdir())
        indices = [child for child in found if child.name.endswith(_INDEX_SUFFIX)]
        files = indices or [child for child in found if child.name.endswith(_SUFFIX)]
        if len(files) != 1:
            names = sorted(file.name for file in files)
            raise CheckpointError(f"{root} holds {names}; pass the path of one of them")
        root = files[0]
    if not root.name.endswith(_INDEX_SUFFIX):
        shard = re.search(r"-\d+-of-(\d+)\.safetensors$", root.name)
        if shard and int(shard[1]) > 1:
            raise CheckpointError(f"{root} is one of {int(shard[1])} files; pass their index")
        return [root], []
    check_regular([root])
    with as_checkpoint_error(f"{root} is not an index of safetensors files"):
        places = json.loads(root.read_text())["weight_map"]
        names = sorted(set(places.values()))
        outside = [name for name in names if os.path.basename(name) != name or name in ("", "..")]
    if outside:
        raise CheckpointError(f"{root} names files outside of its directory: {outside}")
    return [root.parent / name for name in names], list(places)


def _header(file: epath.Path) -> tuple[dict[str, Any], int, dict[str, str]]:
    """Returns the entries in the order of their places, where the data begins, and the metadata."""
    with file.open("rb") as data:
        length = int.from_bytes(data.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError(f"its header would have {length} bytes")
        text = data.read(length)
    if len(text) != length:
        raise ValueError("its header is cut off")
    header = json.loads(text)
    texts = header.pop(_METADATA, {})
    return dict(sorted(header.items(), key=lambda x: x[1]["data_offsets"])), 8 + length, texts


def _path(name: str) -> str:
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
