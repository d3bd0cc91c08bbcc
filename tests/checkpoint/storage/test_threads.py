"""Items come from several threads, in the order of each."""

from __future__ import annotations

import contextlib
import threading

import pytest

from taskcond.checkpoint.storage.threads import interleave


def test_items_come_from_several_threads_and_so_do_errors():
    def part(number):
        for item in range(3):
            yield number, item
        if number == 4:
            raise ValueError("of a thread")

    made = list(interleave([part(i) for i in range(4)], workers=3))
    assert sorted(made) == [(i, j) for i in range(4) for j in range(3)]
    assert [item for item in made if item[0] == 2] == [(2, 0), (2, 1), (2, 2)]
    with pytest.raises(ValueError, match="of a thread"):
        list(interleave([part(i) for i in range(9)], workers=2))
    threads = threading.active_count()
    with contextlib.closing(interleave([part(0), part(1)], workers=2)) as some:
        assert next(some) in ((0, 0), (1, 0))
    assert threading.active_count() == threads
