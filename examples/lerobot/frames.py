"""The protocol of a source of frames: a loader needs nothing else of a dataset or of a mix."""

from __future__ import annotations

from typing import Any, Protocol, SupportsIndex, runtime_checkable

from taskcond import TaskVocabulary

from .report import Report
from .source import LeRobotData
from .stats import Stats


@runtime_checkable
class Frames(Protocol):
    """A source of frames with one vocabulary: `LeRobotData`, or `MixedData` of several of them.

    Attributes:
        norm_stats: Statistics of `state` and `actions`.
        report: What opening the data found.
        vocabulary: The model's tasks.
    """

    norm_stats: dict[str, Stats]
    report: Report
    vocabulary: TaskVocabulary

    @property
    def parts(self) -> tuple[LeRobotData, ...]:
        """The datasets that frames come from."""
        ...

    @property
    def task_frames(self) -> dict[str, int]:
        """The number of frames in an epoch for each task that has any; weights are included."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns a frame; `LeRobotData` lists its keys."""
        ...

    def split(self, val_fraction: float = 0.1, seed: int = 0) -> tuple[Frames, Frames]:
        """Splits by episode into training and validation data."""
        ...
