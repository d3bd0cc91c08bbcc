"""The command line, `python -m taskcond`."""
