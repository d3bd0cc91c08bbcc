"""Parquet columns become arrays, whatever way they are stored in."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.lerobot import columns


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)]
)
def test_vectors_of_every_kind_of_list_are_float32_and_missing_entries_nan(kind):
    table = pa.table({"x": pa.array([[1, 2], [3, None]], kind), "y": [5, 6]})
    values = columns.vectors(table, ["x", "y"])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [[1, 2, 5], [3, np.nan, 6]])


def test_integers_may_be_lists_of_one_and_missing_ones_are_minus_one():
    table = pa.table({"x": [[1], [2]], "y": [3, None]})
    assert columns.integers(table, "x").tolist() == [1, 2]
    assert columns.integers(table, "y").tolist() == [3, -1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1], [2, 3]], "x has vectors of lengths"),
        (["a", "b"], "x is a column of string. Only numbers can be read."),
        ([["a"], ["b"]], "x is a column of string. Only numbers can be read."),
        ([{"a": 1}, {"a": 2}], "x is a column of struct"),
    ],
)
def test_what_is_no_vector_of_numbers_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        columns.column(pa.table({"x": values}), "x")


@pytest.mark.parametrize(("first", "count"), [(0, 10), (3, 4), (2, 1), (9, 1)])
def test_rows_are_read_across_row_groups(tmp_path, first, count):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": range(10), "y": range(10)}), path, row_group_size=3)
    table = columns.read_rows(path, first, count, ["x"])
    assert table.to_pydict() == {"x": list(range(first, first + count))}
