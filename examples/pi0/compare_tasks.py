r"""What does a policy do in one situation, if only the task is another? Prints and plots it.

    make demo
    python -m examples.pi0.compare_tasks --checkpoint runs/demo/conditioned \
        --data runs/demo/dataset --tokenizer runs/demo/tokenizer.model --prompt "do the task" \
        --tasks "reach cup 0" "reach cup 7"

samples a chunk of actions for each task, from the same frame and the same noise. Config, cameras
and statistics are those that `FrameTransform.save` wrote beside the checkpoint; for other
checkpoints there are `--config` and `--cameras`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from examples.lerobot import LeRobotData
from examples.lerobot.stats import Stats
from examples.pi0.model import Pi0, Pi0Config
from examples.pi0.tokenizer import Tokenizer
from examples.pi0.transform import FrameTransform, load_config
from taskcond import NULL_TASK, TaskVocabulary, merge_into
from taskcond.checkpoint import Checkpoint, load_params, open_checkpoint
from taskcond.trees import to_dict

console = Console()

SIZES = {"pi0": Pi0Config(pi05=False), "pi05": Pi0Config(), "small": Pi0Config.small()}
"""Sizes that `--config` knows by name."""

_MOST_DIMENSIONS = 12


@dataclasses.dataclass(frozen=True)
class Args:
    """Samples the actions of one frame under several tasks; prints and plots them.

    Attributes:
        checkpoint: Orbax or safetensors; a training run means its last step.
        data: A LeRobot dataset of the robot.
        tokenizer: The SentencePiece model that the checkpoint was trained with.
        tasks: Two or more: names, numbers, or `none`, which is acting without a task.
        frame: Which frame of the dataset.
        config: `pi0`, `pi05`, `small` or a `config.json`; by default, what lies beside the
            checkpoint.
        cameras: The model's camera and the dataset's, and so on; by default, what lies beside the
            checkpoint, and else in order.
        prompt: For all tasks; by default the frame's, so that the task id alone makes the
            difference.
        own_prompts: Whether each task's name is its prompt instead.
        num_steps: Euler steps.
        seed: Of the noise.
        out: Where the plot goes.
    """

    checkpoint: Path
    data: Path
    tokenizer: Path
    tasks: tuple[str, ...]
    frame: int = 0
    config: str | None = None
    cameras: dict[str, str] = dataclasses.field(default_factory=dict)
    prompt: str | None = None
    own_prompts: bool = False
    num_steps: int = 10
    seed: int = 0
    out: Path = Path("chunk.png")


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Actions of one frame, in the dataset's units.

    Attributes:
        names: Of the tasks.
        sampled: One chunk for each task.
        recorded: The dataset's, up to the end of its episode.
        stats: Of the actions that the model was trained on.
        fps: Actions a second.
    """

    names: tuple[str, ...]
    sampled: Float[np.ndarray, "tasks h a"]
    recorded: Float[np.ndarray, "t a"]
    stats: Stats
    fps: float

    @property
    def shown(self) -> Int[np.ndarray, " dimensions"]:
        """The dimensions that move; of more than a dozen, those in which the tasks differ most."""
        moving = np.flatnonzero(~self.stats.still)
        apart = self.apart[moving] / (self.stats.max - self.stats.min)[moving]
        return np.sort(moving[np.argsort(-apart, kind="stable")[:_MOST_DIMENSIONS]])

    @property
    def apart(self) -> Float[np.ndarray, " a"]:
        """How far the tasks are apart where they are farthest."""
        return np.ptp(self.sampled, axis=0).max(axis=0)

    @property
    def errors(self) -> Float[np.ndarray, " tasks"]:
        """Distance to the recorded chunk: root mean square, in standard deviations."""
        moving = ~self.stats.still
        off = self.sampled[:, : len(self.recorded)] - self.recorded
        return np.sqrt(np.mean((off[..., moving] / self.stats.std[moving]) ** 2, axis=(1, 2)))


def run(args: Args) -> Chunks:
    """Does what the command line says; see `Args`.

    Raises:
        ValueError: Anything that does not fit together, with the fix.
    """
    checkpoint = open_checkpoint(args.checkpoint)
    config, beside = _find_config(args, checkpoint)
    data = LeRobotData(args.data, horizon=config.action_horizon)
    transform = _make_transform(args, data, config, beside)
    vocabulary = _find_vocabulary(args, checkpoint, data, config.num_tasks)
    ids = resolve_tasks(args.tasks, vocabulary, config.num_tasks)
    if data.norm_stats["actions"].still.all():
        raise ValueError(f"no action of {args.data} ever moves; choose another dataset")
    if not 0 <= args.frame < len(data):
        raise ValueError(f"--frame {args.frame} must be below {len(data)}, the dataset's frames")
    frame = data[args.frame]
    prompts = _prompts(ids, vocabulary) if args.own_prompts else [None] * len(ids)
    actions = sample_tasks(
        load_model(args.checkpoint, config),
        transform,
        [
            {**frame, "task_id": np.int32(i), "task": prompt or args.prompt or frame["task"]}
            for i, prompt in zip(ids, prompts, strict=True)
        ],
        noise_rng=jax.random.key(args.seed),
        num_steps=args.num_steps,
    )
    chunks = Chunks(
        names=tuple(_name(i, vocabulary) for i in ids),
        sampled=actions,
        recorded=frame["actions"][~frame["action_is_pad"]],
        stats=transform.stats["actions"],
        fps=data.fps,
    )
    title = (
        f"frame {args.frame} (episode {frame['episode_index']}, step {frame['frame_index']}), "
        f"recorded doing “{frame['task']}”"
    )
    console.print(table(chunks, title))
    plot(chunks, title, args.out)
    console.print(f"plot in {args.out}")
    return chunks


