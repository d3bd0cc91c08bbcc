"""Does a policy use its task id?"""

from taskcond.diagnostics.confusion import TaskConfusion, task_confusion
from taskcond.diagnostics.interval import wilson_interval
from taskcond.diagnostics.losses import losses_by_task

__all__ = ["TaskConfusion", "losses_by_task", "task_confusion", "wilson_interval"]
