"""From a dataset's frame to a task id."""
