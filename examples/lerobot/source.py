"""`LeRobotData`: a LeRobot dataset as a random-access source of frames."""

from __future__ import annotations

import copy
import io
import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from examples.lerobot.layout import DatasetError, Episode, Layout
from examples.lerobot.report import Report, make_report, odd_info
from examples.lerobot.scan import Scan, choose_stats, read_vectors, scan
from examples.lerobot.tasks import check_listed, read_tasks, select_tasks, shown
from examples.lerobot.video import VideoReader
from taskcond import TaskVocabulary, extract_task_id

_OPEN_VIDEOS = 16  # per worker
_TABLE_BYTES = 256 * 2**20  # of states, actions and pictures in Parquet, per worker

Keys = str | Sequence[str]


class LeRobotData:
    """A LeRobot dataset as a random-access source of frames, one for each time step.

    Opening reads every file once (of videos, the end) and refuses a dataset that must not be
    trained on. Works with `grain.MapDataset.source` and `grain.DataLoader`; it pickles without its
    caches, so that each worker process opens its own files.

    Args:
        root: The dataset's folder, the one that holds `meta`.
        horizon: Actions in a chunk. At the end of an episode the last action is repeated, and
            `action_is_pad` is true there.
        cameras: Keys of the cameras to read; `None` reads all that are on disk, `[]` none.
        state: Key of the state, or several, which are concatenated.
        action: The same for actions.
        episodes: The `episode_index`es to read; `None` reads all.
        tasks: Names of the tasks to read; `None` reads all.
        weights: `{task name: factor}`: 2 shows each frame of a task twice an epoch, 0.5 every
            second one. Other tasks count once.
        vocabulary: The model's tasks; `None` takes the dataset's, in the order of their indices.
        duplicate_tasks: What to do with two indices of one name or two names of one index:
            `"error"`, or `"merge"`, which makes one task of the former, and calls the latter by
            the alphabetically first.
        preflight: Whether to read all states and actions on opening. `False` is for datasets of
            hundreds of gigabytes: statistics are then the stored ones, and NaN is found on reading.

    Raises:
        DatasetError: All that is wrong with the files, at once, each with the fix.
        ValueError: An argument names a camera, an episode or a task that is not there.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        horizon: int = 16,
        cameras: Sequence[str] | None = None,
        state: Keys = "observation.state",
        action: Keys = "action",
        episodes: Iterable[int] | None = None,
        tasks: Iterable[str] | None = None,
        weights: Mapping[str, float | int] | None = None,
        vocabulary: TaskVocabulary | None = None,
        duplicate_tasks: Literal["error", "merge"] = "error",
        preflight: bool = True,
    ):
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        layout = Layout(root)
        skipped: list[str] = []
        warnings = odd_info(layout)
        selected = _select_episodes(layout, episodes)
        self.root = layout.root
        self.horizon = horizon
        self.fps = layout.fps
        self.cameras = _select_cameras(layout, selected, cameras, skipped)
        self._image_keys = layout.image_keys
        self._vectors = {"state": _keys(state), "actions": _keys(action)}
        self._names = read_tasks(layout, duplicate_tasks, warnings)

        result = scan(layout, selected, self._vectors, self.cameras, preflight=preflight)
        check_listed(layout, result.runs, self._names)
        layout.problems.raise_if_any()
        self.norm_stats = choose_stats(layout, self._vectors, result)
        layout.problems.raise_if_any()

        self._episodes = {episode.index: episode for episode in selected}
        self._first_row = result.first_row
        self._sizes = result.sizes
        self._segments = select_tasks(result.runs, self._names, tasks, weights)
        if vocabulary is None:
            vocabulary = TaskVocabulary(dict.fromkeys(self._names.values()))
        self._set_vocabulary(vocabulary)
        self._tables = _Cache(_TABLE_BYTES)
        self._videos = _Cache(_OPEN_VIDEOS)
        self.report = self._make_report(layout, result, skipped, warnings)

    @property
    def episode_indices(self) -> tuple[int, ...]:
        """The episodes that frames come from, ascending."""
        return tuple(np.unique(self._segments["episode"]).tolist())

    @property
    def task_frames(self) -> dict[str, int]:
        """Frames an epoch of each task that has any, by name, weights included."""
        frames: dict[str, int] = defaultdict(int)
        for segment in self._segments:
            frames[self._names[int(segment["task"])]] += int(segment["shown"])
        return dict(frames)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """The frame at `index`; the module's docstring has its keys."""
        position = index.__index__()
        if not 0 <= position < len(self):
            raise IndexError(f"frame {position} of {len(self)}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        segment = self._segments[number]
        shown, length = int(segment["shown"]), int(segment["length"])
        offset = position - (int(self._ends[number]) - shown)
        # A weight spreads evenly: 2 shows each frame twice, 0.5 every second one.
        frame = int(segment["start"]) + offset * length // shown
        return self._frame(int(segment["episode"]), frame, int(segment["task"]))

    def __repr__(self) -> str:
        # Grain compares it on resuming, to see that the data is still the same.
        return f"LeRobotData({self.root.name!r}, horizon={self.horizon}, frames={len(self)})"

    def split(self, val_fraction: float = 0.1, seed: int = 0) -> tuple[LeRobotData, LeRobotData]:
        """Splits by episode into training and validation, the same way for the same seed.

        Each task gives about `val_fraction` of its episodes, at least one where it has two, and
        keeps at least one. Both parts keep the statistics and the report of the whole.

        Raises:
            ValueError: No task has two episodes, so that nothing can be held out.
        """
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
        by_task: dict[int, list[int]] = defaultdict(list)
        for episode in self.episode_indices:
            tasks = self._segments["task"][self._segments["episode"] == episode]
            by_task[int(tasks[0])].append(episode)
        rng = np.random.default_rng(seed)
        held_out: list[int] = []
        for _, episodes in sorted(by_task.items()):
            count = min(max(1, round(val_fraction * len(episodes))), len(episodes) - 1)
            held_out.extend(rng.permutation(episodes)[:count].tolist())
        if not held_out:
            raise ValueError(
                "no task has two episodes, so none can be held out; validate on the training "
                "frames, or add episodes"
            )
        is_val = np.isin(self._segments["episode"], held_out)
        train, val = self._segments[~is_val], self._segments[is_val]
        return self._with(train, self.vocabulary), self._with(val, self.vocabulary)

    def _with(self, segments: np.ndarray, vocabulary: TaskVocabulary) -> LeRobotData:
        other = copy.copy(self)
        other._segments = segments
        other._set_vocabulary(vocabulary)
        return other

    def _weighted(self, factor: float | int, vocabulary: TaskVocabulary) -> LeRobotData:
        segments = self._segments.copy()
        segments["shown"] = shown(segments["shown"], np.array(factor, np.float64))
        return self._with(segments, vocabulary)

    def _shapes(self) -> dict[str, Any]:
        """What two datasets must share for their frames to fit into one batch."""
        sizes = {name: len(stats.mean) for name, stats in self.norm_stats.items()}
        cameras = {name: self._sizes.get(name, "images") for name in sorted(self.cameras)}
        return {**sizes, "horizon": self.horizon, "cameras": cameras}

    def _set_vocabulary(self, vocabulary: TaskVocabulary) -> None:
        self.vocabulary = vocabulary
        self._ends = np.cumsum(self._segments["shown"])
        used = np.unique(self._segments["task"]).tolist()
        ids = vocabulary.id_map({index: self._names[index] for index in used})
        self._task_ids = {
            index: extract_task_id({"task_index": index}, id_map=ids, num_tasks=len(vocabulary))[
                "task_id"
            ]
            for index in used
        }

    def _frame(self, episode: int, frame: int, task: int) -> dict[str, Any]:
        table = self._table(episode)
        steps = np.arange(frame, frame + self.horizon)
        last = len(table["actions"]) - 1
        return {
            "state": table["state"][frame].copy(),
            "actions": table["actions"][np.minimum(steps, last)],
            "action_is_pad": steps > last,
            "images": {camera: self._picture(episode, frame, camera) for camera in self.cameras},
            "task": self._names[task],
            "task_index": np.int64(task),
            "task_id": self._task_ids[task],
            "episode_index": np.int64(episode),
            "frame_index": np.int64(frame),
        }

    def _picture(self, episode: int, frame: int, camera: str) -> np.ndarray:
        if camera in self._image_keys:
            content = self._table(episode)[camera][frame].as_py()["bytes"]
            if not content:
                raise DatasetError(
                    f"{self._episodes[episode].data}: {camera} of frame {frame} holds no picture; "
                    "embed the pictures in the Parquet files, or leave the camera out with cameras="
                )
            return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        path, begin = self._episodes[episode].videos[camera]
        reader = self._videos.get(path, lambda: (VideoReader(path, self.fps), 1))
        try:
            return reader.read(begin + frame / self.fps)
        except ValueError as error:
            raise DatasetError(f"episode {episode}, frame {frame}: {error}") from error

    def _table(self, episode: int) -> dict[str, Any]:
        return self._tables.get(episode, lambda: self._load_table(episode))

    def _load_table(self, episode: int) -> tuple[dict[str, Any], int]:
        """The vectors and encoded pictures of one episode, and their size in bytes."""
        place = self._episodes[episode]
        pictures = [camera for camera in self.cameras if camera in self._image_keys]
        columns = [*{key for keys in self._vectors.values() for key in keys}, *pictures]
        rows = _read_rows(place.data, self._first_row[episode], place.length, columns)
        table: dict[str, Any] = {k: read_vectors(rows, keys) for k, keys in self._vectors.items()}
        for name, values in table.items():
            if not np.isfinite(values).all():
                frame, dimension = np.argwhere(~np.isfinite(values))[0]
                raise DatasetError(
                    f"{place.data}: {name} of episode {episode}, frame {frame}, dimension "
                    f"{dimension} is not finite; repair it, or leave the episode out with "
                    "episodes=[...]"
                )
        table.update({camera: rows.column(camera) for camera in pictures})
        return table, sum(column.nbytes for column in table.values())

    def _make_report(
        self, layout: Layout, result: Scan, skipped: list[str], warnings: list[str]
    ) -> Report:
        frames = self.task_frames
        stats = {name: result.stats.get(name, part) for name, part in self.norm_stats.items()}
        labelled = set(np.unique(result.runs[:, 3]).tolist())
        unread = [
            f"task {index} {name!r}: "
            + ("not selected" if index in labelled else "labels no frame")
            for index, name in self._names.items()
            if name not in frames
        ]
        found = [
            f"{len(self.episode_indices)} episodes, {len(self)} frames an epoch, {self.fps:g} fps",
            *(f"{n}: {'+'.join(k)} [{len(stats[n].mean)}]" for n, k in self._vectors.items()),
            *result.found,
            f"{len(self._names)} tasks listed, frames of {len(frames)}:",
            *(f"  {count} of {name!r}" for name, count in frames.items()),
        ]
        title = f"LeRobot {layout.version} dataset {self.root.name}"
        return make_report(title, found, skipped + unread, warnings + result.warnings, stats)


class _Cache:
    """The values used last, up to a total size; empty in every new process."""

    def __init__(self, limit: int):
        self._limit = limit
        self._size = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value of `key`; `make` gives it and its size where it is not there."""
        key = os.getpid(), key  # files that a forked process inherits are still its parent's
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value, size = make()  # outside the lock: another thread may read meanwhile
        with self._lock:
            if key in self._values:
                return self._values[key][0]
            self._values[key] = value, size
            self._size += size
            while self._size > self._limit and len(self._values) > 1:
                # Not closed here: another thread may be reading from it.
                self._size -= self._values.popitem(last=False)[1][1]
        return value

    def __reduce__(self) -> tuple[type[_Cache], tuple[int]]:
        return _Cache, (self._limit,)


def _keys(keys: Keys) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys)


def _select_episodes(layout: Layout, episodes: Iterable[int] | None) -> list[Episode]:
    if episodes is None:
        return list(layout.episodes)
    wanted = set(episodes)
    if not wanted:
        raise ValueError("no episodes are selected; select at least one episode, or None for all")
    unknown = sorted(wanted - {episode.index for episode in layout.episodes})
    if unknown:
        last = max((episode.index for episode in layout.episodes), default=-1)
        raise ValueError(f"no episodes {unknown}; there are {len(layout.episodes)}, up to {last}")
    return [episode for episode in layout.episodes if episode.index in wanted]


def _select_cameras(
    layout: Layout,
    episodes: Sequence[Episode],
    cameras: Sequence[str] | None,
    skipped: list[str],
) -> tuple[str, ...]:
    """The cameras to read; those of which no file is on disk are skipped unless asked for."""
    declared = (*layout.video_keys, *layout.image_keys)
    if cameras is not None:
        unknown = sorted(set(cameras) - set(declared))
        if unknown:
            raise ValueError(f"no cameras {unknown}; there are {list(declared)}")
        skipped += [f"camera {name}: not selected" for name in declared if name not in cameras]
        return tuple(cameras)
    missing = [
        name
        for name in layout.video_keys
        if not any(name in e.videos and e.videos[name][0].exists() for e in episodes)
    ]
    skipped += [f"camera {name}: declared in info.json, but no file on disk" for name in missing]
    return tuple(name for name in declared if name not in missing)


def _read_rows(path: Path, first: int, count: int, columns: Sequence[str]) -> pa.Table:
    """Rows of a Parquet file, from those row groups only that hold them."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    begins = np.cumsum([0, *sizes])
    groups = [i for i in range(len(sizes)) if begins[i] < first + count and begins[i + 1] > first]
    table = file.read_row_groups(groups, columns=list(columns))
    return table.slice(first - int(begins[groups[0]]), count)
