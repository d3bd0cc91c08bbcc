"""A cache keeps what was used last, up to its limit, and nothing in another process."""

import os
import pickle

import pytest

from examples.lerobot.cache import Cache


class Made:
    """Makes values, and remembers which were made."""

    def __init__(self, size=1):
        self.keys = []
        self.size = size

    def __call__(self, key):
        def make():
            self.keys.append(key)
            return key.upper(), self.size

        return make


def read(cache, made, keys):
    return [cache.get(key, made(key)) for key in keys]


def test_a_value_is_made_once():
    cache, made = Cache(3), Made()
    assert read(cache, made, "abab") == ["A", "B", "A", "B"]
    assert made.keys == ["a", "b"]


def test_the_value_that_was_not_used_for_longest_goes_first():
    cache, made = Cache(2), Made()
    read(cache, made, "abacab")
    assert made.keys == ["a", "b", "c", "b"]


def test_a_value_larger_than_the_limit_is_kept_until_the_next():
    cache, made = Cache(2), Made(size=5)
    read(cache, made, "aab")
    read(cache, made, "a")
    assert made.keys == ["a", "b", "a"]


def test_a_copy_by_pickle_is_empty():
    cache, made = Cache(2), Made()
    read(cache, made, "a")
    read(pickle.loads(pickle.dumps(cache)), made, "a")
    assert made.keys == ["a", "a"]


@pytest.mark.filterwarnings("ignore:os.fork")  # the child runs no JAX
def test_a_forked_process_makes_its_own_values():
    cache, made = Cache(2), Made()
    read(cache, made, "a")
    child = os.fork()
    if not child:
        try:
            read(cache, made, "aa")
        finally:
            os._exit(len(made.keys))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
