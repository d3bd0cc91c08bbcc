"""Checkpoint files: load, save, merge, grow, combine and compare them, in bounded memory.

`import taskcond` does not import this package, because importing TensorStore takes long.
"""

from taskcond.checkpoint.combining.combine import combine_checkpoints
from taskcond.checkpoint.combining.recipe import Recipe, Rule, Specialist
from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.diff import diff_checkpoints
from taskcond.checkpoint.inspect import inspect_checkpoint
from taskcond.checkpoint.load import load_params
from taskcond.checkpoint.load_into import load_into
from taskcond.checkpoint.merge_files import merge_checkpoint
from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.save import save_params
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.tasks import change_tasks

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Recipe",
    "Rule",
    "Specialist",
    "TaskConditioning",
    "change_tasks",
    "combine_checkpoints",
    "diff_checkpoints",
    "inspect_checkpoint",
    "load_into",
    "load_params",
    "merge_checkpoint",
    "open_checkpoint",
    "save_params",
]
