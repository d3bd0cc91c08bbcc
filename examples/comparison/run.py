"""Before and after: does a policy stop confusing tasks once it is conditioned on them?

A base policy is trained without task ids and saved; its checkpoint is merged into a conditioned
one, which is trained on with ids. The base is trained on as long without them, so that ids are all
that the two differ in. For both: the loss of every task, and the task confusion matrix.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from examples.lerobot.loader import LeRobotData, make_loader
from examples.lerobot.write import write_demo_dataset
from examples.training import fit
from taskcond import TaskVocabulary, merge_into
from taskcond.checkpoint import TaskConditioning, save_params
from taskcond.diagnostics.confusion import TaskConfusion, losses_by_task, task_confusion

console = Console()

Batch = dict[str, Any]


def vector_loader(data: Any, **kwargs: Any) -> Iterator[Batch]:
    """Batches of normalized states and actions, without pictures and text."""
    keys = ("state", "actions", "action_is_pad", "task_id")
    for batch in make_loader(data, normalize_by="quantile", **kwargs):
        yield {key: batch[key] for key in keys}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A policy to compare with and without tasks, and how to train it.

    Attributes:
        make_policy: `make_policy(num_tasks, rngs)`.
        compute_loss: `compute_loss(policy, rng, batch, task_id)`: `[b, horizon]`.
        batch_size: Frames in a batch.
        base_steps: Steps of the base policy, without task ids.
        task_steps: Steps from there on: of one policy with ids, of the other without.
        learning_rate: Its peak, in both.
        draws: How many times noise and time are drawn for each validation frame.
        make_loader: `make_loader(data, batch_size=..., num_epochs=...)`: batches for `compute_loss`
            that have at least `actions`, `action_is_pad` and `task_id`.
    """

    make_policy: Callable[[int, nnx.Rngs], Any]
    compute_loss: Callable[[Any, Array, Batch, Any], Float[Array, "b h"]]
    batch_size: int = 64
    base_steps: int = 600
    task_steps: int = 600
    learning_rate: float = 1e-3
    draws: int = 8
    make_loader: Callable[..., Iterable[Batch]] = vector_loader


def run(experiment: Experiment, data: LeRobotData, out: Path) -> tuple[TaskConfusion, ...]:
    """Trains both policies; writes their checkpoints and `confusion.png`.

    `out/base` holds what both start from, `out/without` and `out/conditioned` what they become.

    Returns:
        The confusion of the policy without ids and of the conditioned one. Of neither, or of the
        first alone, where Ctrl-C came before.
    """
    out.mkdir(parents=True, exist_ok=True)
    train, validation = hold_out(data)
    vocabulary = data.vocabulary
    vocabulary.save(out / "tasks.json")

    train_on = functools.partial(_train, experiment, data=train)
    base = experiment.make_policy(0, nnx.Rngs(0))
    if not train_on(base, out / "base", steps=experiment.base_steps, use_tasks=False):
        return ()
    if not train_on(base, out / "without", steps=experiment.task_steps, use_tasks=False):
        return ()
    before = evaluate(experiment, base, validation, len(vocabulary))

    conditioned = experiment.make_policy(len(vocabulary), nnx.Rngs(1))
    released = ocp.PyTreeCheckpointer().restore((out / "base" / "params").resolve())
    console.print("merging the base checkpoint into the conditioned policy")
    console.print(str(merge_into(conditioned, released)), highlight=False)
    steps = experiment.task_steps
    if not train_on(conditioned, out / "conditioned", steps=steps, use_tasks=True):
        return (before,)
    after = evaluate(experiment, conditioned, validation, len(vocabulary))

    console.print(table(before, after, vocabulary))
    plot(before, after, vocabulary, out / "confusion.png")
    return before, after


def hold_out(data: LeRobotData) -> tuple[Any, Any]:
    """Training and validation data; the same twice where a task would lose its only episode."""
    try:
        train, validation = data.split(val_fraction=0.25)
    except ValueError as error:
        console.print(f"[yellow]no validation split ({error}); measuring on training frames")
        return data, data
    lost = [task for task, count in train.task_frames.items() if not count]
    lost += [task for task, count in validation.task_frames.items() if not count]
    used = {task for task, count in data.task_frames.items() if count}
    if used & set(lost):
        console.print("[yellow]some tasks have a single episode; measuring on training frames")
        return data, data
    return train, validation


