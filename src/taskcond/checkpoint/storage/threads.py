"""Several iterators at a time, each advanced by a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T]) -> Generator[T, None, None]:
    """Yields the same items in order; a thread produces them a few items ahead."""
    return interleave([items], 1)


def interleave(
    parts: Iterable[Iterable[T]], workers: int, ahead: int = 2
) -> Generator[T, None, None]:
    """Yields the items of all parts: each part in order, several parts at a time.

    Close the generator when you stop early. Otherwise its threads wait for ever until somebody
    takes the items that they have produced.

    Args:
        parts: The iterables; each is consumed by a single thread.
        workers: Number of threads.
        ahead: How many finished items may wait, beside those that are being produced.

    >>> sorted(interleave([[1, 2], [3]], workers=2))
    [1, 2, 3]
    """
    todo: queue.SimpleQueue[Iterable[T]] = queue.SimpleQueue()
    made: queue.SimpleQueue[tuple[Future[None] | None, Any]] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(ahead), threading.Event()
    for part in parts:
        todo.put(part)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                for item in todo.get_nowait():
                    made.put((None, item))
                    room.acquire()
                    if stopped.is_set():
                        return

    with ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            pool.submit(work).add_done_callback(lambda future: made.put((future, None)))
        try:
            running = workers
            while running:
                finished, item = made.get()
                if finished is None:
                    yield item
                    room.release()
                else:
                    finished.result()  # raises the error of the thread
                    running -= 1
        finally:
            stopped.set()
            room.release(workers)
