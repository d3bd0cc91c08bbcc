"""Pieces cover a leaf once, and each is a run of every chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskcond.checkpoint.storage import leaf as leaf_module
from taskcond.checkpoint.storage.boxes import (
    box_shape,
    is_contiguous,
    overlap,
    relative,
    split_at_chunks,
)
from taskcond.checkpoint.storage.leaf import Leaf


@given(data=st.data())
def test_pieces_cover_a_leaf_once_and_are_runs_of_every_chunk(data):
    shape = data.draw(st.lists(st.integers(0, 7), max_size=4).map(tuple))
    chunk = tuple(data.draw(st.integers(1, max(n, 1))) for n in shape)
    limit = data.draw(st.integers(4, 400))
    leaf = Leaf(shape, np.dtype(np.float32), chunk)
    order = np.arange(leaf.size).reshape(shape)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaf_module, "PIECE_BYTES", limit)
        for box in leaf.pieces():
            assert np.prod(box_shape(box)) * 4 <= limit
            assert is_contiguous(box, shape)
            seen += order[box].reshape(-1).tolist()
            parts = list(split_at_chunks(box, chunk))
            assert sum(np.prod(box_shape(part)) for part in parts) == np.prod(box_shape(box))
            for part in parts:
                start = tuple(p.start // k * k for p, k in zip(part, chunk, strict=True))
                stop = (min(i + k, n) for i, k, n in zip(start, chunk, shape, strict=True))
                place = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
                assert overlap(part, place) == part
                assert is_contiguous(relative(part, place), box_shape(place))
    assert seen == list(range(leaf.size))
