"""Compares a policy without and with task ids: does it stop confusing tasks?

A base policy is trained without task ids and saved. Its checkpoint is merged into a conditioned
policy, which is trained on with ids. The base is trained on for as long without ids, so that the
two differ in nothing but the ids. The results are each task's loss and the task confusion of both.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from flax import nnx
from rich.console import Console

from examples.comparison.cups import write_demo_dataset
from examples.comparison.evaluate import evaluate
from examples.comparison.experiment import Experiment, P
from examples.comparison.report import plot, table
from examples.comparison.train import train
from examples.lerobot import Frames, LeRobotData
from taskcond import merge_into
from taskcond.checkpoint import load_params
from taskcond.diagnostics.confusion import TaskConfusion

console = Console()


def run(experiment: Experiment[P], data: Frames, out: Path) -> tuple[TaskConfusion, ...]:
    """Trains both policies; writes their checkpoints and `confusion.png`.

    `out/base` holds the policy that both start from, `out/without` and `out/conditioned` the
    results.

    Returns:
        The confusion of the policy without ids, and of the conditioned policy. After Ctrl-C, only
        those that were finished.
    """
    out.mkdir(parents=True, exist_ok=True)
    training, validation = hold_out(data)
    vocabulary = data.vocabulary
    vocabulary.save(out / "tasks.json")

    train_on = functools.partial(train, experiment, data=training)
    base = experiment.make_policy(0, nnx.Rngs(0))
    if not train_on(base, out / "base", steps=experiment.base_steps, use_tasks=False):
        return ()
    if not train_on(base, out / "without", steps=experiment.task_steps, use_tasks=False):
        return ()
    before = evaluate(experiment, base, validation, len(vocabulary))

    conditioned = experiment.make_policy(len(vocabulary), nnx.Rngs(1))
    console.print("merging the base checkpoint into the conditioned policy")
    report = merge_into(conditioned, load_params(out / "base"))
    console.print(str(report), highlight=False)
    steps = experiment.task_steps
    if not train_on(conditioned, out / "conditioned", steps=steps, use_tasks=True):
        return (before,)
    after = evaluate(experiment, conditioned, validation, len(vocabulary))

    console.print(table(before, after, vocabulary))
    plot(before, after, vocabulary, out / "confusion.png")
    return before, after


def hold_out(data: Frames) -> tuple[Frames, Frames]:
    """Returns training and validation data; both are all of `data` if it cannot be split."""
    try:
        return data.split(val_fraction=0.25)
    except ValueError as error:
        console.print(f"[yellow]no validation split ({error}) Measuring on training frames.")
        return data, data


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares a policy without and with task ids.

    Attributes:
        data: A LeRobot dataset; by default one is generated.
        out: The folder for the results.
    """

    data: Path | None = None
    out: Path = Path("runs")


def main(
    make_experiment: Callable[[LeRobotData, Path], Experiment[Any]],
    *,
    name: str,
    horizon: int = 16,
    cameras: tuple[str, ...] | None = (),
) -> None:
    """Runs the command line of an experiment, with the flags `--data` and `--out`.

    Args:
        make_experiment: `make_experiment(data, out)`, for a dataset and the folder of its results.
        name: The name of the experiment; results go to `runs/name` by default.
        horizon: The number of actions in a chunk.
        cameras: Keys of the cameras to read; `None` reads all.
    """
    args = tyro.cli(Args, default=Args(out=Path("runs") / name))
    began = time.monotonic()
    root = args.data or _demo_dataset(args.out, video=cameras is None)
    data = LeRobotData(root, horizon=horizon, cameras=cameras)
    console.print(str(data.report), highlight=False, soft_wrap=True)
    results = run(make_experiment(data, args.out), data, args.out)
    console.print(f"{time.monotonic() - began:.0f} s; checkpoints and plot in {args.out}")
    if len(results) < 2:
        sys.exit(130)  # the exit code of a shell after Ctrl-C


def _demo_dataset(out: Path, video: bool) -> Path:
    """Generates the dataset again. It stays beside the results, so that one can sample from it."""
    root = out / "dataset"
    shutil.rmtree(root, ignore_errors=True)
    return write_demo_dataset(root, video=video)
