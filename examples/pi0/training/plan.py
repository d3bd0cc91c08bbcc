"""What a run is going to do: everything is resolved and checked before the first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Group
from rich.table import Table
from rich.text import Text

from examples.lerobot import Frames
from examples.pi0.beside import find_beside, load_config
from examples.pi0.training import b1k
from examples.pi0.training.blueprint import Blueprint
from examples.pi0.training.checkpoints import open_last
from examples.pi0.training.configs import TrainConfig
from examples.pi0.training.data import (
    RunData,
    choose_stats,
    find_tokenizer,
    generate,
    open_datasets,
    prepare,
)
from examples.pi0.training.devices import make_mesh, state_shardings
from examples.pi0.training.download import cached, fetch
from examples.pi0.training.fingerprint import check_same_frames
from examples.pi0.training.folder import check_folder
from examples.pi0.training.groups import count_parts, frozen_paths, part_of
from examples.pi0.training.statistics import narrow_dimensions
from examples.pi0.training.step import Trainer
from examples.pi0.training.task_stages import choose_stages
from examples.pi0.training.weights import (
    fresh_paths,
    may_be_fresh,
    model_vocabulary,
)
from taskcond import TaskVocabulary
from taskcond.checkpoint import Checkpoint, open_checkpoint


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that is ready to begin.

    Attributes:
        config: The settings, with all that was resolved.
        mesh: The devices.
        blueprint: The model.
        vocabulary: The names of the table's rows.
        checkpoint: Where the weights come from; `None` if they are drawn, or are not there.
        data: The data; `None` in a dry run if it is not there.
        notes: Sentences about what is not there, and what is odd.
    """

    config: TrainConfig
    mesh: Mesh
    blueprint: Blueprint
    vocabulary: TaskVocabulary
    checkpoint: Checkpoint | None
    data: RunData | None
    notes: tuple[str, ...]


def make_plan(config: TrainConfig) -> Plan:
    """Resolves a run. Writes nothing into its folder.

    Raises:
        ValueError: The settings, the data and the weights do not fit together.
        FileNotFoundError: Data or weights are not there, and this is no dry run.
    """
    check_folder(config, is_resolved=False)
    mesh = make_mesh(config.batch_size, config.fsdp_devices, config.devices, config.grad_accum)
    notes: list[str] = []
    config = _with_generated(config)
    data = _find_data(config, None, notes)
    checkpoint = _find_weights(config, notes)
    old = checkpoint.conditioning if checkpoint is not None else None
    vocabulary = model_vocabulary(
        None if data is None else _shown(data),
        None if old is None else old.vocabulary,
        config.data.vocabulary,
        num_tasks=config.model.num_tasks,
        add_tasks=config.data.add_tasks,
        default=b1k.TASKS if config.data.layout == "b1k" else (),
    )
    count = len(vocabulary) if config.condition else 0
    if data is not None:
        data = _find_data(config, vocabulary, notes)
    stages = _choose_stages(config, data, checkpoint) if count else ()
    model = dataclasses.replace(config.model, num_tasks=count, task_stages=stages)
    config = dataclasses.replace(config, model=model)
    check_folder(config)
    blueprint = Blueprint(config.model)
    blueprint = blueprint.freeze(frozen_paths(blueprint.shapes, config.freeze))
    ready = None if data is None else _prepare(config, data, checkpoint, notes)
    return Plan(config, mesh, blueprint, vocabulary, checkpoint, ready, tuple(notes))


def show_plan(plan: Plan) -> Group:
    """Returns the plan for people to read."""
    config = plan.config
    if plan.checkpoint is None and config.weight_loader.params_path is not None:
        fresh = may_be_fresh(plan.blueprint)
    else:
        fresh = fresh_paths(plan.blueprint, plan.checkpoint)
    table = Table(title=f"plan of {config.preset or 'a custom run'}: {config.folder}")
    table.add_column("")
    table.add_column("")
    for name, value in _facts(plan).items():
        table.add_row(name, value)
    parts = Table(title="parameters")
    for name in ("part", "trained", "frozen", "new"):
        parts.add_column(name, justify="left" if name == "part" else "right")
    groups = {
        "trained": [path for path in plan.blueprint.shapes if path not in plan.blueprint.frozen],
        "frozen": list(plan.blueprint.frozen),
        "new": fresh,
    }
    counts = {
        name: count_parts({path: plan.blueprint.shapes[path] for path in paths})
        for name, paths in groups.items()
    }
    for part in dict.fromkeys(map(part_of, plan.blueprint.shapes)):
        parts.add_row(part, *(f"{counts[name].get(part, 0):,}" for name in groups))
    parts.add_row("all", *(f"{sum(counts[name].values()):,}" for name in groups))
    return Group(table, parts, *(Text(f"- {note}") for note in plan.notes))


def memory_per_device(plan: Plan) -> dict[str, int]:
    """Returns the bytes that each device holds, by kind, without activations; makes nothing."""
    shapes = Trainer(plan.config, plan.blueprint, None).shapes
    places = state_shardings(plan.mesh, shapes)
    result = {}
    for name in ("params", "frozen", "opt_state", "average"):
        sizes = jax.tree.map(
            lambda leaf, place: int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize,
            getattr(shapes, name),
            getattr(places, name),
        )
        result[name] = sum(jax.tree.leaves(sizes))
    result["gradients"] = result["params"]
    return result


