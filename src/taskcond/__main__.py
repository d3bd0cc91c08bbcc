"""Runs the command line: `python -m taskcond`, which is also the command `taskcond`."""

import sys

from taskcond.checkpoint.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
