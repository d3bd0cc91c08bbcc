r"""The command that samples the actions of one frame under several tasks.

What does a policy do in one situation, if only the task is another?

    make demo-pi0
    python -m examples.pi0.compare_tasks --checkpoint runs/demo/conditioned \
        --data runs/demo/dataset --tokenizer runs/demo/tokenizer.model --prompt "do the task" \
        --tasks "reach cup 0" "reach cup 7"

samples a chunk of actions for each task, from the same frame and the same noise. Config, cameras
and statistics are those that `save_transform` wrote beside the checkpoint; for other checkpoints
there are `--config` and `--cameras`.
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
from jaxtyping import Array, Float
from rich.console import Console

from examples.lerobot import LeRobotData
from examples.pi0.beside import find_beside, load_config, load_transform
from examples.pi0.compare_tasks_report import Chunks, plot, table
from examples.pi0.model import Pi0, Pi0Config
from examples.pi0.policy import load_model
from examples.pi0.tokenizer import Tokenizer
from examples.pi0.transform import FrameTransform
from taskcond import NULL_TASK, TaskVocabulary
from taskcond.checkpoint import Checkpoint, open_checkpoint

console = Console()

SIZES = {"pi0": Pi0Config(pi05=False), "pi05": Pi0Config(), "small": Pi0Config.small()}
"""The sizes that `--config` knows by name."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Samples the actions of one frame under several tasks; prints and plots them.

    Attributes:
        checkpoint: Orbax or safetensors; a training run means its last step.
        data: A LeRobot dataset of the robot.
        tokenizer: The SentencePiece model that the checkpoint was trained with.
        tasks: Two or more names or numbers of tasks, or `none` for acting without a task.
        frame: The number of the frame in the dataset.
        config: `pi0`, `pi05`, `small` or a `config.json`; by default, the file beside the
            checkpoint.
        cameras: Pairs of the model's camera and the dataset's; by default, those that are written
            beside the checkpoint, and otherwise all in order.
        prompt: The prompt of all tasks; by default the frame's, so that only the task id differs.
        own_prompts: Whether the prompt of each task is its name instead.
        num_steps: The number of Euler steps.
        seed: The seed of the noise.
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


def run(args: Args) -> Chunks:
    """Runs the command; see `Args`.

    Raises:
        ValueError: The arguments do not fit together. The message has the fix.
    """
    checkpoint = open_checkpoint(args.checkpoint)
    config, beside = find_config(args, checkpoint)
    data = LeRobotData(args.data, horizon=config.action_horizon)
    transform = _make_transform(args, data, config, beside)
    vocabulary = _find_vocabulary(args, checkpoint, data, config.num_tasks)
    ids = resolve_tasks(args.tasks, vocabulary, config.num_tasks)
    if data.norm_stats["actions"].still.all():
        raise ValueError(
            f"no action of {args.data} ever moves, so that tasks cannot differ; choose another "
            "dataset"
        )
    if not 0 <= args.frame < len(data):
        raise ValueError(
            f"--frame {args.frame} must be below {len(data)}, the number of the dataset's frames, "
            "and not negative"
        )
    frame = data[args.frame]
    prompts = own_prompts(ids, vocabulary) if args.own_prompts else [None] * len(ids)
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
    title = _title(args.frame, frame)
    console.print(table(chunks, title))
    plot(chunks, title, args.out)
    console.print(f"plot in {args.out}")
    return chunks


