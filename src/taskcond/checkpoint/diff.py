"""`diff_checkpoints`: what differs between two checkpoints."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.storage.leaf import Progress, StrPath, read_pieces
from taskcond.merging.plan import spec
from taskcond.messages import Readable, columns


@dataclasses.dataclass(repr=False)
class Difference(Readable):
    """The difference of two checkpoints; prints as a table.

    Attributes:
        only_first: Paths that the second one lacks.
        only_second: Paths that the first one lacks.
        reshaped: `{path: (first, second)}`: shape and dtype, for leaves in which they differ.
        changed: `{path: |second - first| / |first|}`, for leaves that are not equal bit for bit.
        equal: Number of leaves that are equal bit for bit.
    """

    only_first: list[str]
    only_second: list[str]
    reshaped: dict[str, tuple[str, str]]
    changed: dict[str, float]
    equal: int

    @property
    def identical(self) -> bool:
        """Tells whether the two have the same leaves, bit for bit."""
        return not (self.only_first or self.only_second or self.reshaped or self.changed)

    def __str__(self) -> str:
        return columns(
            [
                ("equal", f"{self.equal} leaves", ""),
                *(("first", path, "not in the second") for path in self.only_first),
                *(("second", path, "not in the first") for path in self.only_second),
                *(("reshaped", path, f"{a} -> {b}") for path, (a, b) in self.reshaped.items()),
                *(("changed", path, _by(x)) for path, x in self.changed.items()),
            ]
        )


def _by(change: float) -> str:
    return "from zeros" if change == float("inf") else f"by {100 * change:.3g} %"


def diff_checkpoints(
    first: StrPath, second: StrPath, *, progress: Progress | None = None
) -> Difference:
    """Compares two checkpoints leaf by leaf, whatever their layouts.

    Args:
        first: See `Checkpoint`.
        second: See `Checkpoint`.
        progress: A function that is called with the number of bytes done and their total.

    Raises:
        CheckpointError: One of them cannot be read.
    """
    a, b = open_checkpoint(first), open_checkpoint(second)
    both = [path for path in a.leaves if path in b.leaves]
    specs = {path: (spec(a.leaves[path]), spec(b.leaves[path])) for path in both}
    same = [path for path, (one, other) in specs.items() if one == other]
    changed, done, total = {}, 0, sum(a.leaves[path].nbytes for path in same)
    for path in same:
        distance = _distance(a, b, path)
        if distance is not None:
            changed[path] = distance
        done += a.leaves[path].nbytes
        if progress is not None:
            progress(done, total)
    return Difference(
        only_first=[path for path in a.leaves if path not in b.leaves],
        only_second=[path for path in b.leaves if path not in a.leaves],
        reshaped={path: pair for path, pair in specs.items() if pair[0] != pair[1]},
        changed=changed,
        equal=len(same) - len(changed),
    )


def _distance(a: Checkpoint, b: Checkpoint, path: str) -> float | None:
    """Returns the relative distance of two leaves; `None` if they are equal bit for bit."""
    equal, difference, norm = True, 0.0, 0.0
    for box, x in read_pieces(a, path):
        y = b.read(path, box)
        if x.tobytes() != y.tobytes():
            equal = False
            difference += _squares(_wide(y) - _wide(x))
        norm += _squares(_wide(x))
    if equal:
        return None
    return math.sqrt(difference / norm) if norm else math.inf


def _wide(value: np.ndarray) -> np.ndarray:
    return value.astype(np.complex128 if np.iscomplexobj(value) else np.float64)


def _squares(value: np.ndarray) -> float:
    return float(np.sum(np.square(np.abs(value))))
