"""Runs the command line: `python -m taskcond`."""

import sys

from taskcond.checkpoint.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
