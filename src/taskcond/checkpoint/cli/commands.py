"""`python -m taskcond`: every checkpoint operation from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskcond.checkpoint.combining.combine import combine_checkpoints
from taskcond.checkpoint.inspect import diff_checkpoints, inspect_checkpoint
from taskcond.checkpoint.merge_files import change_tasks, merge_checkpoint
from taskcond.checkpoint.open import Checkpoint, is_table, open_checkpoint
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.merging.merge import MergeError

TABLE = "task_embeddings/embedding"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 1 where it was refused. Wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a task's name may have letters it cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        report = options.run(options)
        print(json.dumps(_plain(report), indent=2) if options.json else report, flush=True)
    except BrokenPipeError:  # whoever read it has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        _refuse(options, "interrupted; nothing was written")
        return 130
    except Exception as error:
        return _refuse(options, _reason(error))
    return 0


def _reason(error: Exception) -> str:
    if isinstance(error, MergeError):
        # What the library says in Python, in flags.
        lines = [line for line in str(error).splitlines() if not line.startswith("to ")]
        flags = [f"--keep '{re.escape(path)}'" for path in (*error.missing, *error.mismatched)]
        flags += [f"--drop '{re.escape(path)}'" for path in (*error.unexpected, *error.mismatched)]
        if flags:
            lines.append(f"to accept this: {' '.join(flags)}")
        if any(map(is_table, error.mismatched)):
            lines.append("to remap task rows: --vocabulary, or --rows=0,2,-1 (-1 for a new task)")
        return "\n".join(lines)
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    expected = isinstance(error, (ValueError, TypeError, OSError, ImportError))
    return str(error) if expected else f"{type(error).__name__}: {error}"


def _refuse(options: argparse.Namespace, reason: str) -> int:
    if options.json:
        print(json.dumps({"error": reason}))
    print(f"taskcond: {reason}", file=sys.stderr)
    return 1


def _inspect(options: argparse.Namespace) -> Any:
    with _Progress("reading") as progress:
        return inspect_checkpoint(options.path, values=not options.quick, progress=progress)


def _diff(options: argparse.Namespace) -> Any:
    with _Progress("comparing") as progress:
        return diff_checkpoints(options.first, options.second, progress=progress)


def _merge(options: argparse.Namespace) -> Any:
    source = open_checkpoint(options.source)
    target = _target(options, source)
    with _Progress("writing") as progress:
        return merge_checkpoint(
            options.source,
            target,
            options.out,
            keep=options.keep,
            drop=options.drop,
            rename=dict(options.rename),
            task_rows=options.rows,
            new_rows=options.new_rows,
            vocabulary=_vocabulary(options.vocabulary),
            scale=options.scale,
            fusion=options.fusion,
            progress=progress,
            **_output(options),
        )


def _tasks(options: argparse.Namespace) -> Any:
    known = _vocabulary(options.source_vocabulary)
    vocabulary = _vocabulary(options.vocabulary)
    if options.add or options.remove:
        vocabulary = _edited(options, vocabulary or known or _names(options.source))
    with _Progress("writing") as progress:
        return change_tasks(
            options.source,
            options.out,
            vocabulary,
            rows=options.rows,
            new_rows=options.new_rows,
            starts={name: start for name, start in options.add if start is not None},
            source_vocabulary=known,
            progress=progress,
            **_output(options),
        )


def _combine(options: argparse.Namespace) -> Any:
    with _Progress("writing") as progress:
        return combine_checkpoints(
            options.recipe, options.out, progress=progress, **_output(options)
        )


def _output(options: argparse.Namespace) -> dict[str, Any]:
    names = ("format", "overwrite", "dry_run")
    return {name: getattr(options, name) for name in names}


def _target(options: argparse.Namespace, source: Checkpoint) -> dict[str, Any]:
    """The parameters of the new model: those of a file, or the source's and a task table."""
    if options.target is not None:
        target = _read_tree(options.target)
    else:
        target = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in source.leaves.items()
        }
    if options.num_tasks is not None:
        old = target.get(TABLE)
        features = options.features or (None if old is None else old.shape[-1])
        if features is None:
            raise CheckpointError(
                "--num-tasks needs --features: the width of the timestep embedding (for π0 and "
                "π0.5 that of the action expert, 1024)"
            )
        target[TABLE] = jax.ShapeDtypeStruct((options.num_tasks, features), np.float32)
    if TABLE in target and TABLE not in source.leaves:
        options.keep = [*options.keep, TABLE]
    if TABLE in target and options.new_rows == "normal":
        shape = target[TABLE].shape
        # As `nnx.Embed` and `TaskConditioner` start.
        rows = np.random.default_rng(options.seed).standard_normal(shape) / np.sqrt(shape[1])
        target[TABLE] = rows.astype(target[TABLE].dtype)
        options.new_rows = "target"  # those of `target`
    return target