def load_model(path: Path, config: Pi0Config) -> Pi0:
    """A model with a checkpoint's parameters, which are all that there ever is in memory.

    Raises:
        MergeError: They are not those of a model of this config.
    """
    # Dropout is for training, and would be the only state that is not in the checkpoint.
    config = dataclasses.replace(config, task_dropout_rate=0.0)
    model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))
    like = to_dict(nnx.state(model, nnx.Param))
    merge_into(model, load_params(path, like, scale=_scale(config)))
    return model


def sample_tasks(
    model: Pi0,
    transform: FrameTransform,
    frames: Sequence[Mapping[str, Any]],
    *,
    noise_rng: Array,
    num_steps: int = 10,
) -> Float[np.ndarray, "tasks h a"]:
    """Chunks of actions for frames that differ in their task, all from the same noise.

    Args:
        model: The policy.
        transform: From a frame to its input.
        frames: The same one with another `task_id`, see `FrameTransform.observe`.
        noise_rng: Draws the noise.
        num_steps: Euler steps.

    Returns:
        Actions in the dataset's units.
    """
    config = model.config
    batch = jax.tree.map(lambda *x: np.stack(x), *(transform.observe(frame) for frame in frames))
    noise = jax.random.normal(noise_rng, (config.action_horizon, config.action_dim))
    noise = np.broadcast_to(noise, (len(frames), *noise.shape))
    graphdef, state = nnx.split(model)

    @jax.jit
    def sample(state: Any, observation: Any, noise: Array) -> Array:
        policy = nnx.merge(graphdef, state)
        return policy.sample_actions(None, observation, num_steps=num_steps, noise=noise)

    return transform.unnormalize_actions(sample(state, batch, noise))


def resolve_tasks(
    tasks: Sequence[str], vocabulary: TaskVocabulary | None, num_tasks: int
) -> list[int]:
    """The ids of tasks given by name, by number, or as `none`.

    Raises:
        ValueError: Fewer than two, or unknown ones, all of them at once; no task table, or one
            of another height than the vocabulary.

    >>> resolve_tasks(["wipe", "0", "none"], TaskVocabulary(["pour", "wipe"]), 2)
    [1, 0, -1]
    """
    if not num_tasks:
        raise ValueError("the model has no task table; choose a conditioned checkpoint")
    if vocabulary is not None and len(vocabulary) != num_tasks:
        raise ValueError(
            f"the vocabulary has {len(vocabulary)} tasks, the model num_tasks={num_tasks}; correct "
            "the tasks.json that lies beside the checkpoint"
        )
    if len(tasks) < 2:
        raise ValueError(f"two tasks or more are needed to compare them, got {list(tasks)}")
    numbers = {str(i): i for i in range(num_tasks)} | {"none": NULL_TASK}
    names = {} if vocabulary is None else {name: i for i, name in enumerate(vocabulary)}
    known = numbers | names  # a name goes before a number
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise ValueError(
            f"no tasks {unknown}; pass numbers from 0 to {num_tasks - 1}, none"
            + (f", or names: {list(names)}" if names else "; names of this checkpoint are unknown")
        )
    return [known[task] for task in tasks]


def table(chunks: Chunks, title: str) -> Table:
    """The mean of each shown dimension, recorded and under each task."""
    caption = (
        "mean over the chunk, and how far tasks are apart at most, in the dataset's units\n"
        "error: distance to the recorded chunk, in standard deviations of the dataset"
    )
    result = Table(title=title, caption=caption)
    for name in ("action", "recorded", *chunks.names, "apart"):
        result.add_column(name, justify="right")
    for i in chunks.shown:
        means = [f"{values[:, i].mean():.3g}" for values in (chunks.recorded, *chunks.sampled)]
        result.add_row(str(i), *means, f"{chunks.apart[i]:.3g}")
    result.add_section()
    errors = [f"{error:.2f}" for error in chunks.errors]
    result.add_row("error", "", *errors, "", style="bold")
    return result


