"""The meaning of the commands' arguments: values that are parsed, and files that are read."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.data.vocabulary import TaskVocabulary

Target = dict[str, jax.ShapeDtypeStruct | jax.Array]


def shapes_of(checkpoint: Checkpoint) -> Target:
    """Returns the shapes and dtypes of a checkpoint's leaves."""
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in checkpoint.leaves.items()
    }


def read_shapes(path: str) -> Target:
    """Reads a model's parameters from another checkpoint, or JSON `{path: {shape, dtype}}`."""
    if not path.endswith(".json"):
        return shapes_of(Checkpoint(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
            for name, leaf in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is not a tree of parameters, {{"path": {{"shape", "dtype"}}}}: {error}'
        ) from error


def read_vocabulary(path: str | None) -> TaskVocabulary | None:
    """Reads a vocabulary from a JSON file or a LeRobot dataset."""
    if path is None:
        return None
    return (TaskVocabulary.from_lerobot if Path(path).is_dir() else TaskVocabulary.load)(path)


def names_in(source: str, table: str | None) -> TaskVocabulary:
    """Returns the names of a checkpoint's tasks; raises `CheckpointError` if it has none."""
    conditioning = open_checkpoint(source, table).conditioning
    if conditioning is None or conditioning.vocabulary is None:
        raise CheckpointError(f"{source} does not name its tasks; pass --source-vocabulary")
    return conditioning.vocabulary


def parse_rows(text: str | None) -> list[int] | None:
    """Parses the value of `--rows`."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise CheckpointError(
            f"--rows is {text!r}, but must be numbers separated by commas: --rows=0,2,-1"
        ) from None


def parse_rename(text: str) -> tuple[str, str]:
    """Parses a value of `--rename`."""
    pattern, separator, path = text.partition("=")
    if not separator:
        raise CheckpointError(f"--rename is {text!r}, but must be PATTERN=PATH")
    return pattern, path


def parse_addition(text: str) -> tuple[str, str | None]:
    """Parses a value of `--add`: the task, and what it starts from."""
    name, separator, start = text.rpartition("=")
    return (name, start) if separator else (text, None)
