"""The settings of a training run. Each field is a flag of `python -m examples.pi0.train`."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, Literal

import pydantic

from examples.pi0.config import Pi0Config

CONFIG_FILE = "train_config.json"
Schedule = Literal["cosine", "constant", "rsqrt"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Names what is trained on, and how it is read.

    Attributes:
        root: The folders of LeRobot datasets of one robot; several are mixed. `generated` makes a
            small dataset of tasks that look alike.
        weights: A factor for each dataset.
        cameras: Pairs of the model's camera and the dataset's. Without any, the cameras must have
            the model's names, or there must be one alone.
        state: The columns of the state.
        action: The columns of the actions.
        layout: `b1k` picks the numbers of the state that the BEHAVIOR-1K recipe uses.
        tasks: The names of the tasks to train on; by default all.
        vocabulary: A file of task names in the order of the rows; by default those of the
            checkpoint, or of the dataset.
        add_tasks: Whether tasks that the checkpoint does not know get new rows.
        task_weights: A factor for the frames of a task.
        temperature: 1 draws tasks by their frames, 0 draws all tasks equally often; between them,
            by their frames to this power.
        boundary_factor: A factor for frames near the end of an annotated skill.
        boundary_window: How many frames are near, before and after.
        skill_prompt_rate: How often the prompt is the annotated skill instead of the task.
        prompt: A prompt in place of all tasks' names.
        task_prefix: Whether the prompt begins with the task's number, as in `[01] pick up`.
        state_dropout: How often the state is hidden.
        delta: The numbers of action dimensions that are relative to the state, then absolute, and
            so on: `6 -1` means six relative ones and one absolute one.
        norm: How states and actions are normalized; `auto` takes quantiles for π0.5 and mean and
            standard deviation for π0.
        stats: Whose statistics normalize: the dataset's, or those that lie beside the checkpoint;
            `auto` takes the checkpoint's if it is of a run, because its weights know no other.
        per_step_stats: Whether each step of a chunk has its own statistics of actions.
        min_range: The smallest range of a dimension that is stretched to [-1, 1].
        augmentation: The recipe that changes images in training.
        val_fraction: The share of each task's episodes that is held out.
        num_workers: The number of processes that read; 0 reads in threads.
        frames_per_stage: How many frames of an episode are one stage of its task, which the model
            is told and learns to predict; 0 for no stages. The mean length of a task's episodes
            counts. A checkpoint's tasks keep their numbers of stages.
        stage_limits: The least and the largest number of stages of a task.
        tokenizer: The SentencePiece model; by default a small one is trained on the prompts, which
            is for models that start from nothing.
    """

    root: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    cameras: dict[str, str] = dataclasses.field(default_factory=dict)
    state: tuple[str, ...] = ("observation.state",)
    action: tuple[str, ...] = ("action",)
    layout: Literal["lerobot", "b1k"] = "lerobot"
    tasks: tuple[str, ...] = ()
    vocabulary: str | None = None
    add_tasks: bool = False
    task_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    temperature: float = 1.0
    boundary_factor: float = 1.0
    boundary_window: int = 30
    skill_prompt_rate: float = 0.0
    prompt: str | None = None
    task_prefix: bool = False
    state_dropout: float = 0.0
    delta: tuple[int, ...] = ()
    norm: Literal["auto", "quantile", "zscore"] = "auto"
    stats: Literal["auto", "dataset", "checkpoint"] = "auto"
    per_step_stats: bool = False
    min_range: float = 1e-2
    augmentation: Literal["openpi", "b1k", "none"] = "openpi"
    val_fraction: float = 0.1
    num_workers: int = 2
    frames_per_stage: int = 0
    stage_limits: tuple[int, int] = (5, 15)
    tokenizer: str | None = None


