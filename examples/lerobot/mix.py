"""Several LeRobot datasets as one source: tasks are matched by name into one vocabulary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from examples.lerobot.report import Report, mixed_report
from examples.lerobot.source import LeRobotData
from examples.lerobot.stats import pool
from taskcond import TaskVocabulary


class MixedData:
    """Several datasets as one source, see `mix`."""

    def __init__(self, parts: Sequence[LeRobotData], report: Report):
        self.parts = tuple(parts)
        self.report = report
        self.vocabulary = parts[0].vocabulary
        self.norm_stats = {
            name: pool([part.norm_stats[name] for part in parts]) for name in parts[0].norm_stats
        }
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def task_frames(self) -> dict[str, int]:
        """Frames an epoch of each task that has any, by name, weights included."""
        frames: dict[str, int] = defaultdict(int)
        for part in self.parts:
            for name, count in part.task_frames.items():
                frames[name] += count
        return dict(frames)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """The frame at `index`, of one part after the other."""
        position = index.__index__()
        if not 0 <= position < len(self):
            raise IndexError(f"frame {position} of {len(self)}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        part = self.parts[number]
        return part[position - (int(self._ends[number]) - len(part))]

    def __repr__(self) -> str:
        return f"MixedData({list(self.parts)})"

    def split(self, val_fraction: float = 0.1, seed: int = 0) -> tuple[MixedData, MixedData]:
        """Splits each part by episode, see `LeRobotData.split`."""
        train, val = zip(*(part.split(val_fraction, seed) for part in self.parts), strict=True)
        both = MixedData(train, self.report), MixedData(val, self.report)
        for half in both:
            half.norm_stats = self.norm_stats
        return both


def mix(
    datasets: Sequence[LeRobotData],
    weights: Sequence[float | int] | None = None,
    vocabulary: TaskVocabulary | None = None,
) -> MixedData:
    """Mixes datasets into one source with one vocabulary: tasks are matched by name.

    The number 0 of one and the number 0 of another stay two tasks; the same name is one task.

    Args:
        datasets: Of one robot: states, actions, horizons and cameras must agree.
        weights: A factor for each dataset, see `LeRobotData`.
        vocabulary: The model's tasks; `None` appends each dataset's to those before.

    Raises:
        ValueError: The frames do not fit into one batch, with all that differs.
    """
    if not datasets:
        raise ValueError("nothing to mix; pass at least one dataset")
    if vocabulary is None:
        names = dict.fromkeys(name for part in datasets for name in part.vocabulary)
        vocabulary = TaskVocabulary(names)
    weights = [1.0] * len(datasets) if weights is None else list(weights)
    if len(weights) != len(datasets) or not all(0 < factor < np.inf for factor in weights):
        raise ValueError(f"one positive weight for each of {len(datasets)} datasets, got {weights}")
    shapes = [part._shapes() for part in datasets]
    if any(shape != shapes[0] for shape in shapes):
        lines = (f"\n  {d.root.name}: {shape}" for d, shape in zip(datasets, shapes, strict=True))
        raise ValueError(
            "the frames of these datasets do not fit into one batch:"
            + "".join(lines)
            + "\nopen them with the same horizon=, cameras=, and with keys of the same size"
        )
    parts = [part._weighted(w, vocabulary) for part, w in zip(datasets, weights, strict=True)]
    # Numbered, as two datasets may have a folder of one name.
    reports = {f"{i} ({part.root.name})": part.report for i, part in enumerate(parts)}
    return MixedData(parts, mixed_report(reports, vocabulary))
