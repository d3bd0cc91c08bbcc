"""Task conditioning for multi-task robot policies in JAX/Flax."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from taskcond.data.extract import ExtractTaskID, extract_task_id
from taskcond.data.lerobot_tasks import read_lerobot_tasks
from taskcond.data.prefix import TextPrefix
from taskcond.data.stages import StageTracker, StageVocabulary
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK
from taskcond.merging.merge import merge_into, merge_params
from taskcond.merging.new_rows import rows_by_neighbours, rows_by_regression
from taskcond.merging.report import MergeError, MergeReport
from taskcond.nn.conditioner import TaskConditioner
from taskcond.nn.dropout import drop_ids
from taskcond.nn.fusion import Fusion
from taskcond.nn.guidance import guide
from taskcond.nn.linear import TaskLinear
from taskcond.nn.lora import TaskLoRA, TaskUpdate
from taskcond.nn.stages import StageConditioner, StageHead
from taskcond.nn.tokens import TaskTokens
from taskcond.params import SharedTaskParam, TaskParam

if TYPE_CHECKING:
    from taskcond import checkpoint, diagnostics, functional, linen

__all__ = [
    "NULL_TASK",
    "ExtractTaskID",
    "Fusion",
    "MergeError",
    "MergeReport",
    "SharedTaskParam",
    "StageConditioner",
    "StageHead",
    "StageTracker",
    "StageVocabulary",
    "TaskConditioner",
    "TaskLinear",
    "TaskLoRA",
    "TaskParam",
    "TaskTokens",
    "TaskUpdate",
    "TaskVocabulary",
    "TextPrefix",
    "checkpoint",
    "diagnostics",
    "drop_ids",
    "extract_task_id",
    "functional",
    "guide",
    "linen",
    "merge_into",
    "merge_params",
    "read_lerobot_tasks",
    "rows_by_neighbours",
    "rows_by_regression",
]

_LAZY = ("checkpoint", "diagnostics", "functional", "linen")  # imported when they are first used


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version(__name__)
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "__version__", *_LAZY})
