"""Files that hold arrays: formats and atomic writing. Storage knows nothing of tasks."""
