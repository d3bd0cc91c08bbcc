"""A tenth task for a policy that knows nine: what is learnt, and what is forgotten?

    python -m examples.metaworld.add_task --new "push the puck forward"
    python -m examples.metaworld.add_task --new all --seeds 0 1 2

trains a policy on nine tasks, and adds the tenth in four ways, each of which starts its row as the
mean of the others. With several tasks and seeds, each task is once the new one for each seed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from examples.metaworld.collect import collect
from examples.metaworld.episodes import Episode, Job, run_jobs
from examples.metaworld.policy import Policy
from examples.metaworld.processes import Pool
from examples.metaworld.report import Rate, asked_rate
from examples.metaworld.tasks import TEN, Task, find_tasks, vocabulary_of
from examples.metaworld.train import load_actor, read, save, train
from taskcond import TaskParam
from taskcond.checkpoint import load_into

Frames = dict[str, np.ndarray]


class Counts(NamedTuple):
    """Numbers of episodes.

    Attributes:
        new: Those that did the new task.
        old: Those of old tasks that did their task.
        same: Those of old tasks that went exactly as before.
    """

    new: int
    old: int
    same: int


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to add a task.

    Attributes:
        trainable: The parameters that are trained.
        old_share: The share of old tasks in the frames.
        own: Whether the tasks get parameters of their own in every block.
        learning_rate: The peak of the learning rate.
    """

    trainable: type[nnx.Param]
    old_share: float = 0.0
    own: bool = False
    learning_rate: float = 1e-3


WAYS = {
    "the new row alone": Way(TaskParam, learning_rate=1e-2),
    "all weights, new data": Way(nnx.Param),
    "all weights, 80 % old data": Way(nnx.Param, old_share=0.8),
    "the new row and its own adapter": Way(TaskParam, own=True, learning_rate=1e-2),
}


@dataclasses.dataclass
class Args:
    """Adds a task to a policy that knows the nine others, in four ways.

    What is finished is kept, and not done again by the next call.

    Attributes:
        new: The names of the tasks to add, one at a time; or `all`.
        data: A dataset of all ten tasks, as `make demo` leaves it; it is made if it is not there.
        out: The folder for the checkpoints and the results.
        base_steps: Training steps on nine tasks.
        steps: Training steps on the new task.
        episodes: Episodes of each task.
        workers: The number of processes for the simulator.
        seeds: The seeds of everything but the dataset.
    """

    new: tuple[str, ...] = (TEN[5].name,)
    data: Path = Path("runs/metaworld/dataset")
    out: Path = Path("runs/metaworld/add_task")
    base_steps: int = 4000
    steps: int = 600
    episodes: int = 10
    workers: int = 2
    seeds: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Case:
    """One new task, one seed.

    Attributes:
        args: The settings.
        new: The task to add.
        seed: The seed.
        pool: Runs the simulators.
    """

    args: Args
    new: Task
    seed: int
    pool: Pool

    @property
    def old(self) -> tuple[Task, ...]:
        """The nine others."""
        return tuple(task for task in TEN if task != self.new)

    @property
    def folder(self) -> Path:
        """The folder for checkpoints and results."""
        return self.args.out / f"seed_{self.seed}" / self.new.name.replace(" ", "_")


def main(args: Args) -> dict[str, Counts]:
    """Prints and saves, for each way, how often the new task and the old ones were done."""
    new = TEN if args.new == ("all",) else find_tasks(args.new)
    found: list[dict[str, Counts]] = []
    interrupted = False
    with Pool(args.workers) as pool:
        if not args.data.exists():
            collect(args.data, TEN, 50, pool=pool)
        try:
            for seed in args.seeds:
                for task in new:
                    found.append(_run(Case(args, task, seed, pool)))
        except KeyboardInterrupt:
            interrupted = True
    totals = {
        name: Counts(*(sum(numbers) for numbers in zip(*(c[name] for c in found), strict=True)))
        for name in ("before", *WAYS)
        if found
    }
    Console().print(_table(totals, len(found) * args.episodes, partial=interrupted))
    return totals


