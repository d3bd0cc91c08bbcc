"""How fast are the batches of a run? Measured without training."""

from __future__ import annotations

import contextlib
import time

import psutil
from rich.table import Table

from examples.pi0.training.plan import Plan

_AHEAD = 4  # batches that a worker may hold
_AHEAD_OF_THREADS = 12


def measure_loader(plan: Plan) -> Table:
    """Reads `bench_loader` batches; returns their speed and memory for people to read.

    As many batches as can be read ahead come before and are not counted, because they are ready
    when the first one is.

    Raises:
        FileNotFoundError: The dataset is not there.
    """
    config, data = plan.config, plan.data
    if data is None:
        raise FileNotFoundError("there is no dataset to read; pass --data.root FOLDER")
    ahead = _AHEAD * config.data.num_workers or _AHEAD_OF_THREADS
    last = ahead + config.bench_loader
    batches = data.train_batches(config.batch_size, first=0, last=last + ahead)
    with contextlib.closing(batches):
        begin = time.monotonic()
        next(batches)
        first = time.monotonic() - begin
        for _ in range(ahead - 1):
            next(batches)
        started = time.monotonic()
        for _ in range(config.bench_loader):
            next(batches)
        seconds = (time.monotonic() - started) / config.bench_loader
        memory = _memory()
    table = Table(title=f"{config.bench_loader} batches of {config.batch_size} frames")
    for name in ("workers", "first batch", "a batch", "frames per second", "memory"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{config.data.num_workers}",
        f"{first:.2f} s",
        f"{seconds * 1000:.1f} ms",
        f"{config.batch_size / seconds:,.0f}",
        f"{memory / 2**30:.2f} GiB",
    )
    return table


def _memory() -> int:
    """Returns the memory of this process and of its workers, in bytes."""
    process = psutil.Process()
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss for member in family)
