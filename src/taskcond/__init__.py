"""Task conditioning for multi-task robot policies in JAX/Flax."""

from taskcond.data.extract import ExtractTaskID, extract_task_id
from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK
from taskcond.merging.merge import MergeError, MergeReport, merge_into, merge_params
from taskcond.nn.conditioner import TaskConditioner, TaskParam

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
