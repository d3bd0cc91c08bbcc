"""The statistics to normalize by: computed from the data, or stored if the data is not read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .layout import Layout
from .problems import Problem
from .report import Notes
from .stats import Stats, pool

_TOLERANCE = 0.02  # of a dimension's range: some writers take quantiles from histograms


def choose_stats(
    layout: Layout,
    vectors: Mapping[str, tuple[str, ...]],
    computed: Mapping[str, Stats],
    notes: Notes,
    *,
    whole: bool,
) -> dict[str, Stats]:
    """Returns the computed statistics, and the stored ones if the data was not read.

    Tools that merge and split datasets leave stored statistics behind that are of other data, and
    LeRobot 0.4 to 0.6.1 stores the mean of the episodes' quantiles as a dataset's quantiles.

    Args:
        layout: The dataset. A problem is added to its `problems` if there are no statistics.
        vectors: `{"state": keys, "actions": keys}`.
        computed: The statistics of the data; empty if the data was not read.
        notes: Lines for the report; stored statistics that differ from the data are warned of.
        whole: Whether `computed` is of all episodes, as the stored statistics are.
    """
    chosen = {}
    for name, keys in vectors.items():
        stats = _choose(layout, name, keys, computed.get(name), whole, notes)
        if stats is not None:
            chosen[name] = stats
    return chosen


def _choose(
    layout: Layout,
    name: str,
    keys: tuple[str, ...],
    computed: Stats | None,
    whole: bool,
    notes: Notes,
) -> Stats | None:
    stored, missing = None, "no statistics are stored"
    try:
        stored = _read_stored(layout, keys)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        missing = f"the stored ones are unusable: {type(error).__name__}: {error}"
        notes.warnings.append(f"statistics of {name}: {missing}")
    if computed is not None:
        differences = _differences(stored[1], computed, whole) if stored else []
        if stored and differences:
            notes.warnings.append(
                f"statistics of {name}: {stored[0]} is not used, as it contradicts the data: "
                f"{'; '.join(differences)}"
            )
        notes.found.append(f"statistics of {name}: computed from the data")
        return computed
    if stored is None or np.isnan(stored[1].q01).any():
        layout.problems.add(Problem.NO_STATISTICS, f"{name}: {missing}, or they lack q01 and q99")
        return None
    notes.found.append(f"statistics of {name}: {stored[0]}")
    notes.warnings.append(
        f"statistics of {name}: {stored[0]} was not compared with the data, and LeRobot 0.4 to "
        "0.6.1 stores wrong q01 and q99 (means of the episodes'). Open the dataset with "
        "preflight=True, or normalize by 'zscore'"
    )
    return stored[1]


def _read_stored(layout: Layout, keys: tuple[str, ...]) -> tuple[str, Stats] | None:
    """Returns the stored statistics of `keys` and the name of their file, or None without a file.

    The quantiles are NaN if the file has none. v2.1 stores statistics of each episode, and the
    quantiles of the dataset cannot be computed from those of the episodes.

    Raises:
        ValueError, KeyError, TypeError, IndexError: The file is malformed.
    """
    rows = layout.meta_rows("episodes_stats.jsonl")
    if rows:
        parts = [_parse(row["stats"], keys, quantiles=False) for row in rows]
        return "meta/episodes_stats.jsonl", pool(parts)
    content = layout.meta_json("stats.json")
    if not content:
        return None
    frames = sum(episode.length for episode in layout.episodes)
    stats = _parse(content, keys, quantiles=True)
    return "meta/stats.json", dataclasses.replace(stats, count=frames)


def _differences(stored: Stats, computed: Stats, whole: bool) -> list[str]:
    """Describes in what the stored statistics differ from those of the data.

    If not all episodes were read, the stored range may be wider, and nothing else is compared.
    """
    if len(stored.mean) != len(computed.mean):
        return [f"{len(stored.mean)} dimensions instead of {len(computed.mean)}"]
    # The slack is for rounding to float32.
    slack = 1e-4 * np.maximum(1.0, np.abs(computed.max) + np.abs(computed.min))
    allowed = slack + _TOLERANCE * (computed.max - computed.min)
    excess = {
        "min": stored.min - computed.min - slack,
        "max": computed.max - stored.max - slack,
    }
    if whole:
        excess = {
            name: np.abs(getattr(stored, name) - getattr(computed, name)) - slack for name in excess
        }
        for name in ("mean", "std", "q01", "q99"):
            excess[name] = np.abs(getattr(stored, name) - getattr(computed, name)) - allowed
    lines = []
    for name, values in excess.items():
        beyond = np.flatnonzero(values > 0)  # NaN, which stands for no stored quantile, is not
        if len(beyond):
            worst = beyond[values[beyond].argmax()]
            lines.append(
                f"{name} of dimension {worst} is {getattr(stored, name)[worst]:.5g}, but "
                f"{getattr(computed, name)[worst]:.5g} in the data"
                + (f" (and in {len(beyond) - 1} more dimensions)" if len(beyond) > 1 else "")
            )
    return lines


def _parse(content: Mapping[str, Any], keys: tuple[str, ...], *, quantiles: bool) -> Stats:
    def read(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(content[k][name], np.float64).ravel() for k in keys])

    values = {name: read(name) for name in ("mean", "std", "min", "max")}
    for name in ("q01", "q99"):
        known = quantiles and all(name in content[key] for key in keys)
        values[name] = read(name) if known else np.full_like(values["mean"], np.nan)
    if not all(np.isfinite(values[name]).all() for name in ("mean", "std", "min", "max")):
        raise ValueError("a value is not finite")
    if (values["min"] > values["max"]).any():
        raise ValueError("a minimum is above its maximum")
    return Stats(**values, count=int(np.ravel(content[keys[0]].get("count", 1))[0]))
