"""Files that hold arrays; knows nothing of tasks."""