def _read_tree(path: str) -> dict[str, Any]:
    """A model's parameters: from another checkpoint, or JSON `{path: {shape, dtype}}`."""
    if not path.endswith(".json"):
        tree = {name: (leaf.shape, leaf.dtype) for name, leaf in Checkpoint(path).leaves.items()}
    else:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            tree = {name: (tuple(x["shape"]), x["dtype"]) for name, x in content.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f'{path} is no tree of parameters, {{"path": {{"shape", "dtype"}}}}: {error}'
            ) from error
    return {name: jax.ShapeDtypeStruct(*leaf) for name, leaf in tree.items()}


def _vocabulary(path: str | None) -> TaskVocabulary | None:
    """From a JSON file, or from a LeRobot dataset."""
    if path is None:
        return None
    return (TaskVocabulary.from_lerobot if Path(path).is_dir() else TaskVocabulary.load)(path)


def _names(source: str) -> TaskVocabulary:
    about = open_checkpoint(source).conditioning
    if about is None or about.vocabulary is None:
        raise CheckpointError(f"{source} does not name its tasks; pass --source-vocabulary")
    return about.vocabulary


def _edited(options: argparse.Namespace, vocabulary: TaskVocabulary) -> TaskVocabulary:
    unknown = [name for name in options.remove if name not in vocabulary]
    if unknown:
        raise CheckpointError(f"there are no tasks {unknown} to remove; there are {[*vocabulary]}")
    twice = [name for name, _ in options.add if name in vocabulary]
    if twice:
        raise CheckpointError(f"the tasks {twice} are there already")
    kept = [name for name in vocabulary if name not in options.remove]
    return TaskVocabulary([*kept, *(name for name, _ in options.add)])


def _plain(report: Any) -> dict[str, Any]:
    content = dataclasses.asdict(report)
    # JSON has no NaN and no infinity.
    return json.loads(json.dumps(content, default=str), parse_constant=lambda name: name)