def _facts(plan: Plan) -> dict[str, str]:
    config, data = plan.config, plan.data
    names = [name for name in plan.vocabulary if not name.startswith("unused task ")]
    source = config.weight_loader.params_path
    if source is None or (config.resume and plan.checkpoint is not None):
        weights = "random weights" if plan.checkpoint is None else plan.checkpoint.path
    else:
        weights = source if plan.checkpoint is not None else f"{source} (not read)"
    facts = {
        "weights": weights,
        "model": f"{'π0.5' if config.model.pi05 else 'π0'}, {config.model.action_horizon} actions "
        f"of {config.model.action_dim} numbers",
        "tasks": f"{config.model.num_tasks} rows, {len(names)} with names"
        if config.condition
        else "without ids",
        "stages": f"{config.model.stages.num_rows} of all tasks, at most "
        f"{config.model.stages.longest} of one"
        if config.model.task_stages
        else "none",
        "scale": f"{config.model.task_embedding_scale:g}",
        "steps": f"{config.num_train_steps:,} of {config.batch_size} frames"
        + (f" in {config.grad_accum} parts" if config.grad_accum > 1 else ""),
        "learning rate": f"{config.optimizer.learning_rate:g}, {config.optimizer.schedule}; "
        f"the table's times {config.optimizer.table_multiplier:g}",
        "devices": f"{plan.mesh.size} ({plan.mesh.shape['data']} data x "
        f"{plan.mesh.shape['fsdp']} fsdp)",
        "memory per device": ", ".join(
            f"{name} {size / 2**30:.2f} GiB" for name, size in memory_per_device(plan).items()
        ),
    }
    sizes = memory_per_device(dataclasses.replace(plan, mesh=make_mesh(1, 1, 1)))
    weights_size, whole = sizes["params"] + sizes["frozen"], sum(sizes.values())
    whole -= sizes["gradients"]
    facts["a checkpoint"] = (
        f"about {whole / 2**30:.2f} GiB, of which {weights_size / 2**30:.2f} are parameters; "
        f"{config.max_to_keep} kept at a time"
    )
    if data is not None:
        frames = data.train.task_frames
        shown = ", ".join(f"{name} {count:,}" for name, count in list(frames.items())[:8])
        more = f" and {len(frames) - 8} more" if len(frames) > 8 else ""
        facts["frames"] = f"{len(data.train):,} to train on: {shown}{more}"
        kind = "of held-out episodes" if data.is_held_out else "of the same episodes"
        facts["validation"] = f"{len(data.val):,} frames {kind}"
        facts["cameras"] = ", ".join(
            f"{name}: {camera or 'none'}" for name, camera in data.transform.cameras.items()
        )
    return facts


def _with_generated(config: TrainConfig) -> TrainConfig:
    if config.data.root != ("generated",):
        return config
    root = str(generate(Path(config.runs_dir) / "generated"))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=(root,)))


def _find_weights(config: TrainConfig, notes: list[str]) -> Checkpoint | None:
    if config.resume:
        own = open_last(config.folder)
        if own is not None:
            return own
        notes.append("The run has no complete checkpoint, so that it begins anew.")
    path = config.weight_loader.params_path
    if path is None:
        return None
    if config.dry_run and not cached(path).exists():
        notes.append(f"The weights at {path} were not read: this is a dry run without them.")
        return None
    return open_checkpoint(fetch(path))


def _find_data(
    config: TrainConfig, vocabulary: TaskVocabulary | None, notes: list[str]
) -> Frames | None:
    missing = [root for root in config.data.root if not Path(root).exists()]
    if config.dry_run and (missing or not config.data.root):
        what = f"The dataset {', '.join(missing)}" if missing else "A dataset (--data.root)"
        notes.append(f"{what} is not there: this is a dry run without it.")
        return None
    return open_datasets(config.data, config.model.action_horizon, vocabulary)


def _choose_stages(
    config: TrainConfig, data: Frames | None, checkpoint: Checkpoint | None
) -> tuple[int, ...]:
    about = config.data
    if config.model.task_stages or not about.frames_per_stage or data is None:
        return config.model.task_stages
    old: dict[str, int] = {}
    folder = None if checkpoint is None else find_beside(Path(checkpoint.root), "config.json")
    known = checkpoint.conditioning if checkpoint is not None else None
    if folder is not None and known is not None and known.vocabulary is not None:
        counts = load_config(folder / "config.json").task_stages
        old = dict(zip(known.vocabulary, counts, strict=False))
    return choose_stages(data, about.frames_per_stage, about.stage_limits, old)


def _shown(data: Frames) -> TaskVocabulary:
    """Returns the tasks that have frames, in the order of the dataset."""
    frames = data.task_frames
    return TaskVocabulary([name for name in data.vocabulary if name in frames])


def _prepare(
    config: TrainConfig, data: Frames, checkpoint: Checkpoint | None, notes: list[str]
) -> RunData:
    root = None if checkpoint is None else Path(checkpoint.root)
    folder = None if root is None else find_beside(root, "tokenizer.model")
    beside = None if folder is None else folder / "tokenizer.model"
    tokenizer = find_tokenizer(config, list(data.vocabulary), beside)
    folder = None if root is None else find_beside(root, "inputs.json")
    stats = choose_stats(config, data, folder, notes)
    notes += narrow_dimensions(stats, config.data.min_range)
    ready = prepare(config, data, config.model, stats, tokenizer)
    if config.resume and folder is not None:
        check_same_frames(ready.train, folder)
    notes += [line for line in ready.val.report.warnings if line not in data.report.warnings]
    if not ready.is_held_out:
        notes.append("No task has two episodes: validation uses the frames of training.")
    return ready