def evaluate(
    experiment: Experiment, policy: Any, data: Any, num_tasks: int, max_frames: int = 512
) -> TaskConfusion:
    """The task confusion of a policy on `data`, `draws` of noise and time for each frame."""
    policy.eval()
    graphdef, state = nnx.split(policy)

    @jax.jit
    def losses(state: Any, rng: Array, batch: Batch) -> Float[Array, "b tasks"]:
        model = nnx.merge(graphdef, state)
        rngs = jax.random.split(rng, experiment.draws)

        def loss(task_id: Array) -> Float[Array, " b"]:
            # The same draws for every id: losses under different noise do not compare.
            each = jax.lax.map(
                lambda rng: _frame_loss(experiment, model, rng, batch, task_id), rngs
            )
            return each.mean(0)

        return losses_by_task(loss, len(batch["actions"]), num_tasks)

    size = min(64, len(data))
    loader = experiment.make_loader(data, batch_size=size, num_epochs=1)
    batches = itertools.islice(loader, max(max_frames // size, 1))
    parts = [
        task_confusion(losses(state, jax.random.key(i), batch), batch["task_id"])
        for i, batch in enumerate(batches)
    ]
    return sum(parts[1:], start=parts[0])


def table(before: TaskConfusion, after: TaskConfusion, vocabulary: TaskVocabulary) -> Table:
    """Loss and accuracy for each task, without and with conditioning."""
    result = Table(title="loss, and share of frames whose task is told right")
    for title in ("task", "frames", "loss", "with ids", "right", "with ids"):
        result.add_column(title, justify="left" if title == "task" else "right", no_wrap=True)
    for i, name in enumerate(vocabulary):
        count = after.matrix[i].sum()
        if not count:
            continue
        shares = [f"{c.matrix[i, i] / count:.1%}" for c in (before, after)]
        losses = [f"{c.loss[i]:.4f}" for c in (before, after)]
        result.add_row(_shorten(name), f"{count:.0f}", *losses, *shares)
    means = [f"{np.nanmean(c.loss):.4f}" for c in (before, after)]
    accuracy = [f"{c.accuracy:.1%}" for c in (before, after)]
    result.add_section()
    result.add_row("all tasks", f"{after.matrix.sum():.0f}", *means, *accuracy, style="bold")
    return result


def plot(
    before: TaskConfusion, after: TaskConfusion, vocabulary: TaskVocabulary, path: Path
) -> None:
    """Draws both confusion matrices and the losses; writes a PNG."""
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.1])
    used = np.flatnonzero(after.matrix.sum(1))
    predicted = np.flatnonzero((before.matrix + after.matrix).any(0))
    names = [_shorten(vocabulary.names[i]) for i in used]
    axes[0].set_ylabel("true task")
    _draw_matrix(axes[0], before, used, predicted, names, "without task conditioning")
    image = _draw_matrix(axes[1], after, used, predicted, used, "with task conditioning")
    figure.colorbar(image, ax=axes[1], label="% of the task's frames", shrink=0.8)
    height = 0.38
    for offset, confusion, title in ((-height, before, "without"), (0.0, after, "with")):
        rows = np.arange(len(used)) + offset + height / 2
        axes[2].barh(rows, confusion.loss[used], height, label=title)
    axes[2].set_yticks(range(len(used)), used)
    axes[2].invert_yaxis()
    axes[2].set_xlabel("flow-matching loss (actions normalized)")
    axes[2].set_ylabel("task")
    axes[2].set_title("loss of each task")
    axes[2].legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path, dpi=110)


def _draw_matrix(
    axis: Any, confusion: TaskConfusion, used: Any, predicted: Any, names: Any, title: str
) -> Any:
    """Of each used task, the share of its frames that is predicted as each id."""
    rows = confusion.matrix[used]
    share = rows[:, predicted] / rows.sum(1, keepdims=True)
    image = axis.imshow(100 * share, vmin=0, vmax=100, cmap="Blues")
    axis.set_title(f"{title}: {confusion.accuracy:.1%} right")
    axis.set_xlabel("predicted task")
    axis.set_xticks(range(len(predicted)), predicted)
    axis.set_yticks(range(len(used)), names)
    for row, column in np.ndindex(share.shape):
        text = f"{100 * share[row, column]:.3g}"
        color = "white" if share[row, column] > 0.6 else "black"
        axis.text(column, row, text, ha="center", va="center", color=color, size=7)
    return image


