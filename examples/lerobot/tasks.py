"""The tasks of a LeRobot dataset: which exist, which are read, and how often."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64, Shaped

from taskcond.data.lerobot_tasks import ambiguous_tasks, read_lerobot_tasks

from . import columns
from .layout import Episode, Layout
from .problems import DatasetError, Problem

_SHOWN = 20  # episodes named in a warning
SEGMENT = np.dtype([(name, np.int64) for name in ("episode", "start", "length", "task", "shown")])
"""A stretch of one episode with one task; `shown` is its number of frames in an epoch."""


def read_tasks(
    layout: Layout, duplicates: Literal["error", "merge"]
) -> tuple[dict[int, str], list[str]]:
    """Returns the dataset's `{task_index: name}`, and warnings about merged tasks.

    Args:
        layout: The dataset. Ambiguous tasks are added to its `problems` unless they are merged.
        duplicates: What to do with ambiguous tasks.
    """
    if duplicates not in ("error", "merge"):
        raise ValueError(
            f"duplicate_tasks is {duplicates!r}, but must be 'error' or 'merge'. Pass one of them."
        )
    try:
        rows = read_lerobot_tasks(layout.root)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{layout.root} cannot be used: {error}") from error
    ambiguous = ambiguous_tasks(rows)
    if duplicates == "error":
        for line in ambiguous:
            layout.problems.add(Problem.AMBIGUOUS_TASK, f"meta/tasks: {line}")
        ambiguous = []
    names: dict[int, str] = {}
    for index, name in rows:  # rows are sorted, so that the alphabetically first name stays
        names.setdefault(index, name)
    return names, [f"ambiguous task, merged: {line}" for line in ambiguous]


def check_listed(layout: Layout, runs: Int64[np.ndarray, "runs 4"], names: dict[int, str]) -> None:
    """Adds a problem for each run of frames whose `task_index` the dataset does not list."""
    files = {episode.index: episode.data for episode in layout.episodes}
    for episode, start, length, task in runs.tolist():
        if task not in names:
            layout.problems.add(
                Problem.UNLISTED_TASK,
                f"{layout.name(files[episode])}: task_index {task} in {length} frames from frame "
                f"{start} of episode {episode}; meta/tasks lists {sorted(names)}",
            )


def constant_task(
    episodes: Sequence[Episode],
    runs: Int64[np.ndarray, "runs 4"],
    names: dict[int, str],
    task_key: str,
) -> list[str]:
    """Returns a warning if `task_index` never changes, but an annotation tells the tasks apart.

    GR00T's datasets keep the task in such a column.
    """
    if task_key != "task_index" or len(np.unique(runs[:, 3])) != 1 or len(names) < 2:
        return []
    files = sorted({episode.data for episode in episodes})
    for key in _annotations(episodes):
        try:
            tables = [pq.read_table(path, columns=[key]) for path in files]
            values = {value for t in tables for value in columns.integers(t, key).tolist()}
        except (ValueError, pa.ArrowException):
            continue
        if len(values) > 1 and values <= set(names):
            return [
                f"{task_key} is {runs[0, 3]} in all frames, but {key!r} tells the tasks apart: "
                f"pass task_key={key!r}"
            ]
    return []


def contradicting_lists(
    layout: Layout, episodes: Sequence[Episode], runs: Int64[np.ndarray, "runs 4"]
) -> list[str]:
    """Returns a warning if lists of tasks in `meta/episodes` are not those of the frames.

    In GR00T's datasets the lists also name what the annotations number, as whether a run is valid.
    """
    names: dict[int, list[str]] = defaultdict(list)  # an ambiguous index has several
    for index, name in read_lerobot_tasks(layout.root):
        names[index].append(name)
    carried: dict[int, dict[int, list[str]]] = defaultdict(dict)
    for episode, _, _, task in runs.tolist():
        carried[episode][task] = names[task]
    annotated = bool(_annotations(episodes))
    lines = []
    for episode in episodes:
        if episode.tasks is None:
            continue
        shown = [name for group in carried[episode.index].values() for name in group]
        unlisted = any(map(set(episode.tasks).isdisjoint, carried[episode.index].values()))
        if unlisted or not (annotated or set(episode.tasks) <= set(shown)):
            lines.append(
                f"episode {episode.index} lists {[*episode.tasks]}, its frames have {shown}"
            )
    if not lines:
        return []
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [
        f"the tasks of {len(lines)} episodes in meta/episodes contradict those of their frames, "
        f"which are used: {'; '.join(lines[:_SHOWN] + more)}"
    ]


def _annotations(episodes: Sequence[Episode]) -> list[str]:
    """Returns the columns in which GR00T's datasets number what people said of a frame."""
    names = pq.read_schema(min(episode.data for episode in episodes)).names
    return sorted(name for name in names if "annotation" in name)


