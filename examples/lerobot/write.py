"""Writes LeRobot datasets from arrays, and the demo's: eight tasks that look alike."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8

from examples.lerobot.stats import Stats

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
    """One episode to write; every array has one row for each of its `t` frames.

    Attributes:
        state: `observation.state`.
        actions: `action`.
        task: The name of the task, or one for each frame.
        images: `{camera: pictures}`; sides must be even, as video codecs want them.
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


def write_dataset(
    root: str | Path,
    recordings: Sequence[Recording],
    *,
    version: Version = "v2.1",
    fps: int = 20,
    codec: str = "libx264",
    chunks_size: int = 1000,
    episodes_per_file: int = 4,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a LeRobot dataset and returns its folder.

    Args:
        root: A folder that does not exist yet, or is empty.
        recordings: The episodes; tasks are numbered in the order in which they occur.
        version: Of the format.
        fps: Frames a second.
        codec: FFmpeg's name of the video encoder.
        chunks_size: Episodes in a folder, for v2.0 and v2.1.
        episodes_per_file: For v3.0.
        info: Entries of `info.json` to set otherwise, for instance the path templates.

    Raises:
        FileExistsError: `root` holds something; nothing is overwritten.
        ValueError: Nothing to write, or recordings of several shapes.
    """
    root = Path(root)
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; write to another folder, or remove it first")
    _check(recordings)
    tasks = {
        name: i for i, name in enumerate(dict.fromkeys(t for r in recordings for t in r.tasks))
    }
    is_v3 = version == "v3.0"
    content = _info(recordings, version, fps, len(tasks), chunks_size, codec)
    content.update(info or {})
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(content, indent=4), encoding="utf-8")
    tables = _tables(recordings, tasks, fps)
    group = episodes_per_file if is_v3 else 1
    rows, encoded = [], {}
    for first in range(0, len(recordings), group):
        inside = range(first, min(first + group, len(recordings)))
        numbers = (
            {"chunk_index": 0, "file_index": first // group}
            if is_v3
            else {"episode_chunk": first // chunks_size, "episode_index": first}
        )
        path = root / content["data_path"].format(**numbers)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([tables[i] for i in inside]), path)
        for camera in recordings[0].images:
            path = root / content["video_path"].format(video_key=camera, **numbers)
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = [recordings[i].images[camera] for i in inside]
            # What several recordings share is encoded once, and so the same to the last bit.
            key = (*map(id, pictures),)
            if key in encoded:
                shutil.copyfile(encoded[key][0], path)
            else:
                write_video(path, np.concatenate(pictures), fps, codec)
                encoded[key] = path, pictures  # kept alive, so that no other gets their ids
        rows += _episode_rows(recordings, inside, numbers if is_v3 else {}, fps)
    _write_meta(meta, recordings, rows, tasks, version)
    return root


def write_video(
    path: Path, pictures: UInt8[np.ndarray, "t height width 3"], fps: int, codec: str = "libx264"
) -> None:
    """Encodes RGB pictures as a video; frame `i` is shown at `i / fps` seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        if not isinstance(stream, av.VideoStream):
            raise ValueError(f"{codec} is no video encoder; libx264 is one")
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = (
            1  # small pictures: threads would cost more than they give
        )
        for picture in pictures:
            # Converted here: left to the encoder, the result differs from run to run.
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_demo_dataset(
    root: str | Path,
    *,
    num_tasks: int = 8,
    episodes_per_task: int = 12,
    frames: int = 24,
    seed: int = 0,
    video: bool = True,
) -> Path:
    """Writes a v2.1 dataset of tasks that look alike, and returns its folder.

    An arm's tip sets out for one of `num_tasks` equal cups in a ring around the table. Only the
    first, slow steps are recorded, and each start is used once for every task, so that neither
    state nor picture says which cup it is: without a task id, the best guess is chance.

    States are the tip's `x, y, z` in meters, as a noisy sensor has them, and the gripper's opening;
    actions are the velocity `vx, vy, vz` in m/s and the opening. The gripper never moves. The
    camera looks at the table and does not see the arm.

    Args:
        root: A folder that does not exist yet, or is empty.
        num_tasks: Cups.
        episodes_per_task: Starts.
        frames: Steps of an episode, at 20 a second.
        seed: Of starts, pictures and jitter.
        video: Whether to write the camera's pictures.
    """
    rng = np.random.default_rng(seed)
    angles = 2 * np.pi * np.arange(num_tasks) / num_tasks
    cups = np.stack([np.cos(angles), np.sin(angles), np.full(num_tasks, -0.3)], axis=1)  # meters
    recordings = []
    for _ in range(episodes_per_task):
        start = rng.uniform([-0.3, -0.3, 0.1], [0.3, 0.3, 0.3])
        images = {"observation.images.wrist": _demo_pictures(rng, cups, frames)} if video else {}
        for task, cup in enumerate(cups):
            recordings.append(_demo_recording(rng, start, cup, f"reach cup {task}", frames, images))
    return write_dataset(root, recordings, version="v2.1")


def _demo_recording(
    rng: np.random.Generator,
    start: Float[np.ndarray, "3"],
    cup: Float[np.ndarray, "3"],
    task: str,
    frames: int,
    images: Mapping[str, UInt8[np.ndarray, "t height width 3"]],
) -> Recording:
    speed, jitter, noise, step = 0.04, 0.002, 0.03, 1 / 20  # m/s, m/s, m, s
    position, states, actions = start, [], []
    for _ in range(frames):
        way = cup - position
        velocity = speed * way / np.linalg.norm(way) + rng.normal(0, jitter, 3)
        states.append([*position + rng.normal(0, noise, 3), 1.0])
        actions.append([*velocity, 1.0])
        position = position + velocity * step
    return Recording(np.array(states, np.float32), np.array(actions, np.float32), task, images)


def _demo_pictures(
    rng: np.random.Generator, cups: Float[np.ndarray, "cups 3"], frames: int
) -> UInt8[np.ndarray, "t 64 64 3"]:
    """All cups on the table, in the light of the moment and with a camera's noise."""
    rows, columns = np.mgrid[:64, :64]
    picture = np.full((64, 64, 3), (150, 120, 90), np.float32)
    for x, y, _ in cups:
        inside = (columns - 32 - 24 * x) ** 2 + (rows - 32 + 24 * y) ** 2 < 20
        picture[inside] = (200, 60, 50)
    light = rng.uniform(0.7, 1.2)
    noise = rng.normal(0, 3, (frames, 64, 64, 1))
    return np.clip(picture * light + noise, 0, 255).astype(np.uint8)


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
            f"recordings must have the same keys and sizes, and one row per frame; got {shapes}"
        )


