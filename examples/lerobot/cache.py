"""A cache of bounded size that threads share and processes do not."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Keeps the values that were used last. It is empty in a new process and after pickling.

    Args:
        limit: The largest sum of sizes; a single value may exceed it.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._size = 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[T, int]]) -> T:
        """Returns the value of `key`, and makes it first if the cache does not hold it.

        Args:
            key: The name of the value.
            make: Returns the value and its size.
        """
        key = os.getpid(), key  # a forked process must not read from its parent's open files
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value, size = make()  # without the lock, so that other threads can read in the meantime
        with self._lock:
            if key in self._values:
                return self._values[key][0]
            self._values[key] = value, size
            self._size += size
            while self._size > self._limit and len(self._values) > 1:
                # The value is not closed here, as another thread may be using it.
                self._size -= self._values.popitem(last=False)[1][1]
        return value

    def __reduce__(self) -> tuple[type[Cache], tuple[int]]:
        return Cache, (self._limit,)
