"""`load_into`: from a checkpoint's files into a model, with the check that both mean the same."""

from __future__ import annotations

from collections.abc import Mapping

import jax
from flax import nnx

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.load import load_params
from taskcond.checkpoint.open import open_checkpoint
from taskcond.checkpoint.storage.leaf import Progress, StrPath
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.merging.merge import merge_into
from taskcond.merging.patterns import Patterns
from taskcond.merging.report import MergeReport
from taskcond.merging.tables import Rows, Start
from taskcond.messages import describe_unknown, warn
from taskcond.nn.conditioner import TaskConditioner


def load_into(
    model: nnx.Module,
    path: StrPath,
    *,
    vocabulary: TaskVocabulary | None = None,
    keep: Patterns = (),
    drop: Patterns = (),
    rename: Mapping[str, str] | None = None,
    task_rows: Rows | None = None,
    new_rows: Start | None = None,
    table: str | None = None,
    sharding: jax.sharding.Sharding | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Loads a checkpoint into a model, in place, after a check that its task table means the same.

    This is `load_params` and `merge_into` in one. Where the checkpoint says with which scale and
    fusion its table was trained, those of the model's `TaskConditioner` must be equal.

    Args:
        model: The model.
        path: See `Checkpoint`.
        vocabulary: The model's tasks. If the checkpoint names its tasks, rows are matched by name,
            so that its table may have other tasks or another order.
        keep: See `merge_params`.
        drop: See `merge_params`.
        rename: See `merge_params`.
        task_rows: See `merge_params`. It takes precedence over `vocabulary`.
        new_rows: See `merge_params`. By default, new rows keep the model's own values, and a
            warning names their tasks.
        table: The path of the task table; see `Checkpoint`.
        sharding: See `load_params`.
        progress: See `load_params`.

    Returns:
        What was loaded, kept, dropped, cast and mapped.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its scale or fusion is not the model's.
        MergeError: The parameters do not fit. The model is unchanged.

    Warns:
        UserWarning: Tasks of the vocabulary are new to the checkpoint, and `new_rows` is not given.

    >>> import tempfile
    >>> from taskcond.checkpoint import save_params
    >>> old = TaskVocabulary(["pour", "wipe"])
    >>> trained = TaskConditioner(2, 4, rngs=nnx.Rngs(0))
    >>> about = TaskConditioning.of(trained, vocabulary=old)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_params(nnx.state(trained), f"{folder}/params", conditioning=about)
    ...     model = TaskConditioner(3, 4, rngs=nnx.Rngs(1))
    ...     vocabulary = TaskVocabulary(["wipe", "pour", "stack"])
    ...     report = load_into(
    ...         model, f"{folder}/params", vocabulary=vocabulary, new_rows="mean"
    ...     )
    >>> bool((model.embedding[0] == trained.embedding[1]).all())
    True
    """
    checkpoint = open_checkpoint(path, table)
    about = checkpoint.conditioning
    if about is not None:
        for conditioner in _conditioners(model, checkpoint.table):
            about.require(scale=conditioner.scale, fusion=conditioner.fusion)
        if task_rows is None:
            task_rows = _rows(about, vocabulary)
            if task_rows is not None and new_rows is None:
                _warn_new(vocabulary, about.vocabulary)
    params = load_params(path, sharding=sharding, table=table, progress=progress)
    return merge_into(
        model,
        params,
        keep=keep,
        drop=drop,
        rename=rename,
        task_rows=task_rows,
        new_rows="target" if new_rows is None else new_rows,
    )


def _conditioners(model: nnx.Module, table: str | None) -> list[TaskConditioner]:
    """Returns the model's conditioner, or of several the one that has its table at this path."""
    found = {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, TaskConditioner)
    }
    owner = None if table is None else found.get(table.rpartition("/")[0])
    return list(found.values()) if owner is None else [owner]


def _rows(about: TaskConditioning, vocabulary: TaskVocabulary | None) -> list[int] | None:
    old = about.vocabulary
    if vocabulary is None or old is None or vocabulary == old:
        return None
    return vocabulary.rows_from(old)


def _warn_new(vocabulary: TaskVocabulary | None, old: TaskVocabulary | None) -> None:
    known = () if old is None else old.names
    if new := [name for name in vocabulary or () if name not in known]:
        warn(
            f"the checkpoint has no rows of {describe_unknown(new, known)}; they keep the model's "
            "own values. Correct the names, or say with new_rows= what new rows start from"
        )