def _info(
    recordings: Sequence[Recording],
    version: Version,
    fps: int,
    num_tasks: int,
    chunks_size: int,
    codec: str,
) -> dict[str, Any]:
    first = recordings[0]
    features: dict[str, Any] = {
        camera: {
            "dtype": "video",
            "shape": list(pictures.shape[1:]),
            "names": ["height", "width", "channel"],
            "info": {"video.fps": fps, "video.codec": codec, "has_audio": False},
        }
        for camera, pictures in first.images.items()
    }
    for key, width in (
        ("observation.state", first.state.shape[1]),
        ("action", first.actions.shape[1]),
    ):
        features[key] = {"dtype": "float32", "shape": [width], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    count = len(recordings)
    return {
        "codebase_version": version,
        "robot_type": "generated",
        "total_episodes": count,
        "total_frames": sum(len(r.state) for r in recordings),
        "total_tasks": num_tasks,
        "total_videos": count * len(first.images),
        "total_chunks": -(-count // chunks_size),
        "chunks_size": chunks_size,
        "fps": fps,
        "splits": {"train": f"0:{count}"},
        **(_PATHS_V3 if version == "v3.0" else _PATHS),
        "features": features,
    }


def _tables(recordings: Sequence[Recording], tasks: dict[str, int], fps: int) -> list[pa.Table]:
    tables, total = [], 0
    for episode, recording in enumerate(recordings):
        count = len(recording.state)
        frame = np.arange(count)
        columns = {
            "observation.state": _vectors(recording.state),
            "action": _vectors(recording.actions),
            "timestamp": pa.array((frame / fps).astype(np.float32)),
            "frame_index": pa.array(frame),
            "episode_index": pa.array(np.full(count, episode)),
            "index": pa.array(total + frame),
            "task_index": pa.array([tasks[name] for name in recording.tasks], pa.int64()),
        }
        tables.append(pa.table(columns))
        total += count
    return tables


def _vectors(values: Float[np.ndarray, "t d"]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _episode_rows(
    recordings: Sequence[Recording], inside: range, file: dict[str, int], fps: int
) -> list[dict[str, Any]]:
    """The rows of `meta/episodes` for the episodes of one file; `file` is empty for v2."""
    rows, begin = [], sum(len(r.state) for r in recordings[: inside.start])
    first = begin
    for index in inside:
        length = len(recordings[index].state)
        tasks = list(dict.fromkeys(recordings[index].tasks))
        row: dict[str, Any] = {"episode_index": index, "tasks": tasks, "length": length}
        if file:
            row.update({f"data/{name}": number for name, number in file.items()})
            row.update(dataset_from_index=begin, dataset_to_index=begin + length)
            times = {
                "from_timestamp": (begin - first) / fps,
                "to_timestamp": (begin - first + length) / fps,
            }
            for camera in recordings[index].images:
                row.update({f"videos/{camera}/{n}": v for n, v in {**file, **times}.items()})
        rows.append(row)
        begin += length
    return rows


def _write_meta(
    meta: Path,
    recordings: Sequence[Recording],
    rows: list[dict[str, Any]],
    tasks: dict[str, int],
    version: Version,
) -> None:
    if version == "v3.0":
        path = meta / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        # LeRobot writes a pandas frame whose unnamed index is the name of the task.
        columns = {"task_index": list(tasks.values()), "__index_level_0__": list(tasks)}
        pq.write_table(pa.table(columns), meta / "tasks.parquet")
    else:
        _write_lines(meta / "episodes.jsonl", rows)
        _write_lines(
            meta / "tasks.jsonl", [{"task_index": i, "task": name} for name, i in tasks.items()]
        )
    if version == "v2.1":
        stats = [{"episode_index": i, "stats": _stats([r])} for i, r in enumerate(recordings)]
        _write_lines(meta / "episodes_stats.jsonl", stats)
    else:
        content = _stats(recordings, quantiles=version == "v3.0")
        (meta / "stats.json").write_text(json.dumps(content, indent=4), encoding="utf-8")


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


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
