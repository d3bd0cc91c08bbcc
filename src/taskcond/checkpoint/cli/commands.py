"""The commands: one dataclass each, whose fields are the arguments."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import tyro
from tyro.conf import Positional, UseAppendAction, arg

from taskcond.checkpoint.cli.arguments import (
    Target,
    names_in,
    parse_addition,
    parse_rename,
    parse_rows,
    read_shapes,
    read_vocabulary,
    shapes_of,
)
from taskcond.checkpoint.cli.progress import ByteProgress
from taskcond.checkpoint.combining.combine import CombineReport, combine_checkpoints
from taskcond.checkpoint.diff import Difference, diff_checkpoints
from taskcond.checkpoint.inspect import Inspection, inspect_checkpoint
from taskcond.checkpoint.merge_files import merge_checkpoint
from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.tasks import change_tasks
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import check_integer
from taskcond.merging.patterns import PathFilter, Renaming
from taskcond.merging.report import MergeReport
from taskcond.merging.tables import Start, is_table
from taskcond.nn.fusion import get_fusion

TABLE = "task_embeddings/embedding"
"""The path of the task table that `merge` adds."""

Source = Annotated[str, Positional, arg(metavar="SOURCE")]
Out = Annotated[str, Positional, arg(metavar="OUT")]


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what is in a checkpoint.

    Example: python -m taskcond inspect runs/pi05/1000

    Attributes:
        path: The checkpoint.
        table: The path of the task table, if its name does not tell.
        quick: Do not read the arrays to look for NaN and Inf.
        json: Print the report as JSON.
    """

    path: Source
    table: str | None = None
    quick: bool = False
    json: bool = False

    def run(self) -> Inspection:
        """Runs the command."""
        with ByteProgress("reading") as progress:
            return inspect_checkpoint(
                self.path, table=self.table, values=not self.quick, progress=progress
            )


@dataclasses.dataclass(frozen=True)
class Diff:
    """Show what differs between two checkpoints.

    Example: python -m taskcond diff base/params tuned/params

    Attributes:
        first: A checkpoint.
        second: Another checkpoint.
        json: Print the report as JSON.
    """

    first: Source
    second: Source
    json: bool = False

    def run(self) -> Difference:
        """Runs the command."""
        with ByteProgress("comparing") as progress:
            return diff_checkpoints(self.first, self.second, progress=progress)


