"""`inspect_checkpoint` and `diff_checkpoints`: what is in a checkpoint, and what differs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from taskcond.checkpoint.open import Checkpoint, StrPath, open_checkpoint, read_leaf, read_pieces
from taskcond.checkpoint.storage.leaf import Leaf
from taskcond.checkpoint.storage.write import Progress
from taskcond.merging.merge import count_nonfinite


@dataclasses.dataclass
class Inspection:
    """What is in a checkpoint; prints as a table.

    Attributes:
        path: As it was given.
        root: The directory or file with the arrays.
        kind: `"Orbax"` or `"safetensors"`.
        layout: `"released"`, `"trained"` or `"plain"`.
        leaves: Number of arrays.
        parameters: Number of their entries.
        bytes: Their size, decoded.
        modules: `{module: (parameters, bytes)}`, for the first two keys of the paths.
        dtypes: `{dtype: parameters}`.
        table: Path and shape of the task table; `None` where there is none.
        tasks: For each task its name, the norm of its row, and the frames it has seen.
        scale: Factor on task rows; `None` where it is unknown.
        fusion: How task rows enter the model; `None` where it is unknown.
        nonfinite: `{path: number of NaN and Inf}`; `None` where values were not read.
    """

    path: str
    root: str
    kind: str
    layout: str
    leaves: int
    parameters: int
    bytes: int
    modules: dict[str, tuple[int, int]]
    dtypes: dict[str, int]
    table: tuple[str, tuple[int, ...]] | None
    tasks: list[dict[str, Any]]
    scale: float | None
    fusion: str | None
    nonfinite: dict[str, int] | None

    def __str__(self) -> str:
        rows = [
            ("checkpoint", self.root),
            ("kind", f"{self.kind}, {self.layout} layout"),
            (
                "parameters",
                f"{self.parameters:,} in {self.leaves} leaves, {_size(float(self.bytes))}",
            ),
            ("dtypes", ", ".join(f"{name} {n:,}" for name, n in self.dtypes.items())),
            *(("module", f"{m}  {n:,}  {_size(float(b))}") for m, (n, b) in self.modules.items()),
            ("task table", _describe_table(self)),
            *(("task", f"{i}  {_describe_task(task)}") for i, task in enumerate(self.tasks)),
        ]
        if self.nonfinite is not None:
            bad = ", ".join(f"{path} ({n})" for path, n in self.nonfinite.items())
            rows.append(("NaN/Inf", bad or "none"))
        return "\n".join(f"{a:10}  {b}" for a, b in rows)


@dataclasses.dataclass
class Difference:
    """What differs between two checkpoints; prints as a table.

    Attributes:
        only_first: Paths that the second one lacks.
        only_second: Paths that the first one lacks.
        reshaped: `{path: (first, second)}`, shape and dtype, where these differ.
        changed: `{path: relative distance}`, that is `|second - first| / |first|`, of the leaves
            that are not equal bit for bit.
        equal: Number of leaves that are.
    """

    only_first: list[str]
    only_second: list[str]
    reshaped: dict[str, tuple[str, str]]
    changed: dict[str, float]
    equal: int

    @property
    def identical(self) -> bool:
        """Whether the two have the same leaves, bit for bit."""
        return not (self.only_first or self.only_second or self.reshaped or self.changed)

    def __str__(self) -> str:
        rows = [
            ("equal", f"{self.equal} leaves", ""),
            *(("first", path, "not in the second") for path in self.only_first),
            *(("second", path, "not in the first") for path in self.only_second),
            *(("reshaped", path, f"{a} -> {b}") for path, (a, b) in self.reshaped.items()),
            *(("changed", path, f"by {100 * x:.3g} %") for path, x in self.changed.items()),
        ]
        width = max(len(row[1]) for row in rows)
        return "\n".join(f"{a:8}  {b:{width}}  {c}".rstrip() for a, b, c in rows)


def inspect_checkpoint(
    path: StrPath, *, values: bool = True, progress: Progress | None = None
) -> Inspection:
    """Says what is in a checkpoint.

    Args:
        path: See `Checkpoint`.
        values: Whether to read all arrays, to find NaN and Inf.
        progress: Is called with the bytes that are done and those that there are.

    Raises:
        CheckpointError: It cannot be read.
    """
    checkpoint = open_checkpoint(path)
    leaves, conditioning, table = checkpoint.leaves, checkpoint.conditioning, checkpoint.table
    modules: dict[str, tuple[int, int]] = {}
    dtypes: dict[str, int] = {}
    for name, leaf in leaves.items():
        module = "/".join(name.split("/")[:-1][:2]) or name
        parameters, size = modules.get(module, (0, 0))
        modules[module] = parameters + leaf.size, size + leaf.nbytes
        dtypes[str(leaf.dtype)] = dtypes.get(str(leaf.dtype), 0) + leaf.size
    return Inspection(
        path=checkpoint.path,
        root=str(checkpoint.root),
        kind=checkpoint.kind,
        layout=checkpoint.layout,
        leaves=len(leaves),
        parameters=sum(leaf.size for leaf in leaves.values()),
        bytes=_total(leaves.values()),
        modules=modules,
        dtypes=dtypes,
        table=None if table is None else (table, leaves[table].shape),
        tasks=_tasks(checkpoint),
        scale=None if conditioning is None else conditioning.scale,
        fusion=None if conditioning is None else conditioning.fusion,
        nonfinite=_nonfinite(checkpoint, progress) if values else None,
    )


def diff_checkpoints(
    first: StrPath, second: StrPath, *, progress: Progress | None = None
) -> Difference:
    """Compares two checkpoints, leaf by leaf, whatever their layouts.

    Args:
        first: See `Checkpoint`.
        second: Likewise.
        progress: Is called with the bytes that are done and those that there are.

    Raises:
        CheckpointError: One cannot be read.
    """
    a, b = open_checkpoint(first), open_checkpoint(second)
    both = [path for path in a.leaves if path in b.leaves]
    same = [path for path in both if _spec(a.leaves[path]) == _spec(b.leaves[path])]
    changed, done, total = {}, 0, _total(a.leaves[path] for path in same)
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
        reshaped={
            path: (_spec(a.leaves[path]), _spec(b.leaves[path]))
            for path in both
            if path not in same
        },
        changed=changed,
        equal=len(same) - len(changed),
    )


def _distance(a: Checkpoint, b: Checkpoint, path: str) -> float | None:
    """The relative distance of two leaves; `None` where they are equal bit for bit."""
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


def _tasks(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    if checkpoint.table is None:
        return []
    table = read_leaf(checkpoint, checkpoint.table).astype(np.float64)
    about = checkpoint.conditioning
    names = about.vocabulary.names if about and about.vocabulary else (None,) * len(table)
    frames = about.frames_seen if about and about.frames_seen else (None,) * len(table)
    norms = np.linalg.norm(table.reshape(len(table), -1), axis=1)
    return [
        {"name": name, "norm": float(norm), "frames_seen": n}
        for name, norm, n in zip(names, norms, frames, strict=True)
    ]


def _nonfinite(checkpoint: Checkpoint, progress: Progress | None) -> dict[str, int]:
    found: dict[str, int] = {}
    done, total = 0, _total(checkpoint.leaves.values())
    for path in checkpoint.leaves:
        for _, value in read_pieces(checkpoint, path):
            if bad := count_nonfinite(value):
                found[path] = found.get(path, 0) + bad
            done += value.nbytes
            if progress is not None:
                progress(done, total)
    return found


def _total(leaves: Iterable[Leaf]) -> int:
    return sum(leaf.nbytes for leaf in leaves)


def _spec(leaf: Leaf) -> str:
    return f"{list(leaf.shape)} {leaf.dtype}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _describe_table(found: Inspection) -> str:
    if found.table is None:
        return "none"
    path, shape = found.table
    scale = "unknown" if found.scale is None else f"{found.scale:g}"
    return f"{path} {list(shape)}, scale {scale}, fusion {found.fusion or 'unknown'}"


def _describe_task(task: dict[str, Any]) -> str:
    frames = task["frames_seen"]
    seen = "" if frames is None else f"  {frames:,} frames" if frames else "  never trained"
    return f"norm {task['norm']:.4g}{seen}  {task['name'] or ''}".rstrip()
