"""A pool of processes, which shows progress and gives the same results as one process."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

T = TypeVar("T")
R = TypeVar("R")

_JOBS_AT_ONCE = 5


class Pool:
    """Runs a function on many jobs, in other processes or in this one.

    Args:
        workers: The number of processes; 0 runs everything in this process.

    Attributes:
        interrupted: Whether Ctrl-C ended the work. Results are incomplete from then on.
    """

    def __init__(self, workers: int):
        self.interrupted = False
        self._executor = None
        if workers:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("spawn"),  # a fork may hang with jax
                initializer=_begin,
            )

    def map(self, function: Callable[[T], R], jobs: Sequence[T], label: str) -> list[R]:
        """Returns the results in the order of the jobs, and shows a progress bar.

        After Ctrl-C it returns those of the first jobs, as far as they are finished.

        Args:
            function: A function of a module.
            jobs: Its arguments.
            label: The name of the work in the progress bar.
        """
        results: list[R] = []
        if self.interrupted:
            return results
        parts = [jobs[i : i + _JOBS_AT_ONCE] for i in range(0, len(jobs), _JOBS_AT_ONCE)]
        with _progress() as progress:
            bar = progress.add_task(label, total=len(jobs))
            try:
                for part in self._run(function, parts):
                    results += part
                    progress.update(bar, completed=len(results))
            except KeyboardInterrupt:
                self.interrupted = True
                for process in multiprocessing.active_children():
                    process.terminate()
        return results

    def _run(self, function: Callable[[T], R], parts: Sequence[Sequence[T]]) -> Iterator[list[R]]:
        if self._executor is None:
            return (_call(function, part) for part in parts)
        return self._executor.map(_call, [function] * len(parts), parts)

    def close(self) -> None:
        """Waits for the jobs that run, drops the others, and ends the processes."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _call(function: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
    return [function(job) for job in jobs]


def _begin() -> None:
    """Leaves Ctrl-C to the parent, and ends this process with it, also if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
