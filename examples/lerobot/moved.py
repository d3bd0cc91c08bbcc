"""Episodes whose data is in another file than `meta/episodes` names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from . import columns
from .layout import Episode, Layout
from .report import Notes


def find_moved(layout: Layout, episodes: Sequence[Episode], notes: Notes) -> list[Episode]:
    """Returns the episodes with the files that hold them, and warns of those that moved (v3.0).

    Converters have left file numbers behind that belong to a neighbour. An episode that is in no
    other file, or in several, stays where the metadata says, and is a problem of the scan.
    """
    if not layout.is_v3:
        return list(episodes)
    inside = {path: _indices(path) for path in {episode.data for episode in episodes}}
    lost = {e.index for e in episodes if _is_lost(e, inside[e.data])}
    if not lost:
        return list(episodes)
    folders = {path.parent.parent for path in inside}
    for path in sorted(file for folder in folders for file in folder.glob("*/*.parquet")):
        if path not in inside and layout.is_inside(path):
            inside[path] = _indices(path)
    result, lines = [], []
    for episode in episodes:
        places = [path for path, indices in inside.items() if episode.index in (indices or ())]
        if episode.index in lost and len(places) == 1:
            lines.append(
                f"episode {episode.index} in {layout.name(places[0])}, not in "
                f"{layout.name(episode.data)}"
            )
            episode = dataclasses.replace(episode, data=places[0])
        result.append(episode)
    if lines:
        notes.warnings.append(
            f"the file numbers of {len(lines)} episodes in meta/episodes are wrong; their data was "
            f"found by its episode_index: {'; '.join(lines)}"
        )
    return result


def _is_lost(episode: Episode, indices: set[int] | None) -> bool:
    return indices is not None and episode.index not in indices


def _indices(path: Path) -> set[int] | None:
    """Returns the episodes in a file; none if it does not exist, and `None` if it is unreadable."""
    try:
        table = pq.read_table(path, columns=["episode_index"])
        return set(columns.integers(table, "episode_index").tolist())
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
