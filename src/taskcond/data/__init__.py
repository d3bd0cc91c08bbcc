"""From a dataset's frame to a task id: the transform, vocabularies and LeRobot's task lists."""
