"""Checkpoint files: load, save, merge, grow, combine, compare; in bounded memory, nothing lost.

Not imported by `import taskcond`: it needs TensorStore, which takes its time.
"""

from taskcond.checkpoint.combining.combine import combine_checkpoints
from taskcond.checkpoint.combining.recipe import Recipe, Rule, Specialist
from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.inspect import diff_checkpoints, inspect_checkpoint
from taskcond.checkpoint.load import load_params, save_params
from taskcond.checkpoint.merge_files import change_tasks, merge_checkpoint
from taskcond.checkpoint.open import Checkpoint, open_checkpoint
from taskcond.checkpoint.storage.errors import CheckpointError

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
    "load_params",
    "merge_checkpoint",
    "open_checkpoint",
    "save_params",
]
