"""Does a policy use its task id?"""

from taskcond.diagnostics.confusion import TaskConfusion, losses_by_task, task_confusion

__all__ = ["TaskConfusion", "losses_by_task", "task_confusion"]
