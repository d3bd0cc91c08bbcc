"""Columns of a Parquet file as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int64, Shaped


def read_rows(path: Path, first: int, count: int, columns: Sequence[str]) -> pa.Table:
    """Reads `count` rows of a Parquet file from row `first` on, and no row group without them."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    begins = np.cumsum([0, *sizes])
    groups = [i for i in range(len(sizes)) if begins[i] < first + count and begins[i + 1] > first]
    # Arrow's threads would keep a row group for a moment after the read. Data workers read in
    # parallel already.
    table = file.read_row_groups(groups, columns=list(columns), use_threads=False)
    return table.slice(first - int(begins[groups[0]]), count)


def vectors(table: pa.Table, keys: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """Returns the columns of `keys` side by side, as float32. A missing entry becomes NaN.

    Raises:
        ValueError: A column holds matrices, text, or vectors of several lengths.
    """
    with np.errstate(over="ignore"):  # what overflows float32 is reported as not finite
        return np.concatenate([column(table, key) for key in keys], axis=1).astype(np.float32)


def integers(table: pa.Table, key: str) -> Int64[np.ndarray, " n"]:
    """Returns a column of integers, or of lists of one integer. A missing entry becomes -1.

    Raises:
        ValueError: The column does not hold numbers.
    """
    values = column(table, key)[:, 0]
    return np.where(np.isnan(values), -1, values).astype(np.int64)


def column(table: pa.Table, key: str) -> Float[np.ndarray, "n d"]:
    """Returns a column of scalars, or of vectors of one length, as float64.

    Raises:
        ValueError: The column holds something else.
    """
    values = table.column(key)
    kind = values.type
    if not pa.types.is_nested(kind):
        return _to_float(values, key)[:, None]
    flat, length = _flatten(values, key)
    return _to_float(flat, key).reshape(len(values), length)


def stored(table: pa.Table, key: str) -> Shaped[np.ndarray, "n *shape"]:
    """Returns a column of numbers, arrays of numbers of one shape, or text, in the stored type.

    A missing entry of a column of floats becomes NaN.

    Raises:
        ValueError: The column holds something else, or an entry is missing.
    """
    values = table.column(key)
    shape = [len(values)]
    while pa.types.is_nested(values.type):
        values, length = _flatten(values, key)
        shape.append(length)
    kind = values.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not _is_number(kind) and not (text and len(shape) == 1):
        raise ValueError(
            f"{key} is a column of {table.column(key).type}. Only numbers, arrays of numbers and "
            "text can be read."
        )
    if values.null_count and not pa.types.is_floating(kind):
        raise ValueError(
            f"{key} is a column of {table.column(key).type} and lacks {values.null_count} of "
            f"{len(values)} values. Only floats may be missing."
        )
    # Copied, as a slice would keep its whole row group in memory.
    return np.array(values.to_numpy()).reshape(shape)


def type_name(values: Shaped[np.ndarray, "..."]) -> str:
    """Returns the type of the values of `stored`, as messages name it.

    >>> type_name(np.zeros(3, np.float32)), type_name(np.array(["a"], object))
    ('float32', 'text')
    """
    return "text" if values.dtype == object else str(values.dtype)


def _flatten(values: pa.ChunkedArray, key: str) -> tuple[pa.ChunkedArray, int]:
    """Returns the elements of lists of one length, one list after the other, and the length."""
    kind = values.type
    if not isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        raise ValueError(f"{key} is a column of {kind}. Only numbers and vectors can be read.")
    lengths = pc.call_function("list_value_length", [values]).unique().to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        raise ValueError(
            f"{key} has vectors of lengths {lengths}. All vectors must have the same length."
        )
    return pc.call_function("list_flatten", [values]), lengths[0]


def _to_float(values: pa.ChunkedArray, key: str) -> Float[np.ndarray, " n"]:
    kind = values.type
    if not _is_number(kind):
        raise ValueError(f"{key} is a column of {kind}. Only numbers can be read.")
    return pc.cast(values, pa.float64()).to_numpy()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
