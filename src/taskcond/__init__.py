"""Task conditioning for multi-task robot policies in JAX/Flax."""

from taskcond.conditioner import TaskConditioner, TaskParam
from taskcond.ids import NULL_TASK

__all__ = ["NULL_TASK", "TaskConditioner", "TaskParam"]
