"""A dataset's frame becomes a task id: the transform, vocabularies and LeRobot's task lists."""

from taskcond.data.lerobot_tasks import read_lerobot_tasks

__all__ = ["read_lerobot_tasks"]
