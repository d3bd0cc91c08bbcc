"""`inspect_checkpoint`: what is in a checkpoint."""

from __future__ import annotations

import dataclasses

import numpy as np

from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Progress, StrPath, read_leaf, read_pieces
from taskcond.merging.finite import count_nonfinite
from taskcond.merging.tables import is_table
from taskcond.messages import Readable, columns


@dataclasses.dataclass(frozen=True)
class InspectedTask:
    """One row of a task table.

    Attributes:
        name: The name of the task; `None` if it is unknown.
        norm: The Euclidean norm of the row.
        frames_seen: The number of frames that the task was trained on; `None` if it is unknown.
    """

    name: str | None
    norm: float
    frames_seen: int | None

    def __str__(self) -> str:
        frames = self.frames_seen
        seen = "" if frames is None else f"  {frames:,} frames" if frames else "  never trained"
        return f"norm {self.norm:.4g}{seen}  {self.name or ''}".rstrip()


@dataclasses.dataclass(repr=False)
class Inspection(Readable):
    """The content of a checkpoint; prints as a table.

    Attributes:
        path: The path as it was given.
        root: The directory or file that holds the arrays.
        kind: The format, `"Orbax"` or `"safetensors"`.
        layout: `"released"`, `"trained"` or `"plain"`.
        leaves: Number of arrays.
        parameters: Number of their entries.
        bytes: Size of the decoded arrays in bytes.
        modules: `{module: (parameters, bytes)}`, for the first two keys of the paths.
        dtypes: `{dtype: parameters}`.
        table: Path and shape of the task table; `None` if there is none.
        tasks: The rows of the task table.
        scale: Factor on task rows; `None` if it is unknown.
        fusion: The fusion of the model; `None` if it is unknown.
        nonfinite: `{path: number of NaN and Inf}`; `None` if values were not read.
        tables: The paths of all task tables, of which `table` is `None` if nobody says which.
        beside: `{first key: number of leaves}` of what a training state has beside its parameters.
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
    tasks: list[InspectedTask]
    scale: float | None
    fusion: str | None
    nonfinite: dict[str, int] | None
    tables: list[str]
    beside: dict[str, int]

    def __str__(self) -> str:
        size = _size(self.bytes)
        rows = [
            ("checkpoint", self.root),
            ("kind", f"{self.kind}, {self.layout} layout"),
            ("parameters", f"{self.parameters:,} in {self.leaves} leaves, {size}"),
            ("dtypes", ", ".join(f"{name} {n:,}" for name, n in self.dtypes.items())),
            *(("module", f"{m}  {n:,}  {_size(b)}") for m, (n, b) in self.modules.items()),
            *(("beside", f"{name}  {n} leaves, no parameters") for name, n in self.beside.items()),
            ("task table", self._describe_table()),
            *(("task", f"{i}  {task}") for i, task in enumerate(self.tasks)),
        ]
        if self.nonfinite is not None:
            bad = ", ".join(f"{path} ({n})" for path, n in self.nonfinite.items())
            rows.append(("NaN/Inf", bad or "none"))
        return columns(rows)

    def _describe_table(self) -> str:
        if self.table is None:
            several = f"{len(self.tables)}: {', '.join(self.tables)}; --table PATH shows one"
            return several if self.tables else "none"
        path, shape = self.table
        scale = "unknown" if self.scale is None else f"{self.scale:g}"
        return f"{path} {list(shape)}, scale {scale}, fusion {self.fusion or 'unknown'}"


def inspect_checkpoint(
    path: StrPath,
    *,
    table: str | None = None,
    values: bool = True,
    progress: Progress | None = None,
) -> Inspection:
    """Describes a checkpoint.

    Args:
        path: See `Checkpoint`.
        table: See `Checkpoint`.
        values: Whether to read all arrays, to find NaN and Inf.
        progress: A function that is called with the number of bytes done and their total.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    checkpoint = open_checkpoint(path, table)
    leaves, conditioning = checkpoint.leaves, checkpoint.conditioning
    tables = [name for name in leaves if is_table(name)]
    is_open = table is None and conditioning is None and len(tables) > 1
    table = None if is_open else checkpoint.table
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
        bytes=sum(leaf.nbytes for leaf in leaves.values()),
        modules=modules,
        dtypes=dtypes,
        table=None if table is None else (table, leaves[table].shape),
        tasks=[] if table is None else _tasks(checkpoint, table),
        scale=None if conditioning is None else conditioning.scale,
        fusion=None if conditioning is None else conditioning.fusion,
        nonfinite=_nonfinite(checkpoint, progress) if values else None,
        tables=tables,
        beside={name: len(paths) for name, paths in checkpoint.beside.items()},
    )


def _tasks(checkpoint: Checkpoint, path: str) -> list[InspectedTask]:
    table = read_leaf(checkpoint, path).astype(np.float64)
    conditioning = checkpoint.conditioning
    unknown = (None,) * len(table)
    vocabulary = conditioning.vocabulary if conditioning else None
    frames = (conditioning.frames_seen if conditioning else None) or unknown
    norms = np.linalg.norm(table.reshape(len(table), -1), axis=1)
    return [
        InspectedTask(name, float(norm), n)
        for name, norm, n in zip(vocabulary or unknown, norms, frames, strict=True)
    ]


def _nonfinite(checkpoint: Checkpoint, progress: Progress | None) -> dict[str, int]:
    found: dict[str, int] = {}
    done, total = 0, sum(leaf.nbytes for leaf in checkpoint.leaves.values())
    damaged: list[str] = []
    for path in checkpoint.leaves:
        try:
            for _, value in read_pieces(checkpoint, path):
                if bad := count_nonfinite(value):
                    found[path] = found.get(path, 0) + bad
                done += value.nbytes
                if progress is not None:
                    progress(done, total)
        except CheckpointError as error:
            damaged.append(str(error))
    if damaged:
        raise CheckpointError("\n".join(damaged))
    return found


def _size(nbytes: int | float) -> str:
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"