class _Progress:
    """Bytes, share and speed on stderr, where the work is long: on one line, or in a log."""

    def __init__(self, verb: str):
        self._verb = verb
        self._pause, self._end = (0.5, "\r") if sys.stderr.isatty() else (10.0, "\n")
        self._start = self._shown = time.monotonic()
        self._wrote = False

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < self._pause:
            return
        self._shown, self._wrote = now, True
        speed = done / (now - self._start)
        text = (
            f"{self._verb} {done / 1e9:.2f} of {total / 1e9:.2f} GB ({100 * done / total:.0f} %), "
            f"{speed / 1e6:.0f} MB/s, {(total - done) / speed:.0f} s left "
        )
        print(text, end=self._end, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._wrote and self._end == "\r":
            print(file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m taskcond",
        description="Inspect, compare, merge, grow and combine checkpoints of policies with tasks.",
        epilog="Exit code: 0 done, 1 refused (the reason is on stderr), 2 wrong usage.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    inspect = _command(commands, "inspect", _inspect, "what is in a checkpoint", "runs/pi05/1000")
    inspect.add_argument("path")
    inspect.add_argument("--quick", action="store_true", help="do not look for NaN and Inf")

    diff = _command(commands, "diff", _diff, "what differs between two", "base/params tuned/params")
    diff.add_argument("first")
    diff.add_argument("second")

    merge = _command(
        commands,
        "merge",
        _merge,
        "a checkpoint's weights for a model with tasks",
        "pi05_base/params pi05_50/params --num-tasks 50 --features 1024",
    )
    merge.add_argument("source")
    merge.add_argument("out", help="a new directory; for openpi, one that ends in params")
    merge.add_argument("--target", help="the new model: a checkpoint, or JSON of shapes and dtypes")
    merge.add_argument("--num-tasks", type=_positive, help="add a task table of this height")
    merge.add_argument(
        "--features", type=_positive, help="its width: that of the timestep embedding"
    )
    merge.add_argument("--vocabulary", help="the model's tasks: JSON, or a LeRobot dataset")
    merge.add_argument(
        "--rows", type=_rows, help="old row of each new one, -1 for new: --rows=0,2,-1"
    )
    merge.add_argument(
        "--new-rows",
        type=_start,
        default="normal",
        help="what new task rows are: zeros, mean, an old row, or (a new table) normal",
    )
    merge.add_argument("--seed", type=int, default=0, help="for --new-rows normal")
    merge.add_argument("--scale", type=float, help="the model's factor on task rows")
    merge.add_argument("--fusion", help="how task rows enter the model")
    merge.add_argument("--keep", action="append", default=[], help="model leaves to keep (regex)")
    merge.add_argument("--drop", action="append", default=[], help="leaves to leave out (regex)")
    merge.add_argument(
        "--rename", action="append", type=_pair, default=[], metavar="PATTERN=PATH", help="(regex)"
    )
    _add_output(merge)

    tasks = _command(
        commands,
        "tasks",
        _tasks,
        "add, remove or reorder tasks",
        'pi05_22/params pi05_23/params --add "turn on the radio=pick up the radio"',
    )
    tasks.add_argument("source")
    tasks.add_argument("out")
    tasks.add_argument("--vocabulary", help="the new tasks: JSON, or a LeRobot dataset")
    tasks.add_argument("--source-vocabulary", help="the old ones, if the checkpoint does not say")
    tasks.add_argument(
        "--rows", type=_rows, help="old row of each new one, -1 for new: --rows=0,2,-1"
    )
    tasks.add_argument(
        "--add", action="append", type=_addition, default=[], metavar="NAME[=START]",
        help="a task more, and what its row starts from",
    )  # fmt: skip
    tasks.add_argument("--remove", action="append", default=[], metavar="NAME")
    tasks.add_argument(
        "--new-rows", default="zeros", help="what new rows are: a task's name, zeros, mean, a row"
    )
    _add_output(tasks)

    combine = _command(
        commands,
        "combine",
        _combine,
        "several fine-tuned checkpoints into one",
        "recipe.toml combined/params",
    )
    combine.add_argument("recipe", help="TOML, or the recipe.json of an earlier result")
    combine.add_argument("out")
    _add_output(combine)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[Any], Any], about: str, example: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"Example: python -m taskcond {name} {example}",
    )
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.set_defaults(run=run)
    return command


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="print the report, write nothing")
    command.add_argument("--overwrite", action="store_true", help="replace the checkpoint at OUT")
    command.add_argument("--format", choices=("orbax", "safetensors"), default="orbax")


def _rows(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _start(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _pair(text: str) -> tuple[str, str]:
    pattern, separator, path = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=PATH")
    return pattern, path


def _addition(text: str) -> tuple[str, str | None]:
    name, separator, start = text.rpartition("=")
    return (name, start) if separator else (text, None)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)
