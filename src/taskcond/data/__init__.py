"""A dataset's frame becomes a task id."""

from taskcond.data.lerobot_tasks import read_lerobot_tasks

__all__ = ["read_lerobot_tasks"]
