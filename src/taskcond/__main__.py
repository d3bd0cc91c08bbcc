"""`python -m taskcond`."""

import sys

from taskcond.checkpoint.cli import main

if __name__ == "__main__":
    sys.exit(main())
