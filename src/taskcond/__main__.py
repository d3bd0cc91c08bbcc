"""`python -m taskcond`."""

import sys

from taskcond.checkpoint.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
