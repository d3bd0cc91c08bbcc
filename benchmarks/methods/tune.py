"""Tries learning rates for all methods, on a seed that the comparison does not use.

python -m benchmarks.methods.tune    results are kept
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks.methods.policy import WITHOUT_SCALES, Method
from benchmarks.methods.report import rate
from benchmarks.methods.study import Settings, Study
from examples.metaworld.hard import FIFTY, LATER, HardTask
from examples.metaworld.processes import Pool

SEED = 10
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
LATER_RATES = (1e-2, 3e-2, 1e-1)
"""Rates of what five later tasks have of their own."""


def main(folder: Path = Path("runs/methods"), workers: int = 2) -> None:
    """Prints the share of episodes that did the asked task, for each method and learning rate.

    Args:
        folder: Where results are kept.
        workers: The number of processes for the simulator.
    """

    def study(method: Method) -> Study:
        return Study(folder / f"rate_{method.learning_rate:g}", Settings(), pool)

    def first(method: Method, value: float) -> dict[str, Any]:
        method = dataclasses.replace(method, learning_rate=value)
        return study(method).keep("first", method, SEED, lambda: _first(study(method), method))

    def later(method: Method, value: float) -> dict[str, Any]:
        method, name = dataclasses.replace(method, later_rate=value), f"later_{value:g}"
        return study(method).keep(name, method, SEED, lambda: _later(study(method), method))

    with Pool(workers) as pool:
        show("the fifty tasks", WITHOUT_SCALES, RATES, first, FIFTY)
        reading = [m for m in WITHOUT_SCALES if m.reads_ids]
        show("the five later tasks", reading, LATER_RATES, later, LATER)


def show(
    title: str,
    methods: Sequence[Method],
    rates: Sequence[float],
    measure: Callable[[Method, float], dict[str, Any]],
    tasks: Sequence[HardTask],
) -> None:
    """Prints a table, a line for each method as soon as it is measured."""
    print(f"\n{title}, asked task, %:\n")
    print(f"| method | {' | '.join(f'{value:g}' for value in rates)} |")
    print(f"|---|{'---:|' * len(rates)}")
    for method in methods:
        found = [str(rate([measure(method, value)], "done", tasks)) for value in rates]
        print(f"| {method.name} | {' | '.join(found)} |", flush=True)


def _first(study: Study, method: Method) -> dict[str, Any]:
    study.train_first(method, SEED)
    path = study.folder_of(method, SEED) / "fifty"
    return {"done": study.roll_out(path, FIFTY, study.settings.episodes, SEED)}


def _later(study: Study, method: Method) -> dict[str, Any]:
    study.train_later(method, SEED)
    path = study.folder_of(method, SEED) / "later"
    return {"done": study.roll_out(path, LATER, study.settings.later_episodes, SEED)}


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
