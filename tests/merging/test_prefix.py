"""One rename is found where only the beginning of paths differs."""

from __future__ import annotations

import pytest

from taskcond.merging.patterns import Renaming
from taskcond.merging.prefix import find_rename


@pytest.mark.parametrize(
    ("before", "after"),
    [("net/", ""), ("a/b/", ""), ("", "net/"), ("old/", "new/x/"), ("a.b/", "")],
)
def test_the_rename_gives_every_path_its_new_beginning(before, after):
    names = ["dense/kernel", "dense/bias", "norm/scale"]
    found, wanted = ([f"{part}{name}" for name in names] for part in (before, after))
    rename = find_rename(found, [*wanted, "task_embeddings/embedding"])
    assert rename is not None
    renamed = Renaming(dict([rename])).apply([*found, "other/leaf"])
    assert renamed == {**dict(zip(wanted, found, strict=True)), "other/leaf": "other/leaf"}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [([], ["a"]), (["a"], []), (["x/a"], ["b", "c"]), (["x/a/bias"], ["bias", "kernel", "scale"])],
)
def test_other_trees_get_no_rename(found, wanted):
    assert find_rename(found, wanted) is None
