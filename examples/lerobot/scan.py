"""The preflight: reads the files of a LeRobot dataset once, and finds what must not be trained on.

Nothing is decoded: of a video, the end is looked at.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from av.error import FFmpegError
from jaxtyping import Float, Int64

from examples.lerobot.layout import Episode, Layout
from examples.lerobot.stats import Stats, StatsBuilder, pool
from examples.lerobot.video import probe


@dataclasses.dataclass
class Scan:
    """What the files hold.

    Attributes:
        first_row: For each episode index its first row in its Parquet file.
        runs: Rows of `(episode_index, first frame, frames, task_index)` with one task throughout.
        stats: Statistics of the vectors that were read; empty without preflight.
        sizes: Height and width of each video camera.
        found: Codecs and the like, for the report.
        warnings: What is odd, but harmless.
    """

    first_row: dict[int, int]
    runs: Int64[np.ndarray, "runs 4"]
    stats: dict[str, Stats]
    sizes: dict[str, tuple[int, int]]
    found: list[str]
    warnings: list[str]


def scan(
    layout: Layout,
    episodes: Sequence[Episode],
    vectors: dict[str, tuple[str, ...]],
    cameras: Sequence[str],
    *,
    preflight: bool,
) -> Scan:
    """Checks the files of `episodes` and collects what the reader needs to know of them.

    Args:
        layout: The dataset; problems are added to its `problems`, none is raised.
        episodes: Which of them.
        vectors: `{"state": keys, "actions": keys}`; the keys of each are concatenated.
        cameras: Which are read.
        preflight: Whether to read states and actions, for statistics and NaN. Without, only the
            columns that say which frame belongs to which task and episode.
    """
    result = Scan({}, np.zeros((0, 4), np.int64), {}, {}, [], [])
    builders: dict[str, StatsBuilder] = defaultdict(StatsBuilder)
    runs: list[np.ndarray] = []
    offsets: list[float] = []
    by_file: dict[Path, list[Episode]] = defaultdict(list)
    for episode in episodes:
        by_file[episode.data].append(episode)
    keys = {key for group in vectors.values() for key in group}
    keys |= set(cameras) & set(layout.image_keys)
    for path, inside in by_file.items():
        table = _open(layout, path, keys, read=vectors if preflight else {})
        if table is None:
            continue
        try:
            tasks = _integers(table, "task_index")
            episode_of_row = (
                _integers(table, "episode_index")
                if "episode_index" in table.column_names
                else np.full(table.num_rows, inside[0].index)
            )
        except ValueError as error:
            layout.problems.add("unsuitable column", f"{layout.name(path)}: {error}")
            continue
        for episode in inside:
            first = _locate(layout, episode_of_row, episode)
            if first is None:
                continue
            result.first_row[episode.index] = first
            rows = table.slice(first, episode.length)
            runs.append(_runs(tasks[first : first + episode.length], episode.index))
            if preflight:
                _check_vectors(layout, rows, episode, vectors, builders)
                offsets.append(_time_offset(rows, layout.fps))
    result.runs = np.concatenate(runs) if runs else result.runs
    result.stats = {name: builder.build() for name, builder in builders.items()}
    late = [offset for offset in offsets if offset > 0.5 / layout.fps]
    if late:
        result.warnings.append(
            f"timestamps of {len(late)} episodes differ from frame / fps by up to {max(late):.3g} "
            "s: pictures are matched to frames by position"
        )
    _scan_videos(layout, episodes, cameras, result)
    return result


def read_vectors(table: pa.Table, keys: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """The columns of `keys` side by side, as float32 `[n, d]`; missing entries become NaN.

    Raises:
        ValueError: A column of matrices, of text, or of vectors of several lengths.
    """
    with np.errstate(over="ignore"):  # what overflows float32 is not finite, and reported as such
        return np.concatenate([_vector(table, key) for key in keys], axis=1).astype(np.float32)


def stored_stats(layout: Layout, keys: tuple[str, ...]) -> tuple[str, Stats] | None:
    """The statistics that the dataset itself has for `keys`, and the name of their file.

    The quantiles are NaN where it has none: v2.1 keeps statistics per episode, and the quantiles of
    a whole do not follow from those of its parts.

    Raises:
        ValueError, KeyError, TypeError: Malformed.
    """
    rows = layout.read_json_lines("episodes_stats.jsonl")
    if rows:
        parts = [_parse_stats(row["stats"], keys, quantiles=False) for row in rows]
        return "meta/episodes_stats.jsonl", pool(parts)
    content = layout.read_json("stats.json")
    if not content:
        return None
    frames = sum(episode.length for episode in layout.episodes)
    stats = _parse_stats(content, keys, quantiles=True)
    return "meta/stats.json", dataclasses.replace(stats, count=frames)


def choose_stats(
    layout: Layout, vectors: dict[str, tuple[str, ...]], result: Scan
) -> dict[str, Stats]:
    """The statistics to normalize by: the stored ones unless the data contradicts them.

    Tools that merge and split datasets leave stored statistics behind that belong to other data.
    """
    chosen = {}
    for name, keys in vectors.items():
        computed = result.stats.get(name)
        source, stats, why = "computed from the data", computed, "there are none"
        try:
            stored = stored_stats(layout, keys)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            stored, why = None, f"the stored ones are unusable: {type(error).__name__}: {error}"
            result.warnings.append(f"statistics of {name}: {why}")
        if stored is not None:
            contradiction = _contradiction(stored[1], computed)
            if contradiction:
                result.warnings.append(
                    f"statistics of {name}: {stored[0]} is not used, it contradicts the data: "
                    f"{contradiction}"
                )
            else:
                source, stats = stored
        if stats is not None and computed is not None and np.isnan(stats.q01).any():
            source += ", quantiles computed"
            stats = dataclasses.replace(stats, q01=computed.q01, q99=computed.q99)
        if stats is None or np.isnan(stats.q01).any():
            layout.problems.add("statistics", f"{name}: {why}, or they lack q01 and q99")
            continue
        result.found.append(f"statistics of {name}: {source}")
        chosen[name] = stats
    return chosen


def _contradiction(stored: Stats, computed: Stats | None) -> str:
    """Why the stored statistics cannot be those of data with the computed ones."""
    if computed is None:
        return ""
    if len(stored.mean) != len(computed.mean):
        return f"{len(stored.mean)} dimensions instead of {len(computed.mean)}"
    # Stored as float32, and of the whole dataset where episodes were selected: wider is possible.
    slack = 1e-4 * np.maximum(1.0, np.abs(computed.max) + np.abs(computed.min))
    outside = (computed.min < stored.min - slack) | (computed.max > stored.max + slack)
    if outside.any():
        return (
            f"data beyond its minimum or maximum in dimensions {np.flatnonzero(outside).tolist()}"
        )
    return ""


def _parse_stats(content: dict[str, Any], keys: tuple[str, ...], *, quantiles: bool) -> Stats:
    def read(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(content[k][name], np.float64).ravel() for k in keys])

    values = {name: read(name) for name in ("mean", "std", "min", "max")}
    for name in ("q01", "q99"):
        known = quantiles and all(name in content[key] for key in keys)
        values[name] = read(name) if known else np.full_like(values["mean"], np.nan)
    if not all(np.isfinite(values[name]).all() for name in ("mean", "std", "min", "max")):
        raise ValueError("not finite")
    if (values["min"] > values["max"]).any():
        raise ValueError("a minimum above its maximum")
    return Stats(**values, count=int(np.ravel(content[keys[0]].get("count", 1))[0]))


def _open(layout: Layout, path: Path, keys: set[str], read: dict[str, Any]) -> pa.Table | None:
    """The columns of a file that the scan needs; None, and a problem, where it cannot be read."""
    name = layout.name(path)
    try:
        file = pq.ParquetFile(path)
        names = set(file.schema_arrow.names)
        missing = sorted((keys | {"task_index"}) - names)
        if missing:
            layout.problems.add("missing column", f"{name}: {missing}; it has {sorted(names)}")
            return None
        columns = {key for group in read.values() for key in group}
        columns |= {"task_index", *({"episode_index"} & names)}
        columns |= {"timestamp"} & names if read else set()
        table = file.read(columns=sorted(columns))
    except FileNotFoundError:
        layout.problems.add("missing file", name)
    except (OSError, ValueError, pa.ArrowException) as error:
        layout.problems.add("unreadable file", f"{name}: {str(error).splitlines()[0]}")
    else:
        return table
    return None


def _locate(layout: Layout, inside: Int64[np.ndarray, " n"], episode: Episode) -> int | None:
    """The first row of the episode in its file; None, and a problem, unless all are there.

    Args:
        layout: The dataset.
        inside: The episode of each row of the file.
        episode: The one to find.
    """
    rows = np.flatnonzero(inside == episode.index)
    together = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
    if together and len(rows) == episode.length:
        return int(rows[0])
    others = sorted(set(inside.tolist()) - {episode.index})
    layout.problems.add(
        "frame-count mismatch",
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


def _check_vectors(
    layout: Layout,
    rows: pa.Table,
    episode: Episode,
    vectors: dict[str, tuple[str, ...]],
    builders: dict[str, StatsBuilder],
) -> None:
    name = layout.name(episode.data)
    for group, keys in vectors.items():
        try:
            values = read_vectors(rows, keys)
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                frames = sorted(set(bad[:, 0].tolist()))
                layout.problems.add(
                    "value that is not finite",
                    f"{name}: {'+'.join(keys)}: episode {episode.index}, frame {frames[0]}"
                    f", dimension {bad[0, 1]} is {values[tuple(bad[0])]}"
                    + (f" (and in {len(frames) - 1} more frames)" if len(frames) > 1 else ""),
                )
            else:
                builders[group].add(values)
        except ValueError as error:
            layout.problems.add("unsuitable column", f"{name}: {error}")


def _time_offset(rows: pa.Table, fps: float) -> float:
    """How far the timestamps are from `frame / fps`, in seconds."""
    if "timestamp" not in rows.column_names:
        return 0.0
    times = _vector(rows, "timestamp")[:, 0]
    return float(np.abs(times - np.arange(len(times)) / fps).max())


def _scan_videos(
    layout: Layout, episodes: Sequence[Episode], cameras: Sequence[str], result: Scan
) -> None:
    for camera in set(cameras) & set(layout.video_keys):
        ends: dict[Path, float | None] = {}
        seen: dict[tuple[int, int], str] = {}
        codecs = set()
        for episode in episodes:
            if camera not in episode.videos:
                layout.problems.add("missing file", f"no {camera} for episode {episode.index}")
                continue
            path, begin = episode.videos[camera]
            if path not in ends:
                ends[path] = _probe(layout, path, seen, codecs)
            end, last = ends[path], begin + (episode.length - 1) / layout.fps
            if end is not None and end < last - 0.5 / layout.fps:
                has = max(0, round((end - begin) * layout.fps) + 1)
                layout.problems.add(
                    "video shorter than its episode",
                    f"{layout.name(path)}: {has} frames of episode {episode.index}, which has "
                    f"{episode.length}",
                )
        if len(seen) > 1:
            sizes = ", ".join(f"{h}x{w} in {name}" for (h, w), name in seen.items())
            layout.problems.add("video that does not fit", f"{camera}: several sizes: {sizes}")
        elif seen:
            result.sizes[camera] = height, width = next(iter(seen))
            result.found.append(f"camera {camera}: {height}x{width}, {', '.join(sorted(codecs))}")
            declared = layout.info["features"][camera].get("shape") or []
            if not {height, width} <= set(declared):
                result.warnings.append(
                    f"camera {camera}: info.json declares {declared}, the pictures are "
                    f"{height}x{width}"
                )


def _probe(
    layout: Layout, path: Path, seen: dict[tuple[int, int], str], codecs: set[str]
) -> float | None:
    name = layout.name(path)
    try:
        video = probe(path)
    except FileNotFoundError:
        layout.problems.add("missing file", name)
        return None
    except (OSError, ValueError, FFmpegError) as error:
        layout.problems.add("unreadable file", f"{name}: {error}")
        return None
    seen.setdefault(video.size, name)
    codecs.add(video.codec)
    if abs(video.fps - layout.fps) > 0.01 * layout.fps:
        layout.problems.add(
            "video that does not fit", f"{name}: {video.fps:g} fps, but the data {layout.fps:g}"
        )
    return video.end


def _integers(table: pa.Table, key: str) -> Int64[np.ndarray, " n"]:
    """A column of integers, stored as scalars or as lists of one; missing ones become -1."""
    values = _vector(table, key)[:, 0]
    return np.where(np.isnan(values), -1, values).astype(np.int64)


def _vector(table: pa.Table, key: str) -> Float[np.ndarray, "n d"]:
    """A column of scalars or of vectors of one length, as float64 `[n, d]`."""
    column = table.column(key)
    count = len(column)
    if not pa.types.is_nested(column.type):
        return _to_float(column, key)[:, None]
    if not isinstance(column.type, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        raise ValueError(f"{key} is a column of {column.type}; only vectors can be read")
    lengths = pc.call_function("list_value_length", [column]).unique().to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        raise ValueError(f"{key} has vectors of lengths {lengths}; there must be one")
    return _to_float(pc.call_function("list_flatten", [column]), key).reshape(count, lengths[0])


def _to_float(column: pa.ChunkedArray, key: str) -> Float[np.ndarray, " n"]:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"{key} is a column of {kind}; only numbers can be read")
    return pc.cast(column, pa.float64()).to_numpy()