def _run(case: Case) -> dict[str, Counts]:
    """Returns the results of a case, from its file if it was finished by an earlier call.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; nothing is kept of this case.
    """
    file, args = case.folder / "results.json", case.args
    settings = [args.base_steps, args.steps, args.episodes]
    if file.exists() and (kept := json.loads(file.read_text()))["settings"] == settings:
        return {name: Counts(*numbers) for name, numbers in kept["counts"].items()}
    frames = read(args.data, vocabulary_of((*case.old, case.new)))
    is_new = frames["task_id"] == len(case.old)
    nine = case.folder / "nine"
    _train_nine(case, nine, _rows(frames, ~is_new))
    before = _roll_out(case, nine, case.old, "nine tasks")
    counts = {"before": Counts(0, *_hits(before, before))}
    for name, way in WAYS.items():
        path = case.folder / name.replace(" ", "_")
        _add(case, way, name, path, frames, is_new)
        after = _roll_out(case, path, case.old, name)
        learnt = _roll_out(case, path, (case.new,), name)
        counts[name] = Counts(asked_rate(learnt).hits, *_hits(after, before))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"settings": settings, "counts": counts}))
    partial.rename(file)
    return counts


def _train_nine(case: Case, path: Path, frames: Frames) -> None:
    policy, seed = Policy(len(case.old), nnx.Rngs(case.seed)), case.seed
    label = f"nine, without {case.new.name}"
    steps = case.args.base_steps
    if train(policy, frames, steps, use_tasks=True, seed=seed, label=label) < steps:
        raise KeyboardInterrupt
    save(policy, path, vocabulary_of(case.old), frames)


def _add(case: Case, way: Way, label: str, path: Path, frames: Frames, is_new: np.ndarray) -> None:
    vocabulary = vocabulary_of((*case.old, case.new))
    policy = Policy(len(vocabulary), nnx.Rngs(case.seed), own=way.own)
    load_into(policy, case.folder / "nine", vocabulary=vocabulary, new_rows="mean")
    done = train(
        policy,
        _mix(frames, is_new, way.old_share, case.seed),
        case.args.steps,
        use_tasks=True,
        learning_rate=way.learning_rate,
        seed=case.seed,
        label=label[:28],
        trainable=way.trainable,
    )
    if done < case.args.steps:
        raise KeyboardInterrupt
    save(policy, path, vocabulary, frames)


def _mix(frames: Frames, is_new: np.ndarray, old_share: float, seed: int) -> Frames:
    """Returns the frames of the new task, and so many random ones of the old tasks."""
    new, old = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    count = round(len(new) * old_share / (1 - old_share))
    chosen = np.random.default_rng(seed).permutation(old)[:count]
    return _rows(frames, np.concatenate([new, chosen]))


def _rows(frames: Frames, rows: np.ndarray) -> Frames:
    return {key: values[rows] for key, values in frames.items()}


def _roll_out(case: Case, path: Path, tasks: tuple[Task, ...], label: str) -> list[Episode]:
    count, seed = case.args.episodes, case.seed + 100
    jobs = [
        Job(task, task, start=TEN.index(task) * count + episode)
        for task in tasks
        for episode in range(count)
    ]
    episodes = run_jobs(jobs, load_actor, path, pool=case.pool, seed=seed, label=label[:28])
    if case.pool.interrupted:
        raise KeyboardInterrupt
    return episodes


def _hits(after: list[Episode], before: list[Episode]) -> tuple[int, int]:
    """Returns how many old episodes did their task, and how many went exactly as before."""
    pairs = zip(after, before, strict=True)
    same = sum(np.array_equal(a.observations, b.observations) for a, b in pairs)
    return asked_rate(after).hits, same


def _table(totals: dict[str, Counts], episodes: int, *, partial: bool) -> Table:
    """Returns the table; `episodes` is the number of episodes of each task."""
    title = "a tenth task for a policy that knows nine" + (" (partial)" if partial else "")
    table = Table(title=title)
    for name in ("way", "new task, percent", "old tasks, percent", "old episodes as before"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for name, counts in totals.items():
        learnt = "" if name == "before" else str(Rate(counts.new, episodes))
        old = (len(TEN) - 1) * episodes
        table.add_row(name, learnt, str(Rate(counts.old, old)), f"{counts.same} of {old}")
    return table


if __name__ == "__main__":
    main(tyro.cli(Args))
