"""How a leaf is cut into pieces, so that no operation ever holds a whole one.

Pieces are runs of the flattened array, in order. So they are the same however a leaf is stored, and
what a piece has in common with a chunk is a run of that chunk: a chunk can be decoded from its
beginning to its end, whatever its size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

PIECE_BYTES = (4 << 20) - 1
"""Upper bound of a piece; also of the chunks that we write.

From 4 MiB on, NumPy asks for huge pages, and waits for the kernel to clear them.
"""

Shape = tuple[int, ...]
Box = tuple[slice, ...]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array in a file.

    Attributes:
        shape: Its shape.
        dtype: Its dtype, NumPy's or one of `ml_dtypes`.
        chunk: Shape of the chunks that it is stored in.
    """

    shape: Shape
    dtype: np.dtype[Any]
    chunk: Shape

    @property
    def nbytes(self) -> int:
        """Size of the decoded array in bytes."""
        return self.size * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def piece(self) -> Shape:
        """Shape of the pieces that `boxes` cuts."""
        return piece_shape(self.shape, self.dtype.itemsize)

    def boxes(self) -> Iterator[Box]:
        """The pieces, in order; none where there are no entries.

        >>> leaf = Leaf((4, 3), np.dtype("float32"), (2, 3))
        >>> list(leaf.boxes())
        [(slice(0, 4, None), slice(0, 3, None))]
        """
        return grid(tuple(slice(0, n) for n in self.shape), self.piece)

    def chunks(self) -> Iterator[Box]:
        """The chunks, in order."""
        return grid(tuple(slice(0, n) for n in self.shape), self.chunk)

    def chunked(self, dtype: np.dtype[Any] | None = None) -> Leaf:
        """How we write it: in chunks that are pieces, both before and after a cast to `dtype`."""
        dtype = self.dtype if dtype is None else np.dtype(dtype)
        itemsize = max(self.dtype.itemsize, dtype.itemsize)
        return Leaf(self.shape, dtype, piece_shape(self.shape, itemsize))


def piece_shape(shape: Shape, itemsize: int, limit: int | None = None) -> Shape:
    """The largest part of an array that is contiguous in C order and has at most `limit` bytes.

    >>> piece_shape((100, 1 << 20), 4, 32 << 20)
    (8, 1048576)
    """
    limit = PIECE_BYTES if limit is None else limit
    piece = list(shape)
    for axis, length in enumerate(piece):
        rest = math.prod(piece[axis + 1 :]) * itemsize
        if length * rest <= limit:
            break
        piece[axis] = max(1, limit // rest)
        if piece[axis] > 1:
            break
    return tuple(piece)


def box_shape(box: Box) -> Shape:
    """The shape of what a box cuts out."""
    return tuple(part.stop - part.start for part in box)


def overlap(box: Box, piece: Box) -> Box | None:
    """What two boxes have in common; `None` where that is nothing."""
    common = tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, piece, strict=True)
    )
    return common if all(part.start < part.stop for part in common) else None


def relative(box: Box, origin: Box) -> Box:
    """A box in the coordinates of another one."""
    return tuple(
        slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, origin, strict=True)
    )


def flat_index(box: Box, shape: Shape) -> int:
    """Where the box begins in the flattened array."""
    index = 0
    for part, length in zip(box, shape, strict=True):
        index = index * length + part.start
    return index


def flat_indices(box: Box, shape: Shape) -> np.ndarray:
    """Where each entry of a box is in the flattened array, as uint64.

    >>> flat_indices((slice(1, 2), slice(0, 3)), (2, 3)).tolist()
    [[3, 4, 5]]
    """
    index = np.zeros((), np.uint64)
    for part, length in zip(box, shape, strict=True):
        steps = np.arange(part.start, part.stop, dtype=np.uint64)
        index = index[..., None] * np.uint64(length) + steps
    return index


def is_contiguous(box: Box, shape: Shape) -> bool:
    """Whether the box is one run of the flattened array."""
    lengths = box_shape(box)
    first = next((axis for axis, n in enumerate(lengths) if n > 1), len(shape))
    return lengths[first + 1 :] == shape[first + 1 :]


def as_bytes(value: Any) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(value.reshape(-1).view(np.uint8))


def prefetch(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items, in order, made in a thread that is a few ahead."""
    return concurrently([items], 1)


def concurrently(
    parts: Iterable[Iterable[T]], workers: int, ahead: int = 2
) -> Generator[T, None, None]:
    """The items of all parts, each part in order, several parts at a time.

    A generator; close it, or its threads wait for somebody to take what they made.

    Args:
        parts: What to go through; each one by a single thread.
        workers: Number of threads.
        ahead: How many items may wait for being used, beside those that are being made.

    >>> sorted(concurrently([[1, 2], [3]], workers=2))
    [1, 2, 3]
    """
    todo: queue.SimpleQueue[Any] = queue.SimpleQueue()
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(ahead), threading.Event()
    for part in parts:
        todo.put(part)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                for item in todo.get_nowait():
                    made.put((None, item))
                    room.acquire()
                    if stopped.is_set():
                        return

    with ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            pool.submit(work).add_done_callback(lambda future: made.put((future, None)))
        try:
            running = workers
            while running:
                finished, item = made.get()
                if finished is None:
                    yield item
                    room.release()
                else:
                    finished.result()  # raises what the thread raised
                    running -= 1
        finally:
            stopped.set()
            room.release(workers)


def grid(box: Box, step: Shape) -> Iterator[Box]:
    """Cuts a box into smaller ones, in C order."""
    axes = [
        [slice(i, min(i + k, part.stop)) for i in range(part.start, part.stop, max(k, 1))]
        for part, k in zip(box, step, strict=True)
    ]
    yield from itertools.product(*axes)


def split(box: Box, chunk: Shape) -> Iterator[Box]:
    """Cuts a box where the chunks of an array end.

    >>> list(split((slice(1, 5),), (2,)))
    [(slice(1, 2, None),), (slice(2, 4, None),), (slice(4, 5, None),)]
    """
    axes = []
    for part, k in zip(box, chunk, strict=True):
        edges = [part.start, *range(part.start // k * k + k, part.stop, k), part.stop]
        axes.append([slice(*edge) for edge in itertools.pairwise(edges)])
    yield from itertools.product(*axes)


def is_aligned(box: Box, leaf: Leaf) -> bool:
    """Whether a box begins and ends with chunks of the leaf."""
    return all(
        part.start % k == 0 and (part.stop % k == 0 or part.stop == n)
        for part, k, n in zip(box, leaf.chunk, leaf.shape, strict=True)
    )