@dataclasses.dataclass(frozen=True)
class Merge:
    """Write a checkpoint for a model with tasks from the weights of another model.

    Example: python -m taskcond merge pi05_base/params pi05_50/params --num-tasks 50 --features 1024

    Attributes:
        source: The checkpoint that has the weights.
        out: A new directory, for openpi one that ends in params; or a new file that ends in
            .safetensors, with that format.
        target: The new model: a checkpoint, or JSON of shapes and dtypes. By default it is the
            source's model.
        num_tasks: Add a task table of this height.
        features: The width of the timestep embedding, for a new table.
        table: The path of the model's task table, if it is not task_embeddings/embedding.
        vocabulary: The model's tasks: a JSON file, or a LeRobot dataset.
        rows: The old row of each new one, or -1 for a new one: --rows=0,2,-1
        new_rows: What new rows start from: zeros, mean, the number of an old row, or initial. The
            last is how the fusion starts a fresh table, which for add is as nnx.Embed does.
        seed: The seed of initial rows.
        scale: The model's factor on task rows.
        fusion: The model's fusion.
        keep: A pattern of the model's leaves that the source may lack. May be repeated.
        drop: A pattern of the source's leaves to leave out. May be repeated.
        rename: PATTERN=PATH gives leaves of the source new paths. May be repeated.
        dry_run: Check everything, print the report, and write nothing.
        overwrite: Replace the checkpoint at OUT.
        format: The format to write.
        json: Print the report as JSON.
    """

    source: Source
    out: Out
    target: str | None = None
    num_tasks: int | None = None
    features: int | None = None
    table: str | None = None
    vocabulary: str | None = None
    rows: str | None = None
    new_rows: str = "initial"
    seed: int = 0
    scale: float | None = None
    fusion: str | None = None
    keep: UseAppendAction[tuple[str, ...]] = ()
    drop: UseAppendAction[tuple[str, ...]] = ()
    rename: UseAppendAction[tuple[str, ...]] = ()
    dry_run: bool = False
    overwrite: bool = False
    format: Literal["orbax", "safetensors"] = "orbax"
    json: bool = False

    def run(self) -> MergeReport:
        """Runs the command."""
        source = open_checkpoint(self.source)
        target = self._target(source)
        table = self._table(source, target)
        is_new = table is not None and table not in source.leaves
        start: Start = int(self.new_rows) if self.new_rows.isdecimal() else self.new_rows
        if table is not None and start == "initial":
            init = get_fusion(self.fusion or "add").embedding_init
            key = jax.random.key(self.seed)
            target[table] = init(key, target[table].shape, target[table].dtype)
            start = "target"
        with ByteProgress("writing") as progress:
            return merge_checkpoint(
                self.source,
                target,
                self.out,
                keep=(*self.keep, re.escape(table)) if is_new and table else self.keep,
                drop=self.drop,
                rename=dict(parse_rename(text) for text in self.rename),
                task_rows=parse_rows(self.rows),
                new_rows="target" if start == "initial" else start,
                vocabulary=read_vocabulary(self.vocabulary),
                scale=self.scale,
                fusion=self.fusion,
                table=table,
                format=self.format,
                overwrite=self.overwrite,
                dry_run=self.dry_run,
                progress=progress,
            )

    def _table(self, source: Checkpoint, target: Target) -> str | None:
        """Returns the path of the model's task table, if somebody says it or it is the only one."""
        if self.num_tasks is not None:
            return self._new_table(source)
        recorded = None if source.conditioning is None else source.conditioning.table
        tables = [path for path in target if is_table(path)]
        known = recorded if recorded in target else None
        return self.table or known or (tables[0] if len(tables) == 1 else None)

    def _new_table(self, source: Checkpoint) -> str:
        """Returns where the model looks for a table of `--num-tasks` rows."""
        if self.table is not None:
            return self.table
        recorded = None if source.conditioning is None else source.conditioning.table
        if recorded is not None:
            return recorded
        # Beside other collections of Flax, such as batch_stats, parameters lie below `params`.
        below = any(path.startswith("params/") for path in source.leaves)
        return f"params/{TABLE}" if below else TABLE

    def _own_shapes(self, source: Checkpoint) -> Target:
        """Returns the source's model, without what is dropped, and under the new paths."""
        drop, shapes = PathFilter(self.drop), shapes_of(source)
        old_path = Renaming(dict(map(parse_rename, self.rename))).apply(shapes)
        return {new: shapes[old] for new, old in old_path.items() if old not in drop}

    def _target(self, source: Checkpoint) -> Target:
        """Returns the parameters of the new model."""
        target = self._own_shapes(source) if self.target is None else read_shapes(self.target)
        if self.num_tasks is None:
            return target
        height = check_integer("--num-tasks", self.num_tasks, 1)
        if self.features is not None:
            features = check_integer("--features", self.features, 1)
            width = get_fusion(self.fusion or "add").row_width(features)
        elif (table := self._new_table(source)) in target:
            width = target[table].shape[-1]
        else:
            raise CheckpointError(
                "--num-tasks needs --features: the width of the timestep embedding (for π0 and "
                "π0.5 that of the action expert, 1024)"
            )
        return {
            **target,
            self._new_table(source): jax.ShapeDtypeStruct((height, width), jnp.float32),
        }


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Write a checkpoint with more, fewer or reordered tasks.

    Example: python -m taskcond tasks pi05_22/params pi05_23/params --add "turn on the radio=mean"

    Attributes:
        source: The checkpoint that has the weights.
        out: A new directory, for openpi one that ends in params; or a new file that ends in
            .safetensors, with that format.
        table: The path of the task table, if its name does not tell.
        vocabulary: The new tasks: a JSON file, or a LeRobot dataset.
        source_vocabulary: The old tasks, if the checkpoint does not say.
        rows: The old row of each new one, or -1 for a new one: --rows=0,2,-1
        add: NAME or NAME=START adds a task; START is what its row starts from. May be repeated.
        remove: The name of a task to remove. May be repeated.
        new_rows: What new rows start from: the name of a task, zeros, mean, or the number of a row.
        dry_run: Check everything, print the report, and write nothing.
        overwrite: Replace the checkpoint at OUT.
        format: The format to write.
        json: Print the report as JSON.
    """

    source: Source
    out: Out
    table: str | None = None
    vocabulary: str | None = None
    source_vocabulary: str | None = None
    rows: str | None = None
    add: UseAppendAction[tuple[str, ...]] = ()
    remove: UseAppendAction[tuple[str, ...]] = ()
    new_rows: str = "zeros"
    dry_run: bool = False
    overwrite: bool = False
    format: Literal["orbax", "safetensors"] = "orbax"
    json: bool = False

    def run(self) -> MergeReport:
        """Runs the command."""
        known = read_vocabulary(self.source_vocabulary)
        vocabulary = read_vocabulary(self.vocabulary)
        added = dict(parse_addition(text) for text in self.add)
        if self.add or self.remove:
            vocabulary = self._edit(
                vocabulary or known or names_in(self.source, self.table), list(added)
            )
        with ByteProgress("writing") as progress:
            return change_tasks(
                self.source,
                self.out,
                vocabulary,
                rows=parse_rows(self.rows),
                new_rows=self.new_rows,
                starts={name: start for name, start in added.items() if start is not None},
                source_vocabulary=known,
                table=self.table,
                format=self.format,
                overwrite=self.overwrite,
                dry_run=self.dry_run,
                progress=progress,
            )

    def _edit(self, vocabulary: TaskVocabulary, added: list[str]) -> TaskVocabulary:
        if unknown := [name for name in self.remove if name not in vocabulary]:
            raise CheckpointError(
                f"there are no tasks {unknown} to remove; there are {[*vocabulary]}"
            )
        if twice := [name for name in added if name in vocabulary]:
            raise CheckpointError(f"the tasks {twice} are there already; leave them out of --add")
        kept = [name for name in vocabulary if name not in self.remove]
        return TaskVocabulary([*kept, *added])


@dataclasses.dataclass(frozen=True)
class Combine:
    """Combine several fine-tuned checkpoints into one.

    Example: python -m taskcond combine recipe.toml combined/params

    Attributes:
        recipe: A recipe in TOML, or the recipe.json of an earlier result.
        out: A new directory, for openpi one that ends in params; or a new file that ends in
            .safetensors, with that format.
        dry_run: Check everything except the values, print the report, and write nothing.
        overwrite: Replace the checkpoint at OUT.
        format: The format to write.
        json: Print the report as JSON.
    """

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    out: Out
    dry_run: bool = False
    overwrite: bool = False
    format: Literal["orbax", "safetensors"] = "orbax"
    json: bool = False

    def run(self) -> CombineReport:
        """Runs the command."""
        with ByteProgress("writing") as progress:
            return combine_checkpoints(
                self.recipe,
                self.out,
                format=self.format,
                overwrite=self.overwrite,
                dry_run=self.dry_run,
                progress=progress,
            )


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write the parameters of a checkpoint in another format; other state is left out.

    Example: python -m taskcond convert pi05/params pi05_safetensors --format safetensors

    Attributes:
        source: The checkpoint.
        out: A new directory, for openpi one that ends in params; or a new file that ends in
            .safetensors, with that format.
        format: The format to write.
        dry_run: Check everything, print the report, and write nothing.
        overwrite: Replace the checkpoint at OUT.
        json: Print the report as JSON.
    """

    source: Source
    out: Out
    format: Literal["orbax", "safetensors"]
    dry_run: bool = False
    overwrite: bool = False
    json: bool = False

    def run(self) -> MergeReport:
        """Runs the command."""
        return Merge(**dataclasses.asdict(self), new_rows="zeros").run()  # there are none


Command = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Tasks, tyro.conf.subcommand("tasks")]
    | Annotated[Combine, tyro.conf.subcommand("combine")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)
