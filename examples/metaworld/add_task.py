"""A tenth task for a policy that knows nine: what is learnt, and what is forgotten?

    python -m examples.metaworld.add_task --new "push the puck forward"

trains a policy on nine tasks, and adds the tenth in four ways, each of which starts its row as the
mean of the others.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from examples.metaworld.collect import collect
from examples.metaworld.episodes import Episode, Job, run_jobs
from examples.metaworld.policy import Policy
from examples.metaworld.processes import Pool
from examples.metaworld.report import asked_rate
from examples.metaworld.tasks import TEN, Task, find_tasks, vocabulary_of
from examples.metaworld.train import load_actor, read, save, train
from taskcond import TaskParam
from taskcond.checkpoint import load_into

Frames = dict[str, np.ndarray]


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

    Attributes:
        new: The name of the task to add.
        data: A dataset of all ten tasks, as `make demo` leaves it; it is made if it is not there.
        out: The folder for the checkpoints and the results.
        base_steps: Training steps on nine tasks.
        steps: Training steps on the new task.
        episodes: Episodes of each task.
        workers: The number of processes for the simulator.
        seed: The seed of everything but the dataset.
    """

    new: str = TEN[5].name
    data: Path = Path("runs/metaworld/dataset")
    out: Path = Path("runs/metaworld/add_task")
    base_steps: int = 4000
    steps: int = 600
    episodes: int = 10
    workers: int = 2
    seed: int = 0


def main(args: Args) -> dict[str, tuple[int, int, int]]:
    """Prints and saves, for each way, how often the new task and the old ones were done."""
    (new,) = find_tasks([args.new])
    old = tuple(task for task in TEN if task != new)
    with Pool(args.workers) as pool:
        if not args.data.exists():
            collect(args.data, TEN, 50, pool=pool)
        frames = read(args.data, vocabulary_of((*old, new)))
        is_new = frames["task_id"] == len(old)
        nine = args.out / "nine"
        _train_nine(args, nine, _rows(frames, ~is_new), old)
        counts = {}
        before = _roll_out(args, pool, nine, old, "nine tasks")
        counts["before"] = (0, *_hits(before, before))
        for name, way in WAYS.items():
            path = args.out / name.replace(" ", "_")
            _add(args, way, name, nine, path, frames, is_new, (*old, new))
            after = _roll_out(args, pool, path, old, name)
            learnt = _roll_out(args, pool, path, (new,), name)
            counts[name] = (asked_rate(learnt).hits, *_hits(after, before))
    _print(args, counts, len(old))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps({"new": args.new, "counts": counts}))
    return counts


def _train_nine(args: Args, path: Path, frames: Frames, old: tuple[Task, ...]) -> None:
    policy = Policy(len(old), nnx.Rngs(args.seed))
    train(policy, frames, args.base_steps, use_tasks=True, seed=args.seed, label="nine tasks")
    save(policy, path, vocabulary_of(old), frames)


def _add(
    args: Args,
    way: Way,
    label: str,
    nine: Path,
    path: Path,
    frames: Frames,
    is_new: np.ndarray,
    tasks: tuple[Task, ...],
) -> None:
    vocabulary = vocabulary_of(tasks)
    policy = Policy(len(tasks), nnx.Rngs(args.seed), own=way.own)
    load_into(policy, nine, vocabulary=vocabulary, new_rows="mean")
    train(
        policy,
        _mix(frames, is_new, way.old_share, args.seed),
        args.steps,
        use_tasks=True,
        learning_rate=way.learning_rate,
        seed=args.seed,
        label=label[:28],
        trainable=way.trainable,
    )
    save(policy, path, vocabulary, frames)


def _mix(frames: Frames, is_new: np.ndarray, old_share: float, seed: int) -> Frames:
    """Returns the frames of the new task, and so many random ones of the old tasks."""
    new, old = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    count = round(len(new) * old_share / (1 - old_share))
    chosen = np.random.default_rng(seed).permutation(old)[:count]
    return _rows(frames, np.concatenate([new, chosen]))


def _rows(frames: Frames, rows: np.ndarray) -> Frames:
    return {key: values[rows] for key, values in frames.items()}


def _roll_out(
    args: Args, pool: Pool, path: Path, tasks: tuple[Task, ...], label: str
) -> list[Episode]:
    jobs = [
        Job(task, task, start=TEN.index(task) * args.episodes + episode)
        for task in tasks
        for episode in range(args.episodes)
    ]
    return run_jobs(jobs, load_actor, path, pool=pool, seed=args.seed + 100, label=label[:28])


def _hits(after: list[Episode], before: list[Episode]) -> tuple[int, int]:
    """Returns how many old episodes did their task, and how many went exactly as before."""
    pairs = zip(after, before, strict=True)
    same = sum(np.array_equal(a.observations, b.observations) for a, b in pairs)
    return asked_rate(after).hits, same


def _print(args: Args, counts: dict[str, tuple[int, int, int]], old: int) -> None:
    table = Table(title=f"a tenth task, {args.new!r}, for a policy that knows nine")
    for name in ("way", "new task", "old tasks", "old episodes exactly as before"):
        table.add_column(name, justify="left" if name == "way" else "right")
    total = old * args.episodes
    for name, (new, kept, same) in counts.items():
        learnt = "" if name == "before" else f"{new} of {args.episodes}"
        table.add_row(name, learnt, f"{kept} of {total}", f"{same} of {total}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
