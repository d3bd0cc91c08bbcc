"""Zstandard chunks of any size, decoded as streams from their beginning to their end.

TensorStore decodes a chunk whole. Orbax writes a leaf as one chunk for each device that held it,
and the largest leaf of π0.5 has 4.5 GiB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Shaped

from taskcond.checkpoint.storage.boxes import Shape
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import as_bytes

_BLOCK = 1 << 20  # bytes that are read or skipped at a time


class ChunkStream:
    """A compressed chunk that is read from its beginning to its end.

    Attributes:
        position: The number of decoded bytes that have been read.

    Args:
        kvstore: TensorStore's key-value store.
        key: The key of the chunk.
    """

    def __init__(self, kvstore: Any, key: str):
        import zstandard

        self.position = 0
        source: Any = _BlockReader(kvstore, key)
        self._file: Any = zstandard.ZstdDecompressor().stream_reader(source, read_size=_BLOCK)

    def read(self, shape: Shape, dtype: np.dtype[Any]) -> Shaped[np.ndarray, "..."]:
        """Decodes the next values."""
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
        """Decodes bytes and drops them."""
        while nbytes > 0:
            step = min(nbytes, _BLOCK)
            self.read((step,), np.dtype(np.uint8))
            nbytes -= step


def read_value(kvstore: Any, key: str, start: int, size: int | None = None) -> bytes:
    """Returns a part of the bytes under a key: `size` of them, or all up to the end.

    Raises:
        CheckpointError: There is nothing under the key.
    """
    byte_range = slice(start, None if size is None else start + size)
    return _checked(kvstore.read(key, byte_range=byte_range).result(), key)


class _BlockReader:
    """A file-like view of the encoded bytes under a key.

    The next block is requested before the current one is decoded.
    """

    def __init__(self, kvstore: Any, key: str):
        self._kvstore, self._key, self._position = kvstore, key, 0
        self._next: Any = self._request()

    def read(self, size: int = -1) -> bytes:
        """Returns the next block, whatever the `size`; nothing at the end."""
        try:
            result = self._next.result()
        except ValueError:  # the block would reach beyond the end
            data = read_value(self._kvstore, self._key, self._position)
        else:
            data = _checked(result, self._key)
        self._position += len(data)
        self._next = self._request()
        return data

    def _request(self) -> Any:
        block = slice(self._position, self._position + _BLOCK)
        return self._kvstore.read(self._key, byte_range=block)


def _checked(result: Any, key: str) -> bytes:
    if result.state != "value":
        raise CheckpointError(f"chunk {key} is missing")
    return result.value
