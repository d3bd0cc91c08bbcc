"""A report of what opening a dataset found, what it skipped, and what is odd."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np

from .layout import Layout
from .stats import Stats
from .tasks import look_alikes


@dataclasses.dataclass(frozen=True)
class Report:
    """A summary of an opened dataset. It prints as text.

    Attributes:
        title: The name of the dataset.
        found: What is read.
        skipped: What is declared, but not read, and why.
        warnings: What is odd, but can be handled.
        still: The dimensions of `state` and of `actions` that never move.
        narrow: The dimensions with a range so small that `normalize` divides by a larger number.
    """

    title: str
    found: tuple[str, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]
    still: dict[str, tuple[int, ...]]
    narrow: dict[str, tuple[int, ...]]

    def __str__(self) -> str:
        parts = [self.title]
        for name in ("found", "skipped", "warnings"):
            lines = getattr(self, name)
            if lines:
                parts.append(f"  {name}:")
                parts.extend(f"    - {line}" for line in lines)
        return "\n".join(parts)


@dataclasses.dataclass
class Notes:
    """Collects the lines of a report while a dataset is opened; see `Report`."""

    found: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def split_report(
    report: Report, whole: Iterable[str], train: Container[str], val: Container[str]
) -> Report:
    """Returns a report with warnings of the tasks that a part of a split lacks.

    Args:
        report: The report of the whole.
        whole: The tasks of the whole.
        train: The tasks of one part.
        val: The tasks of the other part.
    """
    names = list(whole)
    warnings = [
        f"{problem}: {missing}"
        for part, problem in (
            (val, "no frames of these tasks are held out"),
            (train, "all frames of these tasks are held out"),
        )
        if (missing := [name for name in names if name not in part])
    ]
    return dataclasses.replace(report, warnings=(*report.warnings, *warnings))


def make_report(title: str, notes: Notes, stats: Mapping[str, Stats]) -> Report:
    """Returns the report of one dataset.

    Args:
        title: The name of the dataset.
        notes: The lines.
        stats: The statistics of the data, from which still and narrow dimensions are listed.
    """
    warnings, still, narrow = [*notes.warnings], {}, {}
    for name, part in stats.items():
        still[name] = tuple(np.flatnonzero(part.still).tolist())
        narrow[name] = tuple(np.flatnonzero(part.narrow()).tolist())
        if still[name]:
            warnings.append(
                f"{name}: {len(still[name])} of {len(part.mean)} dimensions never move, and are "
                f"normalized to 0: {_ranges(still[name])}"
            )
        if narrow[name]:
            spans = (f"{i} ({part.q99[i] - part.q01[i]:.2g})" for i in narrow[name])
            warnings.append(
                f"{name}: {len(narrow[name])} dimensions have a 1-99 % range that is tiny, or "
                "tiny compared with their outliers. They are divided by a larger number: "
                f"{', '.join(spans)}"
            )
    return Report(title, tuple(notes.found), tuple(notes.skipped), tuple(warnings), still, narrow)


def mixed_report(reports: Mapping[str, Report], vocabulary: Iterable[str]) -> Report:
    """Returns the report of several datasets, by name, and of the vocabulary that they share."""

    def lines(kind: str) -> tuple[str, ...]:
        return tuple(f"{n}: {line}" for n, r in reports.items() for line in getattr(r, kind))

    names = tuple(vocabulary)
    alike = tuple(f"tasks look alike, but stay apart: {group}" for group in look_alikes(names))
    parts = list(reports.values())
    return Report(
        title=f"{len(parts)} datasets, {len(names)} tasks",
        found=lines("found"),
        skipped=lines("skipped"),
        warnings=(*alike, *lines("warnings")),
        still={
            key: tuple(sorted(set.intersection(*(set(part.still[key]) for part in parts))))
            for key in parts[0].still
        },
        narrow={
            key: tuple(sorted(set().union(*(part.narrow[key] for part in parts))))
            for key in parts[0].narrow
        },
    )


def odd_info(layout: Layout) -> list[str]:
    """Describes what `info.json` says about the dataset's size and its episodes contradict."""
    episodes = layout.episodes
    odd = []
    facts = {
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
    }
    for key, actual in facts.items():
        if layout.info.get(key, actual) != actual:
            odd.append(f"info.json: {key} is {layout.info[key]}, but meta/episodes has {actual}")
    if layout.info.get("total_chunks") == 0:
        odd.append("info.json: total_chunks is 0; the entry is not used")
    splits = layout.info.get("splits")
    for name, span in splits.items() if isinstance(splits, dict) else ():
        end = str(span).rpartition(":")[2]
        if end.isdecimal() and int(end) > len(episodes):
            odd.append(
                f"info.json: split {name!r} is {span!r}, past the {len(episodes)} episodes; the "
                "entry is not used, see split()"
            )
    return odd


def _ranges(numbers: Sequence[int]) -> str:
    """Returns `(1, 2, 3, 7)` as `1-3, 7`."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    spans = [group.tolist() for group in np.split(np.array(numbers), breaks)]
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)
