"""Writes LeRobot datasets of every version from arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8

from .stats import Stats

Version = Literal["v2.0", "v2.1", "v3.0"]

_PATHS = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
_PATHS_V3 = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


@dataclasses.dataclass(frozen=True)
class Recording:
    """One episode to write. Every array has one row for each of the `t` frames.

    Attributes:
        state: The column `observation.state`.
        actions: The column `action`.
        task: The name of the task, or a name for each frame.
        images: `{camera: images}`. Height and width must be even, as video codecs need it.
    """

    state: Float[np.ndarray, "t s"]
    actions: Float[np.ndarray, "t a"]
    task: str | Sequence[str]
    images: Mapping[str, UInt8[np.ndarray, "t height width 3"]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def tasks(self) -> list[str]:
        """The task of each frame."""
        return [self.task] * len(self.state) if isinstance(self.task, str) else list(self.task)


@dataclasses.dataclass(frozen=True)
class _File:
    """The episodes in one Parquet file, and the numbers in its path."""

    episodes: range
    numbers: dict[str, int]


def write_dataset(
    root: str | Path,
    recordings: Sequence[Recording],
    *,
    version: Version = "v2.1",
    fps: int = 20,
    codec: str = "libx264",
    chunks_size: int = 1000,
    episodes_per_file: int = 4,
    keyframe_every: int | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a LeRobot dataset, and returns its folder.

    Args:
        root: A folder that does not exist yet, or is empty.
        recordings: The episodes. Tasks are numbered in the order in which they occur.
        version: The version of the format.
        fps: Frames per second.
        codec: FFmpeg's name of the video encoder.
        chunks_size: The number of episodes in a folder, for v2.0 and v2.1.
        episodes_per_file: The number of episodes in a file, for v3.0.
        keyframe_every: The number of frames from one key frame of a video to the next, as 2 in
            LeRobot; by default the encoder's. A small one makes random access fast, and files
            large.
        info: Entries that replace those of `info.json`, for instance path templates.

    Raises:
        FileExistsError: `root` is not empty. Nothing is overwritten.
        ValueError: There are no recordings, or their shapes differ.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty. Write to another folder, or remove it first.")
    _check(recordings)
    names = dict.fromkeys(task for recording in recordings for task in recording.tasks)
    tasks = {name: index for index, name in enumerate(names)}
    files = _files(len(recordings), version, chunks_size, episodes_per_file)
    content = {**_info(recordings, version, fps, len(tasks), chunks_size, codec), **(info or {})}
    meta = root / "meta"
    meta.mkdir(parents=True)
    _write_json(meta / "info.json", content)
    _write_meta(meta, recordings, files, tasks, version, fps)
    _write_data(root, content["data_path"], recordings, files, tasks, fps)
    _write_videos(root, content["video_path"], recordings, files, fps, codec, keyframe_every)
    return root


def write_video(
    path: Path,
    images: UInt8[np.ndarray, "t height width 3"],
    fps: int,
    codec: str = "libx264",
    keyframe_every: int | None = None,
) -> None:
    """Encodes RGB images as a video. Frame `i` is shown at `i / fps` seconds."""
    if any(size % 2 for size in images.shape[1:3]):
        raise ValueError(
            f"images have {images.shape[1]} x {images.shape[2]} pixels, but video encoders need "
            "even numbers; cut or pad one row or column."
        )
    with _usual_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        if not isinstance(stream, av.VideoStream):
            raise ValueError(f"{codec} is not a video encoder. Pass one, for instance libx264.")
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if keyframe_every is not None:
            stream.gop_size = keyframe_every
        stream.codec_context.thread_count = 1  # for small images, threads cost more than they save
        for image in images:
            # Converted here and by one thread, so that every run gives the same bytes.
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode(None))


@contextlib.contextmanager
def _usual_priority() -> Iterator[None]:
    """Ends with the scheduling that this thread had before.

    The encoder libsvtav1 makes a thread of the superuser a real-time one, which then starves all
    others on its core.
    """
    if not hasattr(os, "sched_getscheduler"):  # not Linux
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def _check(recordings: Sequence[Recording]) -> None:
    shapes = {
        (r.state.shape[1], r.actions.shape[1], *((k, v.shape[1:]) for k, v in r.images.items()))
        for r in recordings
    }
    lengths = all(
        {len(r.actions), len(r.tasks), *map(len, r.images.values())} == {len(r.state)}
        for r in recordings
    )
    if len(shapes) != 1 or not lengths:
        raise ValueError(
            f"The recordings have the shapes {shapes}, but must have the same keys and sizes, and "
            "one row per frame. Correct them, or write several datasets."
        )


def _files(count: int, version: Version, chunks_size: int, episodes_per_file: int) -> list[_File]:
    if version != "v3.0":
        return [
            _File(range(i, i + 1), {"episode_chunk": i // chunks_size, "episode_index": i})
            for i in range(count)
        ]
    return [
        _File(
            range(first, min(first + episodes_per_file, count)),
            {"chunk_index": 0, "file_index": number},
        )
        for number, first in enumerate(range(0, count, episodes_per_file))
    ]


def _info(
    recordings: Sequence[Recording],
    version: Version,
    fps: int,
    num_tasks: int,
    chunks_size: int,
    codec: str,
) -> dict[str, Any]:
    count = len(recordings)
    return {
        "codebase_version": version,
        "robot_type": "generated",
        "total_episodes": count,
        "total_frames": sum(len(r.state) for r in recordings),
        "total_tasks": num_tasks,
        "total_videos": count * len(recordings[0].images),
        "total_chunks": -(-count // chunks_size),
        "chunks_size": chunks_size,
        "fps": fps,
        "splits": {"train": f"0:{count}"},
        **(_PATHS_V3 if version == "v3.0" else _PATHS),
        "features": _features(recordings[0], fps, codec),
    }


def _features(recording: Recording, fps: int, codec: str) -> dict[str, Any]:
    features: dict[str, Any] = {
        camera: {
            "dtype": "video",
            "shape": list(images.shape[1:]),
            "names": ["height", "width", "channel"],
            "info": {"video.fps": fps, "video.codec": codec, "has_audio": False},
        }
        for camera, images in recording.images.items()
    }
    floats = {
        "observation.state": recording.state.shape[1],
        "action": recording.actions.shape[1],
        "timestamp": 1,
    }
    for key, width in floats.items():
        features[key] = {"dtype": "float32", "shape": [width], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    return features


def _write_data(
    root: Path,
    template: str,
    recordings: Sequence[Recording],
    files: Sequence[_File],
    tasks: dict[str, int],
    fps: int,
) -> None:
    tables, total = [], 0
    for episode, recording in enumerate(recordings):
        frame = np.arange(len(recording.state))
        columns = {
            "observation.state": _vectors(recording.state),
            "action": _vectors(recording.actions),
            "timestamp": pa.array((frame / fps).astype(np.float32)),
            "frame_index": pa.array(frame),
            "episode_index": pa.array(np.full(len(frame), episode)),
            "index": pa.array(total + frame),
            "task_index": pa.array([tasks[name] for name in recording.tasks], pa.int64()),
        }
        tables.append(pa.table(columns))
        total += len(frame)
    for file in files:
        path = _place(root, template, **file.numbers)
        pq.write_table(pa.concat_tables([tables[i] for i in file.episodes]), path)


def _vectors(values: Float[np.ndarray, "t d"]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _write_videos(
    root: Path,
    template: str,
    recordings: Sequence[Recording],
    files: Sequence[_File],
    fps: int,
    codec: str,
    keyframe_every: int | None,
) -> None:
    # Recordings may share an array of images. It is encoded once, so that their videos are equal.
    encoded: dict[tuple[int, ...], tuple[Path, list[np.ndarray]]] = {}
    for file in files:
        for camera in recordings[0].images:
            path = _place(root, template, video_key=camera, **file.numbers)
            images = [recordings[i].images[camera] for i in file.episodes]
            key = tuple(map(id, images))
            if key in encoded:
                shutil.copyfile(encoded[key][0], path)
            else:
                write_video(path, np.concatenate(images), fps, codec, keyframe_every)
                encoded[key] = path, images  # kept alive, so that no other array gets the same id


def _place(root: Path, template: str, **numbers: Any) -> Path:
    """Returns the path that a template gives, and makes its folder."""
    path = root / template.format(**numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_meta(
    meta: Path,
    recordings: Sequence[Recording],
    files: Sequence[_File],
    tasks: dict[str, int],
    version: Version,
    fps: int,
) -> None:
    is_v3 = version == "v3.0"
    rows = [row for file in files for row in _episode_rows(recordings, file, fps, is_v3)]
    if is_v3:
        path = _place(meta, "episodes/chunk-000/file-000.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
        pq.write_table(_tasks_table(tasks), meta / "tasks.parquet")
    else:
        _write_lines(meta / "episodes.jsonl", rows)
        task_rows = [{"task_index": index, "task": name} for name, index in tasks.items()]
        _write_lines(meta / "tasks.jsonl", task_rows)
    if version == "v2.1":
        stats = [{"episode_index": i, "stats": _stats([r])} for i, r in enumerate(recordings)]
        _write_lines(meta / "episodes_stats.jsonl", stats)
    else:
        _write_json(meta / "stats.json", _stats(recordings, quantiles=is_v3))


def _tasks_table(tasks: dict[str, int]) -> pa.Table:
    """Returns the pandas frame that LeRobot reads: its unnamed index is the name of the task."""
    index = "__index_level_0__"
    table = pa.table({"task_index": list(tasks.values()), index: list(tasks)})
    columns = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy}
        for name, field, kind, numpy in (
            ("task_index", "task_index", "int64", "int64"),
            (None, index, "unicode", "object"),
        )
    ]
    about = {"index_columns": [index], "column_indexes": [], "columns": columns}
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _episode_rows(
    recordings: Sequence[Recording], file: _File, fps: int, is_v3: bool
) -> list[dict[str, Any]]:
    """Returns the rows of `meta/episodes` for the episodes of one file."""
    rows, first = [], sum(len(r.state) for r in recordings[: file.episodes.start])
    begin = first
    for index in file.episodes:
        recording = recordings[index]
        length = len(recording.state)
        tasks = list(dict.fromkeys(recording.tasks))
        row: dict[str, Any] = {"episode_index": index, "tasks": tasks, "length": length}
        if is_v3:
            row.update({f"data/{name}": number for name, number in file.numbers.items()})
            row.update(dataset_from_index=begin, dataset_to_index=begin + length)
            times = {
                "from_timestamp": (begin - first) / fps,
                "to_timestamp": (begin - first + length) / fps,
            }
            place = {**file.numbers, **times}
            for camera in recording.images:
                row.update({f"videos/{camera}/{name}": value for name, value in place.items()})
        rows.append(row)
        begin += length
    return rows


def _stats(recordings: Sequence[Recording], *, quantiles: bool = False) -> dict[str, Any]:
    parts = {
        "observation.state": Stats.of(np.concatenate([r.state for r in recordings])),
        "action": Stats.of(np.concatenate([r.actions for r in recordings])),
    }
    names = ("min", "max", "mean", "std") + (("q01", "q99") if quantiles else ())
    return {
        key: {**{name: getattr(part, name).tolist() for name in names}, "count": [part.count]}
        for key, part in parts.items()
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
