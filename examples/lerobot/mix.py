"""Several datasets as one source, with tasks matched by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from taskcond import TaskVocabulary

from .report import Report, mixed_report, split_report
from .source import LeRobotData, locate
from .stats import Stats, pool


class MixedData:
    """Several datasets with one vocabulary as one source of frames; `mix` makes it.

    Attributes:
        parts: The datasets.
        norm_stats: Statistics of `state` and `actions`, pooled over the datasets.
        report: What opening the datasets found.
        vocabulary: The model's tasks.
    """

    def __init__(self, parts: Sequence[LeRobotData], norm_stats: dict[str, Stats], report: Report):
        self.parts = tuple(parts)
        self.norm_stats = norm_stats
        self.report = report
        self.vocabulary = parts[0].vocabulary
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def task_frames(self) -> dict[str, int]:
        """The number of frames in an epoch for each task that has any; weights are included."""
        frames: dict[str, int] = defaultdict(int)
        for part in self.parts:
            for name, count in part.task_frames.items():
                frames[name] += count
        return dict(frames)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns a frame. The frames of the first part come first, and so on."""
        number, position = locate(index, self._ends)
        return self.parts[number][position]

    def __repr__(self) -> str:
        return f"MixedData({list(self.parts)})"

    def split(self, val_fraction: float = 0.1, seed: int = 0) -> tuple[MixedData, MixedData]:
        """Splits each part by episode, see `LeRobotData.split`.

        Both halves keep the statistics of the whole, and its report, with warnings that name the
        tasks that one half lacks.
        """
        train, val = zip(*(part.split(val_fraction, seed) for part in self.parts), strict=True)
        parts = [MixedData(part, self.norm_stats, self.report) for part in (train, val)]
        report = split_report(self.report, *(part.task_frames for part in (self, *parts)))
        for part in parts:
            part.report = report
        return parts[0], parts[1]


def mix(
    datasets: Sequence[LeRobotData],
    weights: Sequence[float | int] | None = None,
    vocabulary: TaskVocabulary | None = None,
) -> MixedData:
    """Mixes datasets into one source with one vocabulary.

    Tasks are matched by name: two tasks with the same `task_index` in two datasets stay apart, and
    the same name in two datasets is one task.

    Args:
        datasets: Datasets of one robot: states, actions, horizons, histories,
            cameras and extra columns must agree.
        weights: A factor for each dataset, see `LeRobotData`.
        vocabulary: The model's tasks; `None` appends each dataset's tasks to those before.

    Raises:
        ValueError: The frames do not fit into one batch. The message lists all shapes.
        TypeError: Something else than a `LeRobotData` is given.
    """
    if not datasets:
        raise ValueError("There is nothing to mix. Pass at least one dataset.")
    if wrong := [each for each in datasets if not isinstance(each, LeRobotData)]:
        raise TypeError(
            f"Only instances of LeRobotData can be mixed, but {wrong[0]!r} is a "
            f"{type(wrong[0]).__name__}. Pass factors apart, as in mix([a, b], weights=[1, 2])."
        )
    if vocabulary is None:
        names = dict.fromkeys(name for part in datasets for name in part.vocabulary)
        vocabulary = TaskVocabulary(names)
    weights = [1.0] * len(datasets) if weights is None else list(weights)
    if len(weights) != len(datasets) or not all(0 < factor < np.inf for factor in weights):
        raise ValueError(
            f"weights is {weights}, but must be one positive, finite number for each of the "
            f"{len(datasets)} datasets. To leave a dataset out, do not pass it."
        )
    shapes = [part.frame_shapes for part in datasets]
    if any(shape != shapes[0] for shape in shapes):
        lines = (f"\n  {d.root.name}: {shape}" for d, shape in zip(datasets, shapes, strict=True))
        raise ValueError(
            "The frames of these datasets do not fit into one batch:"
            + "".join(lines)
            + "\nOpen them with the same horizon=, history=, cameras= and extra=, and with keys of "
            "the same size and type."
        )
    parts = [part.weighted(w, vocabulary) for part, w in zip(datasets, weights, strict=True)]
    stats = {name: pool([part.norm_stats[name] for part in parts]) for name in parts[0].norm_stats}
    # Numbered, as two datasets may have folders of the same name.
    reports = {f"{i} ({part.root.name})": part.report for i, part in enumerate(parts)}
    return MixedData(parts, stats, mixed_report(reports, vocabulary))
