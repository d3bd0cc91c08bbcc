"""The data of a run: datasets are opened, split, weighed, and matched with the model."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Float

from examples.comparison.cups import write_demo_dataset
from examples.lerobot import Frames, LeRobotData, mix
from examples.lerobot.stats import Stats, load_stats
from examples.pi0.beside import Inputs, load_inputs
from examples.pi0.config import Pi0Config
from examples.pi0.tokenizer import Tokenizer, train_tokenizer
from examples.pi0.training import b1k
from examples.pi0.training.configs import DataConfig, TrainConfig
from examples.pi0.training.download import fetch
from examples.pi0.training.examples import Examples, Prompts, TaskPrompt, WrongPrompt, batches
from examples.pi0.training.frames import task_indices
from examples.pi0.training.order import WeightedOrder, stratified, task_weights
from examples.pi0.training.skills import SkillPrompt, boundary_weights
from examples.pi0.training.statistics import compute_stats, delta_mask
from examples.pi0.training.task_stages import stage_labels
from examples.pi0.transform import FrameTransform, Place
from taskcond import TaskVocabulary

_RELEASED_TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"
_RELEASED_VOCABULARY = 257_152


@dataclasses.dataclass(frozen=True)
class RunData:
    """The data of a run.

    Attributes:
        train: The frames to train on.
        val: The frames to validate on.
        is_held_out: Whether `val` has other episodes than `train`.
        transform: Makes the model's input.
        weights: The weight of each frame of `train`.
        prompts: The prompts of training.
        config: The settings.
        seed: The seed of the order.
    """

    train: Frames
    val: Frames
    is_held_out: bool
    transform: FrameTransform
    weights: Float[np.ndarray, " n"]
    prompts: Prompts
    config: DataConfig
    seed: int

    def train_batches(
        self, batch_size: int, *, first: int, last: int
    ) -> grain.DatasetIterator[dict[str, Any]]:
        """Yields the batches of training from number `first` on, up to number `last`."""
        examples = Examples(
            self.train,
            self.transform,
            WeightedOrder(self.weights, self.seed),
            last * batch_size,
            self.prompts,
            self.config.state_dropout,
            stage_labels(self.train, self.transform.config.stages),
            self.seed,
        )
        return batches(examples, batch_size, first=first, num_workers=self.config.num_workers)

    def val_batches(
        self, batch_size: int, count: int, prompts: Prompts | None = None
    ) -> list[dict[str, Any]]:
        """Returns the same batches at every call: frames of all tasks, as equally as possible.

        Args:
            batch_size: The number of frames in a batch.
            count: The number of batches.
            prompts: The prompts; by default the names of the tasks, or the one of `data.prompt`.
        """
        positions = stratified(task_indices(self.val), batch_size * count, self.seed)
        size = min(batch_size, len(positions))
        prompts = prompts or TaskPrompt(self.config.prompt)
        stages = stage_labels(self.val, self.transform.config.stages)
        examples = Examples(
            self.val, self.transform, positions, len(positions), prompts, stages=stages
        )
        return list(batches(examples, size))

    @property
    def wrong_prompts(self) -> Prompts | None:
        """Prompts of other tasks, see `wrong_prompts`."""
        return wrong_prompts(self.val, self.config)


def wrong_prompts(data: Frames, config: DataConfig) -> Prompts | None:
    """Returns prompts of other tasks.

    It is `None` if all frames have the same prompt, and also with `task_prefix`, where the number
    in front of the prompt tells the task in any case.
    """
    names = tuple(data.task_frames)
    is_one = config.prompt is not None or len(names) < 2
    return None if is_one or config.task_prefix else WrongPrompt(names)


def open_datasets(config: DataConfig, horizon: int, vocabulary: TaskVocabulary | None) -> Frames:
    """Opens the datasets, with the tasks of a vocabulary or their own.

    Raises:
        DatasetError: The files must not be trained on.
        ValueError: Nothing is named, or something that does not exist.
    """
    if not config.root:
        raise ValueError("no dataset is named; pass --data.root FOLDER")
    weights = config.weights or (1.0,) * len(config.root)
    cameras = sorted(set(config.cameras.values())) or None
    parts = [
        LeRobotData(
            root,
            horizon=horizon,
            cameras=cameras,
            state=config.state,
            action=config.action,
            tasks=config.tasks or None,
            vocabulary=vocabulary,
        )
        for root in config.root
    ]
    return parts[0] if len(parts) == 1 else mix(parts, weights, vocabulary)


def generate(folder: Path) -> Path:
    """Writes the dataset of `--data.root generated`, unless it is there; returns its folder."""
    root = folder / "dataset"
    if not root.exists():
        write_demo_dataset(root)
    return root


def find_cameras(
    model: Sequence[str], dataset: Sequence[str], given: dict[str, str]
) -> dict[str, str | None]:
    """Returns the dataset's camera for each of the model's; `None` for those without one.

    Raises:
        ValueError: Nobody says which camera is which. The message lists both.

    >>> find_cameras(["base_0_rgb", "left_wrist_0_rgb"], ["top"], {})
    {'base_0_rgb': 'top', 'left_wrist_0_rgb': None}
    """
    found: dict[str, str] = dict(given)
    if not found:
        found = {name: name for name in model if name in dataset}
    if not found and len(dataset) == 1:
        found = {model[0]: dataset[0]}
    if unknown := sorted({*found} - {*model}):
        raise ValueError(f"data.cameras: the model has no cameras {unknown}, only {list(model)}")
    if missing := sorted({*found.values()} - {*dataset}):
        raise ValueError(
            f"data.cameras: the dataset has no cameras {missing}, only {list(dataset)}"
        )
    if not found and dataset:
        raise ValueError(
            f"the dataset has the cameras {list(dataset)}, the model {list(model)}. Say which is "
            f"which, such as --data.cameras {model[0]} {dataset[0]}"
        )
    return {name: found.get(name) for name in model}


def prepare(
    config: TrainConfig, data: Frames, model: Pi0Config, stats: dict[str, Stats], tokenizer: str
) -> RunData:
    """Matches opened datasets with a model.

    Args:
        config: The run's settings.
        data: The datasets, with the model's vocabulary.
        model: The model's sizes.
        stats: See `dataset_stats`.
        tokenizer: The SentencePiece model.

    Raises:
        ValueError: Dataset and model do not fit. The message lists every problem.
    """
    about = config.data
    settings: dict[str, Any] = {"task_prefix": True, "num_tasks": len(data.vocabulary)}
    made = Tokenizer.for_config(model, tokenizer, **(settings if about.task_prefix else {}))
    cameras = find_cameras(model.image_keys, data.parts[0].cameras, about.cameras)
    transform = FrameTransform(
        model,
        made,
        cameras,
        stats,
        min_range=about.min_range,
        norm=None if about.norm == "auto" else about.norm,
        places=state_places(about),
        delta=delta_mask(about.delta),
    )
    try:
        train, val = data.split(about.val_fraction, config.seed)
        held_out = True
    except ValueError:  # no task has two episodes
        train, val, held_out = data, data, False
    tasks, names = task_indices(train), train.vocabulary.names
    weights = task_weights(tasks, names, about.temperature, about.task_weights)
    prompts: Prompts = TaskPrompt(about.prompt)
    if about.boundary_factor != 1 or about.skill_prompt_rate:
        weights = weights * boundary_weights(train, about.boundary_factor, about.boundary_window)
        if about.skill_prompt_rate:
            prompts = SkillPrompt.of(train, about.skill_prompt_rate)
    return RunData(train, val, held_out, transform, weights, prompts, about, config.seed)


def dataset_stats(config: TrainConfig, data: Frames) -> dict[str, Stats]:
    """Returns the statistics of what the model sees and makes of these frames."""
    about = config.data
    return compute_stats(
        data, state_places(about), delta_mask(about.delta), per_step=about.per_step_stats
    )


def choose_stats(
    config: TrainConfig, data: Frames, beside: Path | None, notes: list[str]
) -> dict[str, Stats]:
    """Returns the statistics that `data.stats` asks for.

    Args:
        config: The run's settings.
        data: The training data.
        beside: The folder that `save_transform` wrote for the checkpoint, if there is one.
        notes: Gets a sentence about them.

    Raises:
        ValueError: The checkpoint has none, or normalizes in another way. The message lists all
            that differs.
    """
    if config.data.stats == "dataset" or (config.data.stats == "auto" and beside is None):
        notes.append("States and actions are normalized by the statistics of the dataset.")
        return dataset_stats(config, data)
    if beside is None:
        raise ValueError(
            "data.stats is checkpoint, but the weights have no inputs.json beside them. Pass "
            "--data.stats dataset, or a run of examples.pi0.train as --weight_loader.params_path."
        )
    stats = load_stats(beside / "norm_stats.json")
    if problems := _other_normalization(config, stats, load_inputs(beside)):
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ValueError(
            f"the checkpoint normalizes in another way than this run would:{lines}\nPass its "
            "settings, or --data.stats dataset to begin with statistics of the dataset."
        )
    notes.append("States and actions are normalized by the statistics of the checkpoint.")
    return stats


def _other_normalization(config: TrainConfig, stats: dict[str, Stats], inputs: Inputs) -> list[str]:
    about = config.data
    norm = about.norm
    if norm == "auto":
        norm = "quantile" if config.model.pi05 else "zscore"
    pairs = {
        "data.norm": (inputs.norm, norm),
        "data.min_range": (inputs.min_range, about.min_range),
        "data.delta": (inputs.delta, delta_mask(about.delta)),
        "places of the state": (inputs.places, state_places(about)),
    }
    problems = [
        f"{name} is {old} in the checkpoint, and {new} here"
        for name, (old, new) in pairs.items()
        if old != new
    ]
    mean = stats["actions"].mean
    if mean.ndim > 1 and len(mean) != config.model.action_horizon:
        problems.append(
            f"its statistics are of {len(mean)} steps of a chunk, but model.action_horizon is "
            f"{config.model.action_horizon}"
        )
    return problems


def state_places(config: DataConfig) -> tuple[Place, ...]:
    """Returns the parts of the dataset's state that the model sees; empty for all."""
    return tuple(b1k.STATE_PLACES) if config.layout == "b1k" else ()


def find_tokenizer(config: TrainConfig, names: Sequence[str], beside: Path | None) -> str:
    """Returns the path of the SentencePiece model.

    It is the one that is named, that of the checkpoint, the released one for a model of its size,
    or a small one that is trained on the prompts.

    Args:
        config: The run's settings.
        names: The names of the tasks.
        beside: The file that belongs to the checkpoint, if there is one.
    """
    if config.data.tokenizer is not None:
        return str(fetch(config.data.tokenizer))
    if beside is not None:
        return str(_keep(config, beside))
    if config.model.vocab_size == _RELEASED_VOCABULARY:
        return str(fetch(_RELEASED_TOKENIZER))
    prompts = [*names, *([config.data.prompt] if config.data.prompt else [])]
    number = zlib.crc32("\n".join(prompts).encode())
    path = Path(config.runs_dir) / "tokenizers" / f"{number:08x}.model"
    return str(path if path.exists() else train_tokenizer(path, prompts))


def _keep(config: TrainConfig, file: Path) -> Path:
    """Copies the tokenizer of a checkpoint, which may be deleted while the run goes on."""
    content = file.read_bytes()
    path = Path(config.runs_dir) / "tokenizers" / f"{zlib.crc32(content):08x}.model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
