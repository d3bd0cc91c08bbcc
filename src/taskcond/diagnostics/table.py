"""The table itself: how long its rows are, which are alike, and which were never trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float

from taskcond.diagnostics.html import html_table
from taskcond.diagnostics.numbers import known_list
from taskcond.messages import Readable, columns, shorten

_HEADER = ("task", "row / time", "frames", "moved", "most similar", "cosine")
_SPLIT = 2  # a row of film is [scale, shift]


@dataclasses.dataclass(frozen=True, repr=False)
class TableReport(Readable):
    """A description of the rows of a task table.

    Attributes:
        names: The names of the tasks, or their numbers.
        norms: `[tasks]`, how far each row moves the time embedding, scale included.
        time_norm: The norm of the time embedding.
        cosines: `[tasks, tasks]`, the cosine similarities of rows; NaN for rows of zeros.
        gaps: `[tasks, tasks]`, the distance of two rows over the norm of the longer; 0 for equal
            rows.
        frames_seen: The number of frames on which each row was trained; `None` if it is unknown.
        moved: `[tasks]`, whether a row differs from its start, or from zero if that is unknown.
        knows_start: Whether the start of the rows is known.
    """

    names: tuple[str, ...]
    norms: Float[np.ndarray, " tasks"]
    time_norm: float
    cosines: Float[np.ndarray, "tasks tasks"]
    gaps: Float[np.ndarray, "tasks tasks"]
    frames_seen: tuple[int | None, ...] | None
    moved: Bool[np.ndarray, " tasks"]
    knows_start: bool = True

    @property
    def knows_training(self) -> bool:
        """Says whether it is known of each row if it was trained."""
        frames = self.frames_seen or (None,)
        return self.knows_start or None not in frames

    @property
    def ratios(self) -> Float[np.ndarray, " tasks"]:
        """The norms of rows, with the norm of the time embedding as unit."""
        return self.norms / self.time_norm

    @property
    def untrained(self) -> list[str]:
        """The tasks whose row saw no frame, or did not move."""
        frames = self.frames_seen or (None,) * len(self.names)
        return [
            name
            for name, n, moved in zip(self.names, frames, self.moved, strict=True)
            if n == 0 or not moved
        ]

    def nearest_pairs(self, limit: int = 5) -> list[tuple[str, str, float]]:
        """Returns `(task, task, cosine)` of the most similar rows, most similar first.

        Args:
            limit: The number of pairs at most.
        """
        pairs = [
            (self.names[a], self.names[b], float(self.cosines[a, b]))
            for a, b in zip(*np.triu_indices_from(self.cosines, 1), strict=True)
            if not math.isnan(self.cosines[a, b])
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:limit]

    def to_dict(self) -> dict[str, object]:
        """Returns the numbers for JSON; the cosines of a row of zeros are `None`."""
        return {
            "names": list(self.names),
            "norms": self.norms.tolist(),
            "time_norm": self.time_norm,
            "ratios": self.ratios.tolist(),
            "cosines": known_list(self.cosines),
            "frames_seen": None if self.frames_seen is None else list(self.frames_seen),
            "untrained": self.untrained,
        }

    def __str__(self) -> str:
        return f"{columns([_HEADER, *self._rows()])}\n\n{self._summary()}"

    def _repr_html_(self) -> str:
        return html_table(_HEADER, self._rows(), [self._summary()])

    def _summary(self) -> str:
        if untrained := self.untrained:
            note = f"rows never trained: {shorten(untrained)}"
        elif self.knows_training:
            note = "all rows were trained"
        else:
            note = "whether rows were trained is unknown; pass initial= or frames_seen="
        return f"norm of the time embedding: {self.time_norm:.4g}; {note}"

    def _rows(self) -> list[tuple[str, ...]]:
        frames = self.frames_seen or (None,) * len(self.names)
        others = np.where(np.isnan(self.cosines), -np.inf, self.cosines)
        np.fill_diagonal(others, -np.inf)
        rows = []
        for task, name in enumerate(self.names):
            nearest = int(np.argmax(others[task]))
            cosine = float(others[task, nearest])
            rows.append(
                (
                    name,
                    f"{self.ratios[task]:.3g}",
                    "" if frames[task] is None else str(frames[task]),
                    ("yes" if self.knows_start else "") if self.moved[task] else "no",
                    *((self.names[nearest], f"{cosine:.2f}") if cosine > -2 else ("", "")),
                )
            )
        return rows


def table_report(
    table: Float[Array, "tasks width"] | Float[np.ndarray, "tasks width"],
    *,
    scale: float | int = 1.0,
    fusion: str = "add",
    time_norm: float | int | None = None,
    frames_seen: Sequence[int | None] | None = None,
    initial: Float[Array, "tasks width"] | Float[np.ndarray, "tasks width"] | None = None,
    names: Sequence[str] = (),
) -> TableReport:
    """Describes the rows of a table.

    Args:
        table: The table, such as `conditioner.embedding[...]`.
        scale: The conditioner's scale.
        fusion: The name of the conditioner's fusion. A row of `"gate"` counts as far as its gate is
            open; that of a fusion with other formulas counts as it is.
        time_norm: The norm of the time embedding that rows meet; by default `sqrt(features / 2)`,
            that of any sine-cosine embedding.
        frames_seen: For each task the number of frames on which it was trained, as
            `task_conditioning.json` has it.
        initial: The table before training. Without it, a row that is exactly zero did not move,
            and of others it is unknown.
        names: The names of the tasks; by default their numbers.

    Raises:
        ValueError: There is no row, a row is NaN or Inf, or lengths or shapes differ.

    >>> report = table_report(np.array([[3.0, 4.0], [0.0, 0.0]]), names=["pour", "wipe"])
    >>> report.ratios.tolist(), report.untrained
    ([5.0, 0.0], ['wipe'])
    """
    rows = np.asarray(table, np.float64)
    names = tuple(names) or tuple(map(str, range(len(rows))))
    _check(rows, names, frames_seen, initial)
    features = rows.shape[1] // (_SPLIT if fusion in ("film", "gate") else 1)
    time_norm = float(math.sqrt(features / 2) if time_norm is None else time_norm)
    if not time_norm > 0:
        raise ValueError(f"time_norm must be positive, got {time_norm}; leave it out or measure it")
    scaled = rows * scale
    if fusion == "film":
        # An element of the time embedding has a mean square of time_norm²/features.
        scaled = scaled * np.repeat([time_norm / math.sqrt(features), 1.0], features)
    if fusion == "gate":
        scaled = np.tanh(scaled[:, :features]) * scaled[:, features:]
    norms = np.linalg.norm(scaled, axis=1)
    start = 0 if initial is None else np.asarray(initial, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = scaled @ scaled.T / np.outer(norms, norms)
        apart = np.stack([np.linalg.norm(row - scaled, axis=1) for row in scaled])
        gaps = np.where(apart == 0, 0, apart / np.maximum.outer(norms, norms))
    return TableReport(
        names,
        norms,
        time_norm,
        cosines,
        gaps,
        None if frames_seen is None else tuple(frames_seen),
        (rows != start).any(1),
        initial is not None,
    )


def _check(
    rows: np.ndarray,
    names: tuple[str, ...],
    frames_seen: Sequence[int | None] | None,
    initial: Array | np.ndarray | None,
) -> None:
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"table has shape {list(rows.shape)}, but must be [tasks, width] with one row or more; "
            "pass conditioner.embedding[...]"
        )
    problems = [
        f"{what} has {len(values)} tasks"
        for what, values in (("names", names), ("frames_seen", frames_seen))
        if values is not None and len(values) != len(rows)
    ]
    if initial is not None and initial.shape != rows.shape:
        problems.append(f"initial has shape {list(initial.shape)}")
    if problems:
        raise ValueError(
            f"table has shape {list(rows.shape)}, but {' and '.join(problems)}; pass those of the "
            "same table"
        )
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise ValueError(
            f"the rows of {[names[task] for task in bad]} hold NaN or Inf; load a checkpoint from "
            "before training diverged"
        )
