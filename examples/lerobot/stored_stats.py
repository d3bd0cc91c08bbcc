"""The statistics to normalize by: those stored with a dataset, or those computed from its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.lerobot.layout import Layout
from examples.lerobot.problems import Problem
from examples.lerobot.report import Notes
from examples.lerobot.stats import Stats, pool


def choose_stats(
    layout: Layout,
    vectors: Mapping[str, tuple[str, ...]],
    computed: Mapping[str, Stats],
    notes: Notes,
) -> dict[str, Stats]:
    """Returns the stored statistics unless the data contradicts them, and else the computed ones.

    Tools that merge and split datasets leave stored statistics behind that belong to other data.

    Args:
        layout: The dataset. A problem is added to its `problems` if there are no statistics.
        vectors: `{"state": keys, "actions": keys}`.
        computed: The statistics of the data; empty if the data was not read.
        notes: Lines for the report.
    """
    chosen = {}
    for name, keys in vectors.items():
        stats = _choose(layout, name, keys, computed.get(name), notes)
        if stats is not None:
            chosen[name] = stats
    return chosen


def _choose(
    layout: Layout, name: str, keys: tuple[str, ...], computed: Stats | None, notes: Notes
) -> Stats | None:
    source, stats, missing = "computed from the data", computed, "no statistics are stored"
    try:
        stored = _read_stored(layout, keys)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        stored = None
        missing = f"the stored ones are unusable: {type(error).__name__}: {error}"
        notes.warnings.append(f"statistics of {name}: {missing}")
    if stored is not None:
        contradiction = _contradiction(stored[1], computed)
        if contradiction:
            notes.warnings.append(
                f"statistics of {name}: {stored[0]} is not used, as it contradicts the data: "
                f"{contradiction}"
            )
        else:
            source, stats = stored
    if stats is not None and computed is not None and np.isnan(stats.q01).any():
        source += ", quantiles computed"
        stats = dataclasses.replace(stats, q01=computed.q01, q99=computed.q99)
    if stats is None or np.isnan(stats.q01).any():
        layout.problems.add(Problem.NO_STATISTICS, f"{name}: {missing}, or they lack q01 and q99")
        return None
    notes.found.append(f"statistics of {name}: {source}")
    return stats


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


def _contradiction(stored: Stats, computed: Stats | None) -> str:
    """Describes why the stored statistics cannot be those of the data; empty if they can."""
    if computed is None:
        return ""
    if len(stored.mean) != len(computed.mean):
        return f"{len(stored.mean)} dimensions instead of {len(computed.mean)}"
    # The stored range may be wider, as it includes episodes that were not selected. The slack is
    # for rounding to float32.
    slack = 1e-4 * np.maximum(1.0, np.abs(computed.max) + np.abs(computed.min))
    outside = (computed.min < stored.min - slack) | (computed.max > stored.max + slack)
    if outside.any():
        return (
            f"data beyond its minimum or maximum in dimensions {np.flatnonzero(outside).tolist()}"
        )
    return ""


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
