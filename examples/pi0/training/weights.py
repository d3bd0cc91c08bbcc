"""The weights that a run starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from examples.pi0.training.blueprint import Blueprint, nest
from examples.pi0.training.groups import TASK
from taskcond import TaskVocabulary, merge_params
from taskcond.checkpoint import Checkpoint, load_params
from taskcond.messages import describe_unknown
from taskcond.trees import flatten

_MAY_BE_FRESH = re.compile(rf"{TASK}.*|.*lora_[ab]")
_RESERVED = "unused task "


def model_vocabulary(
    dataset: TaskVocabulary | None,
    checkpoint: TaskVocabulary | None,
    file: str | None,
    *,
    num_tasks: int,
    add_tasks: bool,
    default: tuple[str, ...] = (),
) -> TaskVocabulary:
    """Returns the names of the rows of the model's table.

    They are those of a file, of the checkpoint, of `default` or of the dataset, in this order. Rows
    that no name is left for are called "unused task N".

    Args:
        dataset: The dataset's tasks; `None` if there is no dataset yet.
        checkpoint: The checkpoint's tasks; `None` if it has no names.
        file: A file that `TaskVocabulary.save` wrote.
        num_tasks: The height of the table; 0 for as many as there are names.
        add_tasks: Whether tasks that are unknown get new rows.
        default: The names of a layout.

    Raises:
        ValueError: The dataset has tasks that nobody knows, or there are more than `num_tasks`.
    """
    own = TaskVocabulary(default) if default else None
    stated = TaskVocabulary.load(file) if file is not None else None
    known = stated or checkpoint or own or dataset or TaskVocabulary([])
    unknown = [name for name in dataset or () if name not in known]
    if unknown and not add_tasks:
        raise ValueError(
            f"the model does not know the tasks {describe_unknown(unknown, list(known))}. "
            "Pass --data.add_tasks to give them new rows, or choose others with --data.tasks."
        )
    left = iter(unknown)
    names = [next(left, name) if name.startswith(_RESERVED) else name for name in known]
    names += left
    if num_tasks and len(names) > num_tasks:
        raise ValueError(
            f"there are {len(names)} tasks, but model.num_tasks={num_tasks}. "
            f"Pass --model.num_tasks={len(names)}."
        )
    return TaskVocabulary([*names, *(f"{_RESERVED}{i}" for i in range(len(names), num_tasks))])


def load_weights(
    checkpoint: Checkpoint | None,
    blueprint: Blueprint,
    shardings: Mapping[str, NamedSharding],
    vocabulary: TaskVocabulary,
    key: jax.Array,
) -> dict[str, Any]:
    """Returns the parameters by path, each of them in its shards.

    Only what task conditioning adds and low-rank updates may be fresh. Rows of tasks with names are
    matched by name.

    Args:
        checkpoint: Where the values come from; `None` draws all of them.
        blueprint: The model.
        shardings: The sharding of each parameter.
        vocabulary: The names of the rows of the model's table.
        key: Draws what is fresh.

    Raises:
        MergeError: The checkpoint is of a model of another size. The message lists all leaves.
        CheckpointError: The scale of its task table is another.
    """
    shapes = blueprint.shapes
    if checkpoint is None:
        return _draw(blueprint, shardings, key, frozenset(shapes))
    fresh = frozenset(fresh_paths(blueprint, checkpoint))
    drawn = fresh | blueprint.task_tables  # new rows of a table that grows start from it
    target = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path])
        for path, leaf in shapes.items()
    }
    target.update(_draw(blueprint, shardings, key, frozenset(drawn)))
    mesh = next(iter(shardings.values())).mesh
    like = {
        path: jax.ShapeDtypeStruct(
            leaf.shape,
            shapes[path].dtype if path in shapes else leaf.dtype,
            sharding=shardings[path]
            if path in shapes and shapes[path].shape == leaf.shape
            else NamedSharding(mesh, PartitionSpec()),
        )
        for path, leaf in checkpoint.leaves.items()
    }
    about = checkpoint.conditioning
    if about is not None and blueprint.config.has_table:
        config = blueprint.config
        about.require(scale=config.task_embedding_scale, fusion=config.task_fusion)
    old = None if about is None else about.vocabulary
    known = [path for path in blueprint.task_tables if path in checkpoint.leaves]
    rows = None if old is None or not known else vocabulary.rows_from(old)
    source = load_params(checkpoint.path, nest(like))
    keep = [re.escape(path) for path in fresh]
    merged, _ = merge_params(
        nest(target), source, keep=keep, task_rows=rows, task_tables=[*map(re.escape, known)]
    )
    return flatten(merged)


def fresh_paths(blueprint: Blueprint, checkpoint: Checkpoint | None) -> list[str]:
    """Returns the parameters that are drawn, because the checkpoint may lack them."""
    return sorted(
        path
        for path in blueprint.shapes
        if checkpoint is None or (path not in checkpoint.leaves and _MAY_BE_FRESH.fullmatch(path))
    )


def may_be_fresh(blueprint: Blueprint) -> list[str]:
    """Returns the parameters that a checkpoint may lack."""
    return [path for path in blueprint.shapes if _MAY_BE_FRESH.fullmatch(path)]


def _draw(
    blueprint: Blueprint,
    shardings: Mapping[str, NamedSharding],
    key: jax.Array,
    paths: frozenset[str],
) -> dict[str, Any]:
    if not paths:
        return {}
    places = {path: shardings[path] for path in sorted(paths)}
    make = jax.jit(lambda key: blueprint.initialize(key, paths), out_shardings=places)
    return make(key)
