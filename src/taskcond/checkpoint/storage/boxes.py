"""Boxes: the rectangular parts of an array, and where they lie in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt64

Shape = tuple[int, ...]

Box = tuple[slice, ...]
"""A slice with start and stop for each axis of an array."""


def whole(shape: Shape) -> Box:
    """Returns the box that covers an array of this shape."""
    return tuple(slice(0, length) for length in shape)


def box_shape(box: Box) -> Shape:
    """Returns the shape of the part that a box cuts out."""
    return tuple(part.stop - part.start for part in box)


def overlap(first: Box, second: Box) -> Box | None:
    """Returns the part that two boxes share, or `None` if they share nothing."""
    pairs = zip(first, second, strict=True)
    common = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs)
    return common if all(part.start < part.stop for part in common) else None


def relative(box: Box, origin: Box) -> Box:
    """Returns a box in coordinates that start where the box `origin` starts.

    >>> relative((slice(5, 7),), (slice(4, 8),))
    (slice(1, 3, None),)
    """
    return tuple(
        slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, origin, strict=True)
    )


def flat_index(box: Box, shape: Shape) -> int:
    """Returns the position of a box's first entry in the flattened array."""
    index = 0
    for part, length in zip(box, shape, strict=True):
        index = index * length + part.start
    return index


def flat_indices(box: Box, shape: Shape) -> UInt64[np.ndarray, "..."]:
    """Returns the position of each entry of a box in the flattened array.

    >>> flat_indices((slice(1, 2), slice(0, 3)), (2, 3)).tolist()
    [[3, 4, 5]]
    """
    index = np.zeros((), np.uint64)
    for part, length in zip(box, shape, strict=True):
        steps = np.arange(part.start, part.stop, dtype=np.uint64)
        index = index[..., None] * np.uint64(length) + steps
    return index


def is_contiguous(box: Box, shape: Shape) -> bool:
    """Returns whether a box is one run of the flattened array."""
    lengths = box_shape(box)
    first = next((axis for axis, n in enumerate(lengths) if n > 1), len(shape))
    return lengths[first + 1 :] == shape[first + 1 :]


def contiguous_runs(box: Box, shape: Shape) -> Iterator[Box]:
    """Yields the fewest boxes that make up `box` and are each one run of the flattened array."""
    axis = next(
        axis
        for axis in range(len(shape) + 1)
        if is_contiguous((*(slice(p.start, p.start + 1) for p in box[:axis]), *box[axis:]), shape)
    )
    outer = [[slice(i, i + 1) for i in range(p.start, p.stop)] for p in box[:axis]]
    return ((*index, *box[axis:]) for index in itertools.product(*outer))


def largest_run(shape: Shape, itemsize: int, limit: int) -> Shape:
    """Returns the shape of the largest contiguous part with at most `limit` bytes.

    >>> largest_run((100, 1 << 20), 4, 32 << 20)
    (8, 1048576)
    """
    part = list(shape)
    for axis, length in enumerate(part):
        rest = math.prod(part[axis + 1 :]) * itemsize
        if length * rest <= limit:
            break
        part[axis] = max(1, limit // rest)
        if part[axis] > 1:
            break
    return tuple(part)


def grid(box: Box, step: Shape) -> Iterator[Box]:
    """Yields the boxes of shape `step` that a box consists of, in C order."""
    axes = [
        [slice(i, min(i + k, part.stop)) for i in range(part.start, part.stop, max(k, 1))]
        for part, k in zip(box, step, strict=True)
    ]
    yield from itertools.product(*axes)


def split_at_chunks(box: Box, chunk: Shape) -> Iterator[Box]:
    """Yields the parts of a box that lie in one chunk each, in C order.

    >>> list(split_at_chunks((slice(1, 5),), (2,)))
    [(slice(1, 2, None),), (slice(2, 4, None),), (slice(4, 5, None),)]
    """
    axes = []
    for part, k in zip(box, chunk, strict=True):
        edges = [part.start, *range(part.start // k * k + k, part.stop, k), part.stop]
        axes.append([slice(*edge) for edge in itertools.pairwise(edges)])
    yield from itertools.product(*axes)
