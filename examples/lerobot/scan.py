"""The preflight: reads the files of a dataset once, and finds what must not be trained on.

Of videos, the end is read, and a few frames; see `scan_videos`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from . import columns
from .layout import Episode, Layout
from .problems import Problem
from .report import Notes
from .scan_videos import scan_videos
from .stats import Stats, StatsBuilder

Vectors = Mapping[str, tuple[str, ...]]
"""`{"state": keys, "actions": keys}`; the columns of each are concatenated."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """The content of a dataset's files.

    Attributes:
        first_row: For each episode index, its first row in its Parquet file.
        runs: Rows of `(episode_index, first frame, frames, task_index)`; each has one task.
        stats: Statistics of the vectors that were read; empty without preflight.
        sizes: Height and width of each video camera.
    """

    first_row: dict[int, int]
    runs: Int64[np.ndarray, "runs 4"]
    stats: dict[str, Stats]
    sizes: dict[str, tuple[int, int]]


def scan(
    layout: Layout,
    episodes: Sequence[Episode],
    vectors: Vectors,
    cameras: Sequence[str],
    notes: Notes,
    *,
    preflight: bool,
    task_key: str = "task_index",
    extra: Sequence[str] = (),
) -> Scan:
    """Checks the files of `episodes`, and collects what the reader needs to know about them.

    Args:
        layout: The dataset. Problems are added to its `problems`; none is raised.
        episodes: The episodes to read.
        vectors: The keys of states and actions.
        cameras: The cameras to read.
        notes: Lines for the report.
        preflight: Whether to read states and actions, for statistics and to find NaN, and extra
            columns. Without it, only the columns that give each frame's task and episode are read.
        task_key: The column that gives each frame's task.
        extra: The columns to read besides.
    """
    required = {key for group in vectors.values() for key in group}
    required |= {task_key, *(set(cameras) & set(layout.image_keys)), *extra}
    first_row: dict[int, int] = {}
    runs: list[np.ndarray] = []
    builders: dict[str, StatsBuilder] = defaultdict(StatsBuilder)
    offsets: list[float] = []
    content = {*required, "timestamp"} - set(cameras) if preflight else set()
    kinds: dict[str, dict[str, int]] = defaultdict(dict)
    for episode, first, tasks, rows in _read(layout, episodes, required, content, task_key):
        first_row[episode.index] = first
        runs.append(_runs(tasks, episode.index))
        if preflight:
            _add_vectors(layout, rows, episode, vectors, builders)
            _add_extra(layout, rows, episode, extra, kinds)
        offsets.append(_time_offset(rows, layout.fps))
    _check_kinds(layout, kinds)
    late = [offset for offset in offsets if offset > 0.5 / layout.fps]
    if late:
        notes.warnings.append(
            f"timestamps of {len(late)} episodes differ from frame / fps by up to {max(late):.3g} "
            "s: images are matched to frames by position"
        )
    return Scan(
        first_row,
        np.concatenate(runs) if runs else np.zeros((0, 4), np.int64),
        {name: builder.build() for name, builder in builders.items()},
        scan_videos(layout, episodes, cameras, notes),
    )


def _read(
    layout: Layout,
    episodes: Sequence[Episode],
    required: set[str],
    content: set[str],
    task_key: str,
) -> Iterator[tuple[Episode, int, Int64[np.ndarray, " n"], pa.Table]]:
    """Yields each readable episode, its first row, the task of each frame, and its rows."""
    by_file: dict[Path, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_file[episode.data].append(episode)
    for path, inside in by_file.items():
        table = _open(layout, path, required, content, task_key)
        if table is None:
            continue
        try:
            tasks = columns.integers(table, task_key)
            episode_of_row = (
                columns.integers(table, "episode_index")
                if "episode_index" in table.column_names
                else np.full(table.num_rows, inside[0].index)
            )
        except ValueError as error:
            layout.problems.add(Problem.UNSUITABLE_COLUMN, f"{layout.name(path)}: {error}")
            continue
        for episode in inside:
            first = _locate(layout, episode_of_row, episode)
            if first is not None:
                end = first + episode.length
                yield episode, first, tasks[first:end], table.slice(first, episode.length)


def _open(
    layout: Layout, path: Path, required: set[str], content: set[str], task_key: str
) -> pa.Table | None:
    """Returns the columns that the scan reads; adds a problem if the file cannot be used."""
    name = layout.name(path)
    try:
        file = pq.ParquetFile(path)
        names = set(file.schema_arrow.names)
        missing = sorted(required - names)
        if missing:
            layout.problems.add(
                Problem.MISSING_COLUMN, f"{name}: {missing}; its columns are {sorted(names)}"
            )
            return None
        return file.read(columns=sorted(names & {task_key, "episode_index", *content}))
    except FileNotFoundError:
        layout.problems.add(Problem.MISSING_FILE, name)
    except (OSError, ValueError, pa.ArrowException) as error:
        layout.problems.add(Problem.UNREADABLE_FILE, f"{name}: {str(error).splitlines()[0]}")
    return None


def _locate(
    layout: Layout, episode_of_row: Int64[np.ndarray, " n"], episode: Episode
) -> int | None:
    """Returns the episode's first row in its file; adds a problem unless all rows are there."""
    rows = np.flatnonzero(episode_of_row == episode.index)
    together = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
    if together and len(rows) == episode.length:
        return int(rows[0])
    others = sorted(set(episode_of_row.tolist()) - {episode.index})
    layout.problems.add(
        Problem.FRAME_COUNT,
        f"{layout.name(episode.data)}: {len(rows)} frames of episode {episode.index}, but its "
        f"length in meta/episodes is {episode.length}"
        + (", and they are not in one piece" if len(rows) and not together else "")
        + (f"; it holds episodes {others[:8]}" if others and not len(rows) else ""),
    )
    return None


