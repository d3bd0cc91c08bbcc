"""Tells at the desk whether a checkpoint does what it is told, and if not, why.

python -m examples.metaworld.diagnose runs/metaworld/conditioned runs/metaworld/dataset
python -m examples.metaworld.diagnose CHECKPOINT DATASET --base runs/metaworld/base --json OUT
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Float, Int
from rich.console import Console

from examples.lerobot import LeRobotData
from examples.metaworld.policy import HORIZON, Policy, sample
from examples.metaworld.train import Batch, load_actor, read
from taskcond import TaskVocabulary, merge_into
from taskcond.checkpoint import load_params, open_checkpoint
from taskcond.diagnostics import (
    Diagnosis,
    PolicyFunctions,
    TableReport,
    diagnose,
    table_change,
    table_report,
)

_BATCH = 256


@dataclasses.dataclass
class Args:
    """Prints what is wrong with a checkpoint. The exit code is 1 if something is.

    Attributes:
        checkpoint: The folder of the parameters. One without a table gets an untrained one.
        dataset: Demonstrations of its tasks.
        base: The parameters from which training with ids began, to see whether the table learns.
        frames: The number of frames to measure on.
        draws: The number of draws of noise and time for each frame.
        seed: The seed of the draws.
        json: A file for all numbers as JSON.
        plot: A file for the matrix of true and predicted tasks.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    dataset: Annotated[Path, tyro.conf.Positional]
    base: Path | None = None
    frames: int = 1024
    draws: int = 4
    seed: int = 0
    json: Path | None = None
    plot: Path | None = None


def main(args: Args) -> int:
    """Runs the command; returns the exit code."""
    policy, vocabulary = _load(args)
    frames = read(args.dataset, vocabulary, args.frames)
    result = examine(policy, vocabulary, frames, args)
    console = Console()
    for table in (result.measurements.confusion, result.measurements.table):
        console.print(f"{table}\n", highlight=False, soft_wrap=True, markup=False)
    console.print(str(result), highlight=False, markup=False)
    if args.json:
        args.json.write_text(json.dumps(result.to_dict(), indent=1))
    if args.plot and result.measurements.confusion is not None:
        result.measurements.confusion.plot().savefig(args.plot)
    return 0 if result.is_healthy else 1


def examine(
    policy: Policy, vocabulary: TaskVocabulary, frames: dict[str, np.ndarray], args: Args
) -> Diagnosis:
    """Returns the diagnosis of a policy on frames that `read` returned."""
    graphdef, state = nnx.split(policy)

    @jax.jit
    def frame_losses(
        state: nnx.State, key: Array, batch: Batch, task_id: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        return nnx.merge(graphdef, state).frame_losses(key, batch, task_id)

    learning = None
    if args.base is not None:
        learning = table_change(load_params(args.base), load_params(args.checkpoint))
    functions = PolicyFunctions[Batch](
        vocabulary.names,
        loss=lambda key, batch, task_id: frame_losses(state, key, batch, task_id),
        actions=lambda key, batch, task_id: sample(policy, key, batch["state"], task_id),
        observe=lambda batch: batch["state"],
        table=_describe(policy, vocabulary, args.checkpoint),
        learning=learning,
    )
    starts = range(0, len(frames["state"]), _BATCH)
    batches = [
        {key: jnp.asarray(values[i : i + _BATCH]) for key, values in frames.items()} for i in starts
    ]
    return diagnose(functions, batches, draws=args.draws, seed=args.seed)


def _load(args: Args) -> tuple[Policy, TaskVocabulary]:
    actor = load_actor(args.checkpoint)
    if len(actor.vocabulary):
        return actor.policy, actor.vocabulary
    vocabulary = LeRobotData(args.dataset, horizon=HORIZON).vocabulary
    policy = Policy(len(vocabulary), nnx.Rngs(0))
    merge_into(policy, load_params(args.checkpoint))
    policy.eval()
    return policy, vocabulary


def _describe(policy: Policy, vocabulary: TaskVocabulary, checkpoint: Path) -> TableReport:
    conditioner = policy.task_embeddings
    assert conditioner.embedding is not None
    about = open_checkpoint(checkpoint).conditioning
    return table_report(
        conditioner.embedding[...],
        scale=conditioner.scale,
        fusion=conditioner.fusion,
        frames_seen=None if about is None else about.frames_seen,
        names=vocabulary.names,
    )


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args)))
