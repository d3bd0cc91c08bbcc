"""Measures a trained π0 or π0.5 on a dataset: loss and error of actions by task, and confusion.

    python -m examples.pi0.evaluate runs/pi0/debug/first runs/pi0/generated/dataset --plot ids.png

The checkpoint is a run's folder, a step of it, or its `params`. The exit code is 1 if the diagnosis
finds something.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from examples.lerobot import Frames
from examples.pi0.policy import Policy, load_policy
from examples.pi0.training.blueprint import Blueprint, nest
from examples.pi0.training.configs import CONFIG_FILE, TrainConfig, from_json
from examples.pi0.training.data import open_datasets, wrong_prompts
from examples.pi0.training.evaluation import Evaluation
from examples.pi0.training.examples import Examples, Prompts, TaskPrompt, batches
from examples.pi0.training.frames import task_indices
from examples.pi0.training.order import stratified
from examples.pi0.training.task_stages import stage_labels
from taskcond.diagnostics import Diagnosis
from taskcond.trees import flatten, to_dict


@dataclasses.dataclass
class Args:
    """Prints what a checkpoint does on a dataset.

    Attributes:
        checkpoint: A run's folder, a step of it, or its `params`.
        dataset: A LeRobot dataset of the robot.
        tasks: The names of the tasks to measure; by default all.
        held_out: Whether only the episodes are measured that the run held out of this dataset.
        frames: The number of frames, as equally over tasks as possible.
        batch_size: The number of frames in a batch.
        seed: The seed of frames, noise and times.
        json: A file for all numbers as JSON.
        plot: A file for the matrix of true and predicted tasks.
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    dataset: Annotated[str, tyro.conf.Positional]
    tasks: tuple[str, ...] = ()
    held_out: bool = False
    frames: int = 512
    batch_size: int = 32
    seed: int = 0
    json: Path | None = None
    plot: Path | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds what was measured.

    Attributes:
        losses: The loss of each task, and their mean as `all`.
        action_errors: The mean squared error of sampled actions, normalized, as `losses`.
        frames: The number of frames of each task.
        diagnosis: Whether ids are used; `None` for a model without a table, or with one task.
        prompts: The loss with the `right` prompts, and with the `wrong` ones of other tasks; empty
            if all frames have the same prompt.
    """

    losses: dict[str, float]
    action_errors: dict[str, float]
    frames: dict[str, int]
    diagnosis: Diagnosis | None
    prompts: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers, for JSON."""
        diagnosis = None if self.diagnosis is None else self.diagnosis.to_dict()
        return {
            "losses": self.losses,
            "action_errors": self.action_errors,
            "frames": self.frames,
            "diagnosis": diagnosis,
            "prompts": self.prompts,
        }

    def table(self) -> Table:
        """Returns losses and errors for people to read."""
        table = Table(title="by task", caption="action error: mean squared, of normalized actions")
        table.add_column("task")
        for name in ("frames", "loss", "action error"):
            table.add_column(name, justify="right")
        for task, loss in self.losses.items():
            count = self.frames.get(task, sum(self.frames.values()))
            table.add_row(task, f"{count}", f"{loss:.4f}", f"{self.action_errors[task]:.4f}")
        return table


def measure(args: Args) -> Result:
    """Measures a checkpoint.

    Raises:
        FileNotFoundError: The checkpoint or what belongs to it is not there.
        ValueError: Dataset and checkpoint do not fit together.
    """
    policy = load_policy(args.checkpoint)
    config, about = _settings(args, policy), policy.conditioning
    vocabulary = policy.vocabulary or None
    data = open_datasets(config.data, config.model.action_horizon, vocabulary)
    names = list(data.vocabulary)
    usual = TaskPrompt(policy.prompt)
    measured = _batches(args, config, data, policy, usual)
    evaluation = Evaluation(Blueprint(config.model), measured, names, args.seed)
    params = nest(flatten(to_dict(nnx.state(policy.model, nnx.Param))))
    diagnosis = None
    if about is not None and len(names) > 1:
        diagnosis = evaluation.diagnose(params, {}, about.frames_seen, measured)
    prompts = {}
    if others := wrong_prompts(data, config.data):
        wrong = _batches(args, config, data, policy, others)
        prompts = evaluation.prompt_losses(params, {}, wrong)
    return Result(
        evaluation.losses(params, {}),
        evaluation.action_errors(params, {}, len(measured)),
        _counts(measured, names),
        diagnosis,
        prompts,
    )


def main(args: Args) -> int:
    """Runs the command; returns the exit code."""
    console = Console()
    result = measure(args)
    console.print(result.table())
    if result.prompts:
        console.print(
            f"The loss is {result.prompts['right']:.4f} with the prompt of each frame, and "
            f"{result.prompts['wrong']:.4f} with the prompt of another task.\n",
            highlight=False,
            soft_wrap=True,
        )
    if result.diagnosis is not None:
        confusion = result.diagnosis.measurements.confusion
        console.print(f"{confusion}\n", highlight=False, soft_wrap=True, markup=False)
        console.print(str(result.diagnosis), highlight=False, markup=False)
        if args.plot and confusion is not None:
            confusion.plot().savefig(args.plot)
    if args.json:
        args.json.write_text(json.dumps(result.to_dict(), indent=1))
    return 0 if result.diagnosis is None or result.diagnosis.is_healthy else 1


def _settings(args: Args, policy: Policy) -> TrainConfig:
    """Returns the settings of the run, with the dataset that is measured.

    Raises:
        FileNotFoundError: The checkpoint is not of a run.
    """
    file = policy.assets / CONFIG_FILE
    if not file.exists():
        raise FileNotFoundError(
            f"there is no {file}, so that nobody knows which columns the policy reads. Pass a run "
            "of examples.pi0.train."
        )
    config = from_json(file.read_text(encoding="utf-8"), str(file))
    data = dataclasses.replace(config.data, root=(args.dataset,), weights=(), tasks=args.tasks)
    return dataclasses.replace(config, data=data)


def _batches(
    args: Args, config: TrainConfig, data: Frames, policy: Policy, prompts: Prompts
) -> list[Mapping[str, Any]]:
    """Returns the batches, tasks as equally as possible."""
    if args.held_out:
        data = data.split(config.data.val_fraction, config.seed)[1]
    positions = stratified(task_indices(data), args.frames, args.seed)
    stages = stage_labels(data, policy.model.config.stages)
    examples = Examples(data, policy.transform, positions, len(positions), prompts, stages=stages)
    return list(batches(examples, min(args.batch_size, len(positions))))


def _counts(batches: Sequence[Mapping[str, Any]], names: list[str]) -> dict[str, int]:
    ids = np.concatenate([np.asarray(batch["task_id"]) for batch in batches])
    return {names[i]: int((ids == i).sum()) for i in np.unique(ids).tolist()}


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Args)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