def sample_tasks(
    model: Pi0,
    transform: FrameTransform,
    frames: Sequence[Mapping[str, Any]],
    *,
    noise_rng: Array,
    num_steps: int = 10,
) -> Float[np.ndarray, "tasks h a"]:
    """Samples chunks of actions for frames that differ in their task, all from the same noise.

    Args:
        model: The policy.
        transform: Makes the policy's input of a frame.
        frames: The same frame with different task ids, see `FrameTransform.observe`.
        noise_rng: Draws the noise.
        num_steps: The number of Euler steps.

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
    """Returns the ids of tasks that are given by name, by number, or as `none`.

    Raises:
        ValueError: There are fewer than two tasks, or unknown ones, all of which the message lists;
            or the model has no task table, or one of another height than the vocabulary.

    >>> resolve_tasks(["wipe", "0", "none"], TaskVocabulary(["pour", "wipe"]), 2)
    [1, 0, -1]
    """
    if not num_tasks:
        raise ValueError("the model has no task table; choose a conditioned checkpoint")
    if vocabulary is not None and len(vocabulary) != num_tasks:
        raise ValueError(
            f"the vocabulary has {len(vocabulary)} tasks, the model num_tasks={num_tasks}; correct "
            "the tasks.json beside the checkpoint"
        )
    if len(tasks) < 2:
        raise ValueError(f"got {list(tasks)}, but a comparison needs two tasks or more; add tasks")
    numbers = {str(i): i for i in range(num_tasks)} | {"none": NULL_TASK}
    names = {} if vocabulary is None else {name: i for i, name in enumerate(vocabulary)}
    known = numbers | names  # a name goes before a number
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise ValueError(
            f"there are no tasks {unknown}; pass numbers from 0 to {num_tasks - 1}, none"
            + (f", or names: {list(names)}" if names else "; this checkpoint has no task names")
        )
    return [known[task] for task in tasks]


def find_config(args: Args, checkpoint: Checkpoint) -> tuple[Pi0Config, Path | None]:
    """Returns the config, and the folder with the other settings of training, if there is one.

    Raises:
        ValueError: There is no `--config`, and no config beside the checkpoint.
    """
    if args.config is None:
        folder = find_beside(Path(checkpoint.root), "inputs.json")
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
        transform = load_transform(beside, args.tokenizer)
        return dataclasses.replace(transform, cameras=args.cameras) if args.cameras else transform
    cameras = args.cameras or dict(zip(config.image_keys, data.cameras, strict=False))
    console.print(f"cameras: {cameras}; statistics: the dataset's", highlight=False)
    tokenizer = Tokenizer.for_config(config, args.tokenizer)
    return FrameTransform(config, tokenizer, cameras, data.norm_stats)


def _find_vocabulary(
    args: Args, checkpoint: Checkpoint, data: LeRobotData, num_tasks: int
) -> TaskVocabulary | None:
    """Returns the checkpoint's tasks; or the dataset's, if it has none and they are as many."""
    if checkpoint.conditioning is not None and checkpoint.conditioning.vocabulary is not None:
        return checkpoint.conditioning.vocabulary
    folder = find_beside(Path(checkpoint.root), "tasks.json")
    if folder is not None:
        return TaskVocabulary.load(folder / "tasks.json")
    if len(data.vocabulary) != num_tasks:
        return None
    console.print("[yellow]the checkpoint does not name its tasks; the dataset's names are taken")
    return data.vocabulary


def own_prompts(ids: Sequence[int], vocabulary: TaskVocabulary | None) -> list[str | None]:
    """Returns the name of each task as its prompt; `None` for acting without a task.

    Raises:
        ValueError: There is no vocabulary.
    """
    if vocabulary is None:
        raise ValueError(
            "the tasks' names are unknown, but --own-prompts needs them; write tasks.json beside "
            "the checkpoint, see TaskVocabulary.save"
        )
    return [None if i == NULL_TASK else vocabulary[i] for i in ids]


def _title(number: int, frame: Mapping[str, Any]) -> str:
    return (
        f"frame {number} (episode {frame['episode_index']}, step {frame['frame_index']}), "
        f"recorded doing “{frame['task']}”"
    )


def _name(task_id: int, vocabulary: TaskVocabulary | None) -> str:
    if task_id == NULL_TASK:
        return "no task"
    return f"task {task_id}" if vocabulary is None else vocabulary[task_id]


if __name__ == "__main__":
    try:
        run(tyro.cli(Args))
    except (ValueError, KeyError, OSError) as error:
        sys.exit(f"error: {error.args[0] if isinstance(error, KeyError) else error}")