def main(
    make_experiment: Callable[[LeRobotData, Path], Experiment],
    *,
    name: str,
    horizon: int = 16,
    cameras: tuple[str, ...] | None = (),
) -> None:
    """The command line of an experiment: `--data`, `--out`.

    Args:
        make_experiment: `make_experiment(data, out)`, for a dataset and the folder of its results.
        name: Results go to `runs/name` unless told otherwise.
        horizon: Actions in a chunk.
        cameras: Keys of the cameras to read; `None` reads all.
    """
    parser = argparse.ArgumentParser(description=f"{__doc__}".splitlines()[0])
    parser.add_argument("--data", type=Path, help="a LeRobot dataset; by default one is generated")
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="where results go")
    args = parser.parse_args()
    began = time.monotonic()
    root = args.data or _demo_dataset(args.out, video=cameras is None)
    data = LeRobotData(root, horizon=horizon, cameras=cameras)
    console.print(str(data.report), highlight=False, soft_wrap=True)
    results = run(make_experiment(data, args.out), data, args.out)
    console.print(f"{time.monotonic() - began:.0f} s; checkpoints and plot in {args.out}")
    if len(results) < 2:
        sys.exit(130)  # as a shell calls a Ctrl-C


def _demo_dataset(out: Path, video: bool) -> Path:
    """The generated dataset, anew: it stays beside the results, to sample from."""
    root = out / "dataset"
    shutil.rmtree(root, ignore_errors=True)
    return write_demo_dataset(root, video=video)


def _train(
    experiment: Experiment, policy: Any, path: Path, *, data: Any, steps: int, use_tasks: bool
) -> bool:
    """Trains and saves, also after a Ctrl-C; returns whether all steps were done."""
    policy.train()
    batches = experiment.make_loader(data, batch_size=min(experiment.batch_size, len(data)))
    seen = np.zeros(len(data.vocabulary), int)

    def counted() -> Iterator[Batch]:
        for batch in batches:
            seen[:] += np.bincount(batch["task_id"], minlength=len(seen))
            yield batch

    def loss(model: Any, rng: Array, batch: Batch) -> Float[Array, ""]:
        task_id = batch["task_id"] if use_tasks else None
        return _frame_loss(experiment, model, rng, batch, task_id).mean()

    done = fit(
        policy,
        loss,
        counted(),
        steps=steps,
        learning_rate=experiment.learning_rate,
        label=f"{path.name}: {'with' if use_tasks else 'without'} task ids",
    )
    save(policy, path, describe(policy, data.vocabulary, seen) if use_tasks else None)
    return done == steps


def describe(policy: Any, vocabulary: TaskVocabulary, frames_seen: Any) -> TaskConditioning:
    """What the rows of a policy's task table mean, to be kept with its weights."""
    tasks = policy.task_embeddings
    return TaskConditioning(
        tasks.num_tasks, tasks.features, tasks.scale, tasks.fusion, vocabulary,
        tuple(int(n) for n in frames_seen),
    )  # fmt: skip


def save(policy: nnx.Module, path: Path, conditioning: TaskConditioning | None = None) -> None:
    """Writes a policy's parameters as released weights are laid out: `path/params`."""
    params = nnx.state(policy, nnx.Param)
    save_params(params, path / "params", conditioning=conditioning, overwrite=True)


def _frame_loss(
    experiment: Experiment, model: Any, rng: Array, batch: Batch, task_id: Any
) -> Float[Array, " b"]:
    """The mean loss of each frame's chunk, over the steps that are not padding."""
    losses = experiment.compute_loss(model, rng, batch, task_id)
    valid = ~batch["action_is_pad"]
    return jnp.sum(losses * valid, -1) / jnp.sum(valid, -1)


def _shorten(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"