def plot(chunks: Chunks, title: str, path: Path) -> None:
    """Draws the chunks, a panel for each shown dimension; writes a PNG."""
    shown, moving = chunks.shown, int((~chunks.stats.still).sum())
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(3.1 * columns, 8), 2.3 * rows + 1.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axis, dimension in zip(axes, shown, strict=False):
        _draw(axis, chunks, int(dimension))
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis in axes[max(len(shown) - columns, 0) : len(shown)]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("time / s")
    if moving > len(shown):
        title += f"\nthe {len(shown)} of {moving} moving dimensions in which the tasks differ most"
    figure.suptitle(title, size="medium")
    figure.supylabel("action, in the dataset's units", size="medium")
    lines, labels = axes[0].get_legend_handles_labels()
    room = int(12 * figure.get_figwidth()) // (max(map(len, labels)) + 8)  # in characters
    figure.legend(lines, labels, loc="outside lower center", ncols=max(min(len(labels), room), 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw(axis: Axes, chunks: Chunks, dimension: int) -> None:
    def line(values: Float[np.ndarray, "t a"], label: str, **style: Any) -> None:
        axis.plot(np.arange(len(values)) / chunks.fps, values[:, dimension], label=label, **style)

    line(chunks.recorded, "recorded", color="black", linestyle="--", linewidth=1.2, zorder=3)
    widths = np.linspace(3, 1.5, len(chunks.names))  # so that equal chunks are seen as two
    for name, values, width in zip(chunks.names, chunks.sampled, widths, strict=True):
        line(values, name, marker=".", markersize=4, linewidth=width)
    # At least the usual range, or noise on what hardly moves would fill the panel.
    axis.update_datalim([(0, chunks.stats.q01[dimension]), (0, chunks.stats.q99[dimension])])
    axis.autoscale_view()
    axis.set_title(f"action {dimension}", size="medium")
    axis.grid(alpha=0.3)


def _find_config(args: Args, checkpoint: Checkpoint) -> tuple[Pi0Config, Path | None]:
    """The config, and the folder with what else training left there."""
    if args.config is None:
        folder = _beside(args.checkpoint, "inputs.json")
        if folder is None:
            raise ValueError(
                f"nothing beside {args.checkpoint} says what its config is; pass --config, one of "
                f"{list(SIZES)} or a config.json"
            )
        return load_config(folder / "config.json"), folder
    if args.config not in SIZES:
        return load_config(args.config), None
    scale = checkpoint.conditioning and checkpoint.conditioning.scale
    return dataclasses.replace(
        SIZES[args.config],
        num_tasks=checkpoint.leaves[checkpoint.table].shape[0] if checkpoint.table else 0,
        task_embedding_scale=1.0 if scale is None else scale,
    ), None


def _make_transform(
    args: Args, data: LeRobotData, config: Pi0Config, beside: Path | None
) -> FrameTransform:
    if beside is not None:
        transform = FrameTransform.load(beside, args.tokenizer)
        return dataclasses.replace(transform, cameras=args.cameras) if args.cameras else transform
    cameras = args.cameras or dict(zip(config.image_keys, data.cameras, strict=False))
    console.print(f"cameras: {cameras}; statistics: the dataset's", highlight=False)
    tokenizer = Tokenizer.for_config(config, args.tokenizer)
    return FrameTransform(config, tokenizer, cameras, data.norm_stats)


def _find_vocabulary(
    args: Args, checkpoint: Checkpoint, data: LeRobotData, num_tasks: int
) -> TaskVocabulary | None:
    """The checkpoint's tasks; the dataset's where it does not say and there are as many."""
    if checkpoint.conditioning is not None and checkpoint.conditioning.vocabulary is not None:
        return checkpoint.conditioning.vocabulary
    folder = _beside(args.checkpoint, "tasks.json")
    if folder is not None:
        return TaskVocabulary.load(folder / "tasks.json")
    if len(data.vocabulary) != num_tasks:
        return None
    console.print("[yellow]the checkpoint does not name its tasks; taken to be the dataset's")
    return data.vocabulary


def _beside(checkpoint: Path, name: str) -> Path | None:
    """The folder of a file in the checkpoint, its step, its run, or the experiment."""
    path = checkpoint.absolute()
    return next((place for place in (path, *path.parents[:3]) if (place / name).exists()), None)


def _prompts(ids: Sequence[int], vocabulary: TaskVocabulary | None) -> list[str | None]:
    if vocabulary is None:
        raise ValueError(
            "--own-prompts needs the tasks' names; put tasks.json beside the checkpoint, see "
            "TaskVocabulary.save"
        )
    return [None if i == NULL_TASK else vocabulary.names[i] for i in ids]


def _name(task_id: int, vocabulary: TaskVocabulary | None) -> str:
    if task_id == NULL_TASK:
        return "no task"
    return f"task {task_id}" if vocabulary is None else vocabulary.names[task_id]


def _scale(config: Pi0Config) -> float | None:
    return config.task_embedding_scale if config.num_tasks else None


if __name__ == "__main__":
    try:
        run(tyro.cli(Args))
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"error: {error.args[0] if isinstance(error, KeyError) else error}")
