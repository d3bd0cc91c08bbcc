"""Task conditioning for multi-task robot policies in JAX/Flax."""

from taskcond.conditioner import TaskConditioner, TaskParam
from taskcond.ids import NULL_TASK
from taskcond.merge import MergeError, MergeReport, merge_into, merge_params
from taskcond.transforms import ExtractTaskID, extract_task_id
from taskcond.vocabulary import TaskVocabulary

__all__ = [
    "NULL_TASK",
    "ExtractTaskID",
    "MergeError",
    "MergeReport",
    "TaskConditioner",
    "TaskParam",
    "TaskVocabulary",
    "extract_task_id",
    "merge_into",
    "merge_params",
]
