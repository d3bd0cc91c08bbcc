"""What a reader was asked for: the episodes, cameras and columns that it selects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from .layout import Episode, Layout
from .report import Notes

FRAME_KEYS = frozenset(
    {
        "state",
        "actions",
        "action_is_pad",
        "history_is_pad",
        "images",
        "timestamp",
        "task",
        "task_index",
        "task_id",
        "episode_index",
        "frame_index",
    }
)
"""The keys of a frame that do not depend on the dataset."""


def select_episodes(layout: Layout, episodes: Iterable[int] | None) -> list[Episode]:
    """Returns the episodes to read: those of the given indices, or all.

    Raises:
        ValueError: There is no episode of an index, or no index.
    """
    if episodes is None:
        return list(layout.episodes)
    wanted = set(episodes)
    if not wanted:
        raise ValueError(
            "episodes is empty, so that nothing is selected. Select at least one episode, or pass "
            "None for all."
        )
    unknown = sorted(wanted - {episode.index for episode in layout.episodes})
    if unknown:
        last = max((episode.index for episode in layout.episodes), default=-1)
        raise ValueError(
            f"The dataset has no episodes {unknown}. It has {len(layout.episodes)}, up to {last}. "
            "Correct episodes=[...]."
        )
    return [episode for episode in layout.episodes if episode.index in wanted]


def select_cameras(
    layout: Layout, episodes: Sequence[Episode], cameras: Sequence[str] | None, notes: Notes
) -> tuple[str, ...]:
    """Returns the cameras to read: the given ones, or all that have a file on disk.

    Raises:
        ValueError: The dataset has no camera of a given name.
    """
    declared = (*layout.video_keys, *layout.image_keys)
    if cameras is not None:
        unknown = sorted(set(cameras) - set(declared))
        if unknown:
            raise ValueError(
                f"The dataset has no cameras {unknown}. Its cameras are {list(declared)}. "
                "Correct cameras=[...]."
            )
        others = (name for name in declared if name not in cameras)
        notes.skipped += [f"camera {name}: not selected" for name in others]
        return tuple(cameras)
    missing = [
        name
        for name in layout.video_keys
        if not any(name in e.videos and e.videos[name].path.exists() for e in episodes)
    ]
    notes.skipped += [
        f"camera {name}: declared in info.json, but no file on disk" for name in missing
    ]
    return tuple(name for name in declared if name not in missing)


def select_extra(
    layout: Layout, episodes: Sequence[Episode], extra: Sequence[str]
) -> tuple[str, ...]:
    """Returns the columns to read besides those that each frame has.

    Raises:
        ValueError: There is no such column, or a frame has a key of its name.
    """
    taken = [key for key in extra if key in FRAME_KEYS]
    if taken:
        raise ValueError(
            f"extra names {taken}, but each frame has keys of these names. Leave them out of "
            "extra=[...]; a column of states or actions is named with state= or action=."
        )
    try:
        names = pq.read_schema(episodes[0].data).names
    except (OSError, pa.ArrowException):
        return tuple(extra)  # the scan reports the file
    known = sorted(set(names) - FRAME_KEYS - set(layout.image_keys))
    unknown = [key for key in extra if key not in known]
    if unknown:
        near = sorted({n for key in unknown for n in difflib.get_close_matches(key, known, 3, 0.4)})
        raise ValueError(
            f"The dataset has no extra columns {unknown}."
            + (f" Did you mean one of {near}?" if near else "")
            + f" Its columns are {known}. Correct extra=[...]."
        )
    return tuple(dict.fromkeys(extra))
