"""The command `python -m benchmarks.methods`."""

import tyro

from benchmarks.methods.report import run

if __name__ == "__main__":
    tyro.cli(run)