def _runs(tasks: Int64[np.ndarray, " n"], episode: int) -> Int64[np.ndarray, "runs 4"]:
    starts = np.flatnonzero(np.diff(tasks, prepend=tasks[0] - 1))
    lengths = np.diff(starts, append=len(tasks))
    return np.stack([np.full_like(starts, episode), starts, lengths, tasks[starts]], axis=1)


def _add_vectors(
    layout: Layout,
    rows: pa.Table,
    episode: Episode,
    vectors: Vectors,
    builders: dict[str, StatsBuilder],
) -> None:
    """Adds an episode's states and actions to the statistics, or a problem if they are unusable."""
    name = layout.name(episode.data)
    for group, keys in vectors.items():
        try:
            values = columns.vectors(rows, keys)
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                frames = sorted(set(bad[:, 0].tolist()))
                layout.problems.add(
                    Problem.NOT_FINITE,
                    f"{name}: {'+'.join(keys)}: episode {episode.index}, frame {frames[0]}"
                    f", dimension {bad[0, 1]} is {values[tuple(bad[0])]}"
                    + (f" (and in {len(frames) - 1} more frames)" if len(frames) > 1 else ""),
                )
            else:
                builders[group].add(values)
        except ValueError as error:
            layout.problems.add(Problem.UNSUITABLE_COLUMN, f"{name}: {error}")


def _add_extra(
    layout: Layout,
    rows: pa.Table,
    episode: Episode,
    extra: Sequence[str],
    kinds: dict[str, dict[str, int]],
) -> None:
    """Adds the type of each extra column and an episode that has it, or a problem."""
    for key in extra:
        try:
            values = columns.stored(rows, key)
        except ValueError as error:
            name = layout.name(episode.data)
            layout.problems.add(
                Problem.UNSUITABLE_COLUMN, f"{name}: episode {episode.index}: {error}"
            )
        else:
            kind = f"{columns.type_name(values)} {list(values.shape[1:])}"
            kinds[key].setdefault(kind, episode.index)


def _check_kinds(layout: Layout, kinds: Mapping[str, Mapping[str, int]]) -> None:
    """Adds a problem for each extra column whose values do not fit into one batch."""
    for key, episodes in kinds.items():
        if len(episodes) > 1:
            listed = ", ".join(f"{kind} in episode {i}" for kind, i in episodes.items())
            layout.problems.add(Problem.UNSUITABLE_COLUMN, f"{key} is {listed}")


def _time_offset(rows: pa.Table, fps: float) -> float:
    """Returns the largest difference between the timestamps and `frame / fps`, in seconds."""
    if "timestamp" not in rows.column_names:
        return 0.0
    times = columns.column(rows, "timestamp")[:, 0]
    return float(np.abs(times - np.arange(len(times)) / fps).max())
