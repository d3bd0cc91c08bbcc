"""A leaf: an array in a file, which is read and written in pieces.

No operation ever holds a whole leaf. Pieces are consecutive runs of the flattened array. They are
therefore the same however a leaf is stored, and the part of a piece that lies in a chunk is a run
of that chunk. So a chunk can be decoded from its beginning to its end, whatever its size.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from taskcond.checkpoint.storage.boxes import (
    Box,
    Shape,
    box_shape,
    grid,
    largest_run,
    overlap,
    relative,
    whole,
)

PIECE_BYTES = (4 << 20) - 1
"""The upper bound of a piece's size, and of the chunks that we write.

From 4 MiB on, NumPy asks for huge pages, and waits until the kernel has cleared them.
"""

StrPath = str | os.PathLike[str]

Progress = Callable[[int, int], None]
"""A function that is called with the number of bytes done and the total number of bytes."""

Piece = tuple[Box, Shaped[np.ndarray, "..."]]
"""A part of a leaf: where it lies, and its values."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array in a file.

    Attributes:
        shape: Shape of the array.
        dtype: Its dtype, NumPy's or one of `ml_dtypes`.
        chunk: Shape of the chunks that the array is stored in.
    """

    shape: Shape
    dtype: np.dtype[Any]
    chunk: Shape

    @classmethod
    def of(cls, array: Any) -> Leaf:
        """Returns the leaf that we write for an array in memory."""
        dtype = np.dtype(array.dtype).newbyteorder("=")
        return cls(tuple(array.shape), dtype, tuple(array.shape)).rechunked()

    @property
    def nbytes(self) -> int:
        """The size of the decoded array in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def spec(self) -> str:
        """Shape and dtype in words."""
        return f"{list(self.shape)} {self.dtype}"

    @property
    def has_small_chunks(self) -> bool:
        """Tells whether a chunk is no larger than a piece."""
        return math.prod(self.chunk) * self.dtype.itemsize <= PIECE_BYTES

    def pieces(self) -> Iterator[Box]:
        """Yields where the pieces lie, in order; nothing if the array has no entries.

        >>> leaf = Leaf((4, 3), np.dtype("float32"), (2, 3))
        >>> list(leaf.pieces())
        [(slice(0, 4, None), slice(0, 3, None))]
        """
        return grid(whole(self.shape), piece_shape(self.shape, self.dtype.itemsize))

    def chunks(self) -> Iterator[Box]:
        """Yields where the chunks lie, in order."""
        return grid(whole(self.shape), self.chunk)

    def rechunked(self, dtype: np.dtype[Any] | None = None) -> Leaf:
        """Returns the leaf as we write it: its chunks are pieces before and after a cast."""
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        itemsize = max(self.dtype.itemsize, dtype.itemsize)
        return Leaf(self.shape, dtype, piece_shape(self.shape, itemsize))


@runtime_checkable
class Leaves(Protocol):
    """A source whose leaves can be read in pieces."""

    @property
    def leaves(self) -> Mapping[str, Leaf]:
        """The leaves by path."""
        ...

    def read(self, path: str, box: Box) -> Shaped[np.ndarray, "..."]:
        """Reads a part of a leaf."""
        ...


def piece_shape(shape: Shape, itemsize: int) -> Shape:
    """Returns the shape of the pieces of an array."""
    return largest_run(shape, itemsize, PIECE_BYTES)


def read_pieces(source: Leaves, path: str) -> Iterator[Piece]:
    """Yields the pieces of a leaf, in order."""
    for box in source.leaves[path].pieces():
        yield box, source.read(path, box)


def read_leaf(source: Leaves, path: str, box: Box | None = None) -> Shaped[np.ndarray, "..."]:
    """Reads a leaf, or a part of it, into one array. Needs at most one piece of extra memory."""
    leaf = source.leaves[path]
    box = whole(leaf.shape) if box is None else box
    value = np.empty(box_shape(box), leaf.dtype)
    if not value.size:
        return value
    # A chunk can only be decoded from its beginning. A box that begins or ends inside a chunk is
    # therefore cut from the pieces of the whole leaf.
    aligned = _is_aligned(box, leaf)
    pieces = grid(box, piece_shape(box_shape(box), leaf.dtype.itemsize))
    for piece in pieces if aligned else leaf.pieces():
        common = overlap(box, piece)
        if common is not None:
            value[relative(common, box)] = source.read(path, piece)[relative(common, piece)]
    return value


def below_others(paths: Collection[str]) -> list[str]:
    """Returns the paths that lie below another one, which no tree can have.

    >>> below_others(["a", "a/b", "ab"])
    ['a/b']
    """
    known = set(paths)
    return [
        path
        for path in paths
        if not known.isdisjoint(itertools.accumulate(path.split("/")[:-1], "{}/{}".format))
    ]


def as_bytes(array: np.ndarray) -> memoryview:
    """Returns the memory of a contiguous array."""
    flat: Any = array.reshape(-1).view(np.uint8)  # NumPy's type stubs lack the buffer protocol
    return memoryview(flat)


def _is_aligned(box: Box, leaf: Leaf) -> bool:
    return all(
        part.start % k == 0 and (part.stop % k == 0 or part.stop == n)
        for part, k, n in zip(box, leaf.chunk, leaf.shape, strict=True)
    )
