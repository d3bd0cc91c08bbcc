"""The tasks of a LeRobot dataset: which there are, which are read, and how often."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64, Shaped

from examples.lerobot.layout import DatasetError, Layout
from taskcond.data.vocabulary import read_lerobot_tasks

# A stretch of one episode with one task throughout; `shown` is its number of frames an epoch.
SEGMENT = np.dtype([(name, np.int64) for name in ("episode", "start", "length", "task", "shown")])


def read_tasks(
    layout: Layout, duplicates: Literal["error", "merge"], warnings: list[str]
) -> dict[int, str]:
    """The dataset's `{task_index: name}`; what is ambiguous becomes a problem or a warning."""
    if duplicates not in ("error", "merge"):
        raise ValueError(f"duplicate_tasks must be 'error' or 'merge', got {duplicates!r}")
    try:
        rows = read_lerobot_tasks(layout.root)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{layout.root}: {error}") from error
    names, indices = defaultdict(list), defaultdict(list)
    for index, name in rows:
        names[index].append(name)
        indices[name].append(index)
    ambiguous = [f"task_index {index} is {n}" for index, n in names.items() if len(n) > 1]
    ambiguous += [f"{name!r} is task_index {i}" for name, i in indices.items() if len(i) > 1]
    for line in ambiguous:
        if duplicates == "error":
            layout.problems.add("ambiguous task", f"meta/tasks: {line}")
        else:
            warnings.append(f"ambiguous task, merged: {line}")
    return {index: n[0] for index, n in names.items()}


def check_listed(layout: Layout, runs: Int64[np.ndarray, "runs 4"], names: dict[int, str]) -> None:
    """Adds a problem for each episode with a `task_index` that the dataset does not list."""
    files = {episode.index: episode.data for episode in layout.episodes}
    for episode, start, length, task in runs.tolist():
        if task not in names:
            layout.problems.add(
                "unlisted task_index",
                f"{layout.name(files[episode])}: task_index {task} in {length} frames from frame "
                f"{start} of episode {episode}; meta/tasks lists {sorted(names)}",
            )


def select_tasks(
    runs: Int64[np.ndarray, "runs 4"],
    names: dict[int, str],
    tasks: Iterable[str] | None,
    weights: Mapping[str, float | int] | None,
) -> Shaped[np.ndarray, " segments"]:
    """The segments to read, with their weights: an array of `SEGMENT`.

    Raises:
        ValueError: A task that is not there, a weight that is not positive, or nothing is left.
    """
    labelled = {names[index] for index in np.unique(runs[:, 3]).tolist()}
    wanted = labelled if tasks is None else set(tasks)
    weights = weights or {}
    for name in sorted(wanted | set(weights)):
        if name not in labelled:
            near = difflib.get_close_matches(name, labelled, 3, 0.4) or sorted(labelled)
            raise ValueError(f"no frame has the task {name!r}; did you mean one of {near}?")
    if any(not 0 < factor < np.inf for factor in weights.values()):
        raise ValueError(
            f"weights must be positive, got {dict(weights)}; leave tasks out by tasks="
        )
    kept = [run for run in runs.tolist() if names[run[3]] in wanted]
    if not kept:
        raise ValueError("no frames are selected; select at least one episode and one task")
    segments = np.zeros(len(kept), SEGMENT)
    for name, column in zip(
        ("episode", "start", "length", "task"), np.transpose(kept), strict=True
    ):
        segments[name] = column
    factors = [weights.get(names[run[3]], 1.0) for run in kept]
    segments["shown"] = shown(segments["length"], np.array(factors, np.float64))
    return segments


def shown(
    length: Int64[np.ndarray, " n"], factor: Float[np.ndarray, "..."]
) -> Int64[np.ndarray, " n"]:
    """Frames an epoch, at least one each, of `length` frames that count `factor` times."""
    return np.maximum(1, np.rint(length * factor)).astype(np.int64)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Names that differ only in case, blanks or punctuation.

    >>> look_alikes(["Pick the cup.", "pick the cup", "pick the can"])
    [['Pick the cup.', 'pick the cup']]
    """
    groups = defaultdict(list)
    for name in names:
        groups["".join(filter(str.isalnum, name.casefold()))].append(name)
    return [group for group in groups.values() if len(group) > 1]