def select_tasks(
    runs: Int64[np.ndarray, "runs 4"],
    names: dict[int, str],
    tasks: Iterable[str] | None,
    weights: Mapping[str, float | int] | Literal["balanced"] | None,
) -> Shaped[np.ndarray, " segments"]:
    """Returns the segments to read, with their weights, as an array of `SEGMENT`.

    Args:
        runs: See `Scan`.
        names: `{task_index: name}`.
        tasks: See `LeRobotData`.
        weights: See `LeRobotData`.

    Raises:
        ValueError: A task labels no frame, a weight is not positive, or no frame is left.
    """
    labelled = {names[index] for index in np.unique(runs[:, 3]).tolist()}
    wanted = labelled if tasks is None else set(tasks)
    is_balanced = weights == "balanced"
    if isinstance(weights, str) and not is_balanced:
        raise ValueError(
            f"weights is {weights!r}, but must be 'balanced' or {{task name: factor}}."
        )
    weights = {} if weights is None or isinstance(weights, str) else weights
    for name in sorted(wanted | set(weights)):
        if name not in labelled:
            near = difflib.get_close_matches(name, labelled, 3, 0.4) or sorted(labelled)
            raise ValueError(f"No frame has the task {name!r}. Did you mean one of {near}?")
    if any(not 0 < factor < np.inf for factor in weights.values()):
        raise ValueError(
            f"weights is {dict(weights)}, but weights must be positive and finite. "
            "To leave tasks out, pass tasks=[...]."
        )
    kept = [run for run in runs.tolist() if names[run[3]] in wanted]
    if not kept:
        raise ValueError("No frames are selected. Select at least one episode and one task.")
    segments = np.zeros(len(kept), SEGMENT)
    fields = zip(("episode", "start", "length", "task"), np.transpose(kept), strict=True)
    for name, column in fields:
        segments[name] = column
    factors = [weights.get(names[run[3]], 1.0) for run in kept]
    segments["shown"] = frames_shown(segments["length"], np.array(factors, np.float64))
    return balanced(segments, names) if is_balanced else segments


def balanced(
    segments: Shaped[np.ndarray, " segments"], names: Mapping[int, str], factor: float = 1.0
) -> Shaped[np.ndarray, " segments"]:
    """Returns segments that show all tasks equally often, and as many frames as there are.

    Args:
        segments: The segments, as `select_tasks` gives them.
        names: `{task_index: name}`.
        factor: A factor on the frames of all tasks.
    """
    tasks = [names[task] for task in segments["task"].tolist()]
    frames: dict[str, int] = defaultdict(int)
    for name, length in zip(tasks, segments["length"].tolist(), strict=True):
        frames[name] += length
    mean = sum(frames.values()) / max(len(frames), 1)
    result = segments.copy()
    factors = np.array([factor * mean / frames[name] for name in tasks])
    result["shown"] = frames_shown(result["length"], factors)
    return result


def frames_shown(
    length: Int64[np.ndarray, " n"], factor: Float[np.ndarray, "..."]
) -> Int64[np.ndarray, " n"]:
    """Returns the frames in an epoch of segments that are weighted by `factor`; at least 1 each."""
    return np.maximum(1, np.rint(length * factor)).astype(np.int64)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Returns groups of names that differ only in case, spaces or punctuation.

    >>> look_alikes(["Pick the cup.", "pick the cup", "pick the can"])
    [['Pick the cup.', 'pick the cup']]
    """
    groups = defaultdict(list)
    for name in names:
        groups["".join(filter(str.isalnum, name.casefold()))].append(name)
    return [group for group in groups.values() if len(group) > 1]