@dataclasses.dataclass(frozen=True)
class WeightLoaderConfig:
    """Names where the weights come from.

    Attributes:
        params_path: A released checkpoint, or an earlier run: its folder, a step, or `params`. It
            may be `gs://` or `s3://`. `None` starts from random weights.
    """

    params_path: str | None = None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a clipped gradient.

    Attributes:
        learning_rate: The peak of the learning rate.
        schedule: How the rate goes on after the warm-up.
        warmup_steps: The number of steps in which the rate rises; by default a twentieth of the
            steps, and at most 1000.
        decay_steps: The step at which a cosine reaches its end; by default the last.
        final_learning_rate: The end of a cosine; by default a tenth of the peak.
        timescale: The number of steps after which `rsqrt` begins to fall.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Is added to the root of the second moment.
        weight_decay: The decay of the weights. The task table has none.
        clip: The largest norm of a gradient.
        table_multiplier: A factor on the learning rate of the task table.
    """

    learning_rate: float = 2.5e-5
    schedule: Schedule = "cosine"
    warmup_steps: int | None = None
    decay_steps: int | None = None
    final_learning_rate: float | None = None
    timescale: int = 10_000
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-10
    clip: float = 1.0
    table_multiplier: float = 1.0


@dataclasses.dataclass(frozen=True)
class ActionGroup:
    """Action dimensions that have one weight in the loss.

    Attributes:
        name: The name of the group.
        first: The first dimension.
        stop: The dimension after the last.
        weight: The weight.
    """

    name: str
    first: int
    stop: int
    weight: float


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the errors of a chunk become the loss.

    Attributes:
        mask_padding: Whether steps past the end of an episode and padded dimensions count for
            nothing, so that the loss is divided by what is left.
        groups: The weights of action dimensions; none weighs all alike.
        by_motion: Whether the weight of a step grows with the motion of its group.
        stage_weight: The weight of the prediction of the stage, in a model with stages.
    """

    mask_padding: bool = True
    groups: tuple[ActionGroup, ...] = ()
    by_motion: bool = False
    stage_weight: float = 0.1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        preset: The preset that the settings began with.
        exp_name: The name of the run.
        model: The sizes of the model. With `model.num_tasks=0` the table gets a row for each task.
        condition: Whether the model is told its task by an id.
        data: What is trained on.
        weight_loader: Where the weights come from.
        optimizer: The optimizer.
        loss: The loss.
        freeze: What is not trained: `vlm`, `vision`, `language`, `all_but_table` (all but what
            tasks have of their own), `lora` (all of the language model but its low-rank updates),
            or a regular expression of paths.
        ema_decay: The decay of the average of the weights, which is then what is saved.
        batch_size: The number of frames in a step, over all devices.
        grad_accum: The number of parts in which a batch is computed, one after the other.
        num_train_steps: The number of steps.
        seed: The seed of everything that is drawn.
        fsdp_devices: Over how many devices each large array is split.
        devices: How many devices are used; by default all.
        log_interval: The number of steps between two lines of the log.
        val_log_interval: The number of steps between two validations.
        val_num_batches: The number of batches of a validation.
        diagnose_share: The largest share of the time for finding out whether ids are used.
        save_interval: The number of steps between two checkpoints.
        keep_period: Checkpoints of multiples of this are kept for good.
        max_to_keep: How many of the other checkpoints are kept.
        runs_dir: The folder of all runs.
        overwrite: Whether an existing run of this name is deleted.
        resume: Whether an existing run of this name goes on.
        dry_run: Whether to print the plan and end.
        bench_loader: How many batches to read and time, in place of training; 0 trains.
        wandb: Whether to log to Weights & Biases, too.
        stall_seconds: After so many seconds without a step, the log shows where the program is.
    """

    preset: str = ""
    exp_name: str = "default"
    model: Pi0Config = dataclasses.field(default_factory=Pi0Config)
    condition: bool = True
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    weight_loader: WeightLoaderConfig = dataclasses.field(default_factory=WeightLoaderConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    freeze: tuple[str, ...] = ()
    ema_decay: float | None = None
    batch_size: int = 32
    grad_accum: int = 1
    num_train_steps: int = 30_000
    seed: int = 42
    fsdp_devices: int = 1
    devices: int | None = None
    log_interval: int = 100
    val_log_interval: int = 1000
    val_num_batches: int = 10
    diagnose_share: float = 0.05
    save_interval: int = 1000
    keep_period: int | None = 5000
    max_to_keep: int = 1
    runs_dir: str = "runs/pi0"
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    bench_loader: int = 0
    wandb: bool = False
    stall_seconds: float = 600.0

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            lines = "".join(f"\n  - {problem}" for problem in problems)
            raise ValueError(f"the settings of the run are wrong; correct each of these:{lines}")

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.runs_dir) / (self.preset or "custom") / self.exp_name


def _problems(config: TrainConfig) -> list[str]:
    optimizer, problems = config.optimizer, []
    counts = ("batch_size", "grad_accum", "num_train_steps", "fsdp_devices", "log_interval")
    counts += ("val_log_interval", "val_num_batches", "save_interval", "max_to_keep")
    problems += [
        f"{name} is {getattr(config, name)}, but must be at least 1"
        for name in counts
        if getattr(config, name) < 1
    ]
    if config.bench_loader < 0:
        problems.append(f"bench_loader is {config.bench_loader}, but must be 0 or more")
    if config.bench_loader and config.dry_run:
        problems.append("bench_loader and dry_run are both set; pass one of them")
    if config.grad_accum > 0 and config.batch_size % config.grad_accum:
        problems.append(
            f"batch_size={config.batch_size} does not divide into grad_accum={config.grad_accum} "
            "equal parts"
        )
    if not config.condition and config.model.num_tasks:
        problems.append(
            f"condition is off, but model.num_tasks={config.model.num_tasks}; pass one of them"
        )
    low, high = config.data.stage_limits
    if config.data.frames_per_stage < 0 or not 1 <= low <= high:
        problems.append(
            f"data.frames_per_stage={config.data.frames_per_stage} must be 0 or more, and "
            f"data.stage_limits={low} {high} two numbers from 1 on, the smaller one first"
        )
    if config.data.frames_per_stage and not config.condition:
        problems.append("data.frames_per_stage is set, but condition is off; pass one of them")
    if not config.loss.stage_weight >= 0:
        problems.append(f"loss.stage_weight is {config.loss.stage_weight}, but must be 0 or more")
    warmup = optimizer.warmup_steps
    if warmup is not None and not 0 <= warmup < config.num_train_steps:
        problems.append(
            f"optimizer.warmup_steps={warmup} must be below num_train_steps="
            f"{config.num_train_steps}, or the run ends before the peak of the learning rate"
        )
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        problems.append(f"ema_decay is {config.ema_decay}, but must be between 0 and 1")
    experts = {"paligemma": config.model.paligemma, "action_expert": config.model.action_expert}
    updated = [f"model.{name}" for name, expert in experts.items() if expert.lora is not None]
    if updated and not config.freeze:
        problems.append(
            f"{' and '.join(updated)} has low-rank updates (lora), but freeze is empty: "
            "all weights are trained. Pass --freeze lora, or leave out the updates"
        )
    if config.overwrite and config.resume:
        problems.append("overwrite and resume are both set; an existing run is deleted or goes on")
    for group in config.loss.groups:
        if not 0 <= group.first < group.stop <= config.model.action_dim:
            problems.append(
                f"loss.groups: {group.name} has the dimensions {group.first} to {group.stop}, but "
                f"the model has action_dim={config.model.action_dim}"
            )
    if not config.exp_name or "/" in config.exp_name or config.exp_name.startswith("."):
        problems.append(f"exp_name is {config.exp_name!r}, but must be the name of a folder")
    return problems


_ADAPTER = pydantic.TypeAdapter(TrainConfig)


def to_json(config: TrainConfig) -> str:
    """Returns all settings as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, where: str = CONFIG_FILE) -> TrainConfig:
    """Reads settings that `to_json` wrote.

    Raises:
        ValueError: It is not JSON, or a setting is unknown or wrong. The message lists all.

    >>> config = TrainConfig(batch_size=8)
    >>> from_json(to_json(config)) == config
    True
    """
    try:
        content = json.loads(text)
        unknown = _unknown(content, TrainConfig)
        if unknown:
            raise ValueError(f"there are no settings {unknown}; correct or remove them")
        return _ADAPTER.validate_python(content)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} holds no settings of a run: {error}") from error


def differences(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, `{path: (old, new)}`."""
    a, b = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    return {
        name: (a.get(name), b.get(name)) for name in sorted({*a, *b}) if a.get(name) != b.get(name)
    }


def nearest(name: str, known: list[str]) -> str:
    """Returns the advice that names what is nearest to a wrong name."""
    near = difflib.get_close_matches(name, known, 3, 0.4)
    return f"Did you mean {' or '.join(near)}?" if near else f"There are {known}."


def _unknown(content: Any, kind: type, prefix: str = "") -> list[str]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds {content!r} instead of settings in braces")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    result = [prefix + name for name in content if name not in fields]
    for name, field in fields.items():
        made = field.default_factory
        if isinstance(made, type) and dataclasses.is_dataclass(made) and name in content:
            result += _unknown(content[name], made, f"{prefix}{name}.")
    return result


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
