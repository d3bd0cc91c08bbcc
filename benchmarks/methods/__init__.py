"""Which way to tell tasks apart does best, on fifty tasks in a closed loop?

python -m benchmarks methods            about 50 minutes on two cores
python -m benchmarks.methods --quick    about five minutes, whose numbers mean little

What is finished is kept in `runs/methods`, and not done again by the next call.
"""

from benchmarks.methods.report import run


def main() -> str:
    """Prints and returns the tables."""
    return run()
