"""Problems of a dataset: the kinds that exist, the fix of each, and the error that lists them."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

_SHOWN = 20  # problems listed of each kind


class Problem(Enum):
    """A kind of problem, in the order in which an error lists them.

    Attributes:
        title: The name of the kind in an error.
        fix: The advice of how to get rid of it.
    """

    UNREADABLE_METADATA = ("unreadable metadata", "Restore the file from the dataset's source.")
    PATH_OUTSIDE = (
        "path outside the dataset's folder",
        "Correct the template in meta/info.json. Paths must be relative and stay in the folder.",
    )
    MISSING_FILE = (
        "missing file",
        "Download the other files, or pass episodes=[...] and cameras=[...] with what is there.",
    )
    UNREADABLE_FILE = (
        "unreadable file",
        "The file is damaged or truncated. Download it again.",
    )
    MISSING_COLUMN = (
        "missing column",
        "Name the dataset's own keys with state=..., action=..., cameras=... and extra=...",
    )
    UNSUITABLE_COLUMN = (
        "unsuitable column",
        "Name keys of plain vectors with state=... and action=..., and columns of numbers of one "
        "shape, or of text, with extra=...",
    )
    FRAME_COUNT = (
        "frame-count mismatch",
        "Correct the length in meta/episodes, download the file again, or leave the episode out "
        "with episodes=[...].",
    )
    VIDEO_TOO_SHORT = (
        "video shorter than its episode",
        "Download the video again, or leave the episode out with episodes=[...].",
    )
    VIDEO_PLACE = (
        "place in a video that contradicts the episodes",
        "Correct from_timestamp and to_timestamp in meta/episodes, or leave the episodes out with "
        "episodes=[...], or the camera with cameras=[...].",
    )
    VIDEO_MISFIT = (
        "video that does not fit",
        "Encode the video again, at the dataset's fps and with one size for each camera.",
    )
    DEPTH = (
        "depth video that is not gray of more than 8 bits",
        "Store depth as 10-bit to 16-bit gray, or leave the camera out with cameras=[...].",
    )
    UNLISTED_TASK = (
        "unlisted task_index",
        "Add the index to meta/tasks, or leave the episodes out with episodes=[...].",
    )
    AMBIGUOUS_TASK = (
        "ambiguous task",
        "Correct meta/tasks, or pass duplicate_tasks='merge': indices with the same name become "
        "one task, and an index with two names gets the alphabetically first.",
    )
    NOT_FINITE = (
        "value that is not finite",
        "Repair the frames, or leave the episodes out with episodes=[...].",
    )
    NO_STATISTICS = (
        "statistics",
        "Open the dataset with preflight=True, which computes them.",
    )

    def __init__(self, title: str, fix: str):
        self.title = title
        self.fix = fix


class DatasetError(ValueError):
    """Raised when a dataset must not be trained on. The message lists all problems and fixes."""


class Problems:
    """Collects problems, so that one error can report all of them.

    Args:
        root: The dataset's folder.
    """

    def __init__(self, root: Path):
        self._root = root
        self._found: dict[Problem, dict[str, None]] = {kind: {} for kind in Problem}

    def add(self, kind: Problem, what: str) -> None:
        """Adds a problem. The same problem added twice counts as one."""
        self._found[kind][what] = None

    def raise_if_any(self) -> None:
        """Raises `DatasetError` if there are problems."""
        text = []
        for kind, found in self._found.items():
            if found:
                more = [f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
                lines = "".join(f"\n    {line}" for line in [*found][:_SHOWN] + more)
                text.append(f"\n  {kind.title} ({len(found)}):{lines}\n    Fix: {kind.fix}")
        if text:
            raise DatasetError(f"{self._root} cannot be used:" + "".join(text))
