"""A LeRobot dataset as a random-access source of frames."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
from jaxtyping import Int, Shaped

from taskcond import TaskVocabulary, extract_task_id

from . import columns
from .layout import Layout
from .moved import find_moved
from .reader import EpisodeReader
from .report import Notes, Report, make_report, odd_info, split_report
from .scan import Scan, scan
from .selection import select_cameras, select_episodes, select_extra
from .stored_stats import choose_stats
from .tasks import (
    balanced,
    check_listed,
    constant_task,
    contradicting_lists,
    frames_shown,
    read_tasks,
    select_tasks,
)

Keys = str | Sequence[str]
_FIELDS = ("episode", "start", "length", "task", "shown")


class LeRobotData:
    """A LeRobot dataset as a random-access source of frames, one for each time step.

    Opening reads every Parquet file, and the end of every video, once, and refuses a dataset that
    must not be trained on. The source works with `grain.MapDataset.source` and `grain.DataLoader`.
    It pickles without its caches, so that each worker process opens its own files.

    A frame, `data[i]`, is a dict with these keys:

    - `state`: float32 `[s]`.
    - `actions`: float32 `[horizon, a]`. At the end of an episode the last action is repeated.
    - `action_is_pad`: bool `[horizon]`; true for the repeated actions.
    - `images`: `{camera: uint8 [h, w, 3]}`, RGB; of gray with more than 8 bits, as depth cameras
      give, the stored numbers: uint16 `[h, w, 1]`.
    - `task`: the name of the task.
    - `task_index`: the dataset's number of the task, int64.
    - `task_id`: the model's number of the task, int32.
    - `episode_index` and `frame_index`: int64.
    - `timestamp`: float32, seconds, as stored; the frame's number / fps if the column is missing.
    - `history_is_pad`, only with a `history` of n > 0: bool `[n + 1]`; true for repeated frames.
      `state` is `[n + 1, s]` and an image `[n + 1, h, w, 3]`: of the n frames before this one, in
      order, and of this one. Before the start of an episode its first frame is repeated.
    - Each of `extra` under its own name and in its stored type: a number, an array, or a string.

    Args:
        root: The dataset's folder, the one that holds `meta`.
        horizon: The number of actions in a chunk.
        cameras: Keys of the cameras to read; `None` reads all that are on disk, `[]` reads none.
        state: The key of the state, or several keys, which are concatenated.
        action: The key of the actions, or several keys, which are concatenated.
        history: The number of past states and images that a frame comes with.
        extra: The key of a further column, or several keys: of numbers, of arrays of one shape, or
            of text.
        episodes: The `episode_index`es to read; `None` reads all.
        tasks: Names of the tasks to read; `None` reads all.
        weights: `{task name: factor}`: with 2 each frame of the task is shown twice in an epoch,
            with 0.5 every second frame. Other tasks have the factor 1. `"balanced"` shows all
            tasks about equally often, and about as many frames in all as there are; so do both
            parts of a split. A run of frames is shown once at least.
        vocabulary: The model's tasks; `None` takes the dataset's, in the order of their indices.
        duplicate_tasks: What to do if two indices have one name, or two names one index:
            `"error"`, or `"merge"`: indices with the same name become one task, and an index with
            two names gets the alphabetically first.
        task_key: The column that holds each frame's `task_index`; in GR00T's datasets
            `"annotation.human.action.task_description"` or the like.
        preflight: Whether to read all states and actions when the dataset is opened. `False` is
            for datasets of hundreds of gigabytes: the stored statistics are used then, and NaN is
            found only when the frame is read.

    Attributes:
        root: See above.
        horizon: See above.
        history: See above.
        fps: Frames per second.
        cameras: Keys of the cameras that are read.
        norm_stats: Statistics of `state` and `actions`.
        vocabulary: The model's tasks.
        report: What opening the dataset found.

    Raises:
        DatasetError: The files must not be trained on. The message lists all problems and fixes.
        ValueError: An argument names a camera, a column, an episode or a task that does not exist.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        horizon: int = 16,
        cameras: Sequence[str] | None = None,
        state: Keys = "observation.state",
        action: Keys = "action",
        history: int = 0,
        extra: Keys = (),
        episodes: Iterable[int] | None = None,
        tasks: Iterable[str] | None = None,
        weights: Mapping[str, float | int] | Literal["balanced"] | None = None,
        vocabulary: TaskVocabulary | None = None,
        duplicate_tasks: Literal["error", "merge"] = "error",
        task_key: str = "task_index",
        preflight: bool = True,
    ):
        _check_steps(horizon, history)
        layout = Layout(root)
        notes = Notes(warnings=odd_info(layout))
        selected = find_moved(layout, select_episodes(layout, episodes), notes)
        self.root = layout.root
        self.horizon = horizon
        self.history = history
        self.fps = layout.fps
        self.cameras = select_cameras(layout, selected, cameras, notes)
        self._vectors = {"state": _keys(state), "actions": _keys(action)}
        self._extra = select_extra(layout, selected, _keys(extra))
        self._names, merged = read_tasks(layout, duplicate_tasks)
        notes.warnings += merged

        result = scan(
            layout,
            selected,
            self._vectors,
            self.cameras,
            notes,
            preflight=preflight,
            task_key=task_key,
            extra=self._extra,
        )
        check_listed(layout, result.runs, self._names)
        layout.problems.raise_if_any()
        notes.warnings += contradicting_lists(layout, selected, result.runs)
        notes.warnings += constant_task(selected, result.runs, self._names, task_key)
        whole = len(selected) == len(layout.episodes)
        self.norm_stats = choose_stats(layout, self._vectors, result.stats, notes, whole=whole)
        layout.problems.raise_if_any()

        self._reader = EpisodeReader(
            layout, selected, result.first_row, self._vectors, self.cameras, self._extra, history
        )
        self._sizes = result.sizes
        self._segments = select_tasks(result.runs, self._names, tasks, weights)
        self._balance = 1.0 if weights == "balanced" else None  # the factor on all tasks
        if vocabulary is None:
            vocabulary = TaskVocabulary(dict.fromkeys(self._names.values()))
        self._set_vocabulary(vocabulary)
        self.report = self._make_report(layout, result, notes)

    @property
    def parts(self) -> tuple[LeRobotData, ...]:
        """The dataset itself, as the only part; see `Frames`."""
        return (self,)

    @property
    def episode_indices(self) -> tuple[int, ...]:
        """The episodes that frames come from, in ascending order."""
        return tuple(np.unique(self._segments["episode"]).tolist())

    @property
    def task_frames(self) -> dict[str, int]:
        """The number of frames in an epoch for each task that has any; weights are included."""
        frames: dict[str, int] = defaultdict(int)
        for segment in self._segments:
            frames[self._names[int(segment["task"])]] += int(segment["shown"])
        return dict(frames)

    @property
    def frame_shapes(self) -> dict[str, Any]:
        """The sizes in which the frames of two datasets must agree to fit into one batch."""
        sizes = {name: len(stats.mean) for name, stats in self.norm_stats.items()}
        cameras = {name: self._sizes.get(name, "images") for name in sorted(self.cameras)}
        table = self._reader.table(self.episode_indices[0]) if self._extra else {}
        extra = {
            key: (columns.type_name(table[key]), table[key].shape[1:])
            for key in sorted(self._extra)
        }
        steps = {"horizon": self.horizon, "history": self.history}
        return {**sizes, **steps, "cameras": cameras, "extra": extra}

    def places(self) -> Int[np.ndarray, "n 3"]:
        """Returns `episode_index`, `frame_index` and `task_index` of each frame, unread."""
        rows = []
        for segment in self._segments:
            episode, start, length, task, shown = (int(segment[name]) for name in _FIELDS)
            frames = start + np.arange(shown) * length // shown
            rows.append(np.stack([np.full(shown, episode), frames, np.full(shown, task)], axis=1))
        return np.concatenate(rows)

    def pieces(self) -> Int[np.ndarray, "n 2"]:
        """Returns where each frame is in the part of its episode that does its task, unread.

        The two columns are the number of the frame in that part, and the number of frames of it.
        """
        rows = []
        for segment in self._segments:
            length, shown = int(segment["length"]), int(segment["shown"])
            frames = np.arange(shown) * length // shown
            rows.append(np.stack([frames, np.full(shown, length)], axis=1))
        return np.concatenate(rows)

    def task_name(self, task_index: int) -> str:
        """Returns the name of a `task_index` of the dataset."""
        return self._names[task_index]

    def vectors(self, episode: int) -> dict[str, Shaped[np.ndarray, "t d"]]:
        """Returns `state` and `actions` of a whole episode, without images."""
        table = self._reader.table(episode)
        return {name: table[name] for name in self._vectors}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns a frame; the docstring of the class lists its keys."""
        number, offset = locate(index, self._ends)
        segment = self._segments[number]
        # A weight is spread evenly: 2 shows each frame twice, 0.5 every second frame.
        frame = int(segment["start"]) + offset * int(segment["length"]) // int(segment["shown"])
        return self._frame(int(segment["episode"]), frame, int(segment["task"]))

    def __repr__(self) -> str:
        # Grain compares it when it resumes, to see whether the data is still the same.
        history = f", history={self.history}" if self.history else ""
        return (
            f"LeRobotData({self.root.name!r}, horizon={self.horizon}{history}, frames={len(self)})"
        )

    def split(self, val_fraction: float = 0.1, seed: int = 0) -> tuple[LeRobotData, LeRobotData]:
        """Splits by episode into training and validation data; the same seed gives the same split.

        About `val_fraction` of each task's episodes are held out, at least one of two or more, and
        never all; an episode of several tasks counts for its first. Both parts keep the statistics
        of the whole, and its report, with warnings that name the tasks that one part lacks.

        Raises:
            ValueError: `val_fraction` is not between 0 and 1, or no task has two episodes.
        """
        if not 0 < val_fraction < 1:
            raise ValueError(
                f"val_fraction is {val_fraction}, but must be between 0 and 1, for instance 0.1."
            )
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
                "no task has two episodes, so that no episode can be held out. Validate on the "
                "training frames, or add episodes."
            )
        is_val = np.isin(self._segments["episode"], held_out)
        train, val = (self._part(self._segments[chosen]) for chosen in (~is_val, is_val))
        frames = (part.task_frames for part in (self, train, val))
        train.report = val.report = split_report(self.report, *frames)
        return train, val

    def _part(self, segments: Shaped[np.ndarray, " segments"]) -> LeRobotData:
        if self._balance is not None:  # each part has its own numbers of frames
            segments = balanced(segments, self._names, self._balance)
        return self._with(segments, self.vocabulary)

    def weighted(self, factor: float | int, vocabulary: TaskVocabulary) -> LeRobotData:
        """Returns this source with all weights multiplied by `factor`, and ids of `vocabulary`.

        Raises:
            ValueError: The vocabulary lacks a task of the frames.
        """
        segments = self._segments.copy()
        segments["shown"] = frames_shown(segments["shown"], np.array(factor, np.float64))
        other = self._with(segments, vocabulary)
        if self._balance is not None:
            other._balance = self._balance * factor
        return other

    def _with(
        self, segments: Shaped[np.ndarray, " segments"], vocabulary: TaskVocabulary
    ) -> LeRobotData:
        other = copy.copy(self)
        other._segments = segments
        other._set_vocabulary(vocabulary)
        return other

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
        table = self._reader.table(episode)
        steps = np.arange(frame, frame + self.horizon)
        last = len(table["actions"]) - 1
        return {
            **self._reader.observation(episode, frame),
            "actions": table["actions"][np.minimum(steps, last)],
            "action_is_pad": steps > last,
            "task": self._names[task],
            "task_index": np.int64(task),
            "task_id": self._task_ids[task],
            "episode_index": np.int64(episode),
            "frame_index": np.int64(frame),
            "timestamp": table["timestamp"][frame],
            **{key: copy.copy(table[key][frame]) for key in self._extra},
        }

    def _make_report(self, layout: Layout, result: Scan, notes: Notes) -> Report:
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
            *([f"extra columns: {', '.join(self._extra)}"] if self._extra else []),
            *notes.found,
            f"{len(self._names)} tasks listed, frames of {len(frames)}:",
            *(f"  {count} of {name!r}" for name, count in frames.items()),
        ]
        title = f"LeRobot {layout.version} dataset {self.root.name}"
        return make_report(title, Notes(found, notes.skipped + unread, notes.warnings), stats)


def locate(index: SupportsIndex, ends: Int[np.ndarray, " n"]) -> tuple[int, int]:
    """Returns which of several sources of frames holds a frame, and its position in that source.

    Args:
        index: The position of the frame in all sources, one after the other.
        ends: The position after the last frame of each source.

    Raises:
        IndexError: There is no such frame.

    >>> locate(5, np.array([3, 10]))
    (1, 2)
    """
    position = index.__index__()
    total = int(ends[-1]) if len(ends) else 0
    if not 0 <= position < total:
        raise IndexError(f"There is no frame {position}. There are {total}, numbered from 0.")
    number = int(np.searchsorted(ends, position, side="right"))
    return number, position - (int(ends[number - 1]) if number else 0)


def _check_steps(horizon: int, history: int) -> None:
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}, but must be at least 1. Pass a larger one.")
    if history < 0:
        raise ValueError(
            f"history is {history}, but must be at least 0. Pass 0 for the current frame only."
        )


def _keys(keys: Keys) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys)
