"""What several tests share."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
from flax import nnx

from taskcond import merge_into

FIXTURES = Path(__file__).parents[1] / "fixtures"


@contextlib.contextmanager
def as_untyped_code() -> Iterator[None]:
    """Switches off the tests' own check of types, to see what wrong types meet without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def assign(module: nnx.Module, **values: Any) -> None:
    """Sets parameters of a module, on every release of flax."""
    merge_into(module, values, keep=".*")


def write_tasks(root: Path, rows: Sequence[tuple[int, str]]) -> Path:
    """Writes the task list of a LeRobot v2 dataset, and returns its folder."""
    (root / "meta").mkdir()
    lines = [json.dumps({"task_index": index, "task": name}) + "\n" for index, name in rows]
    (root / "meta" / "tasks.jsonl").write_text("".join(lines))
    return root
