"""NaN and Inf are counted as they are after a cast, and named."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from taskcond.merging.finite import cast_array, count_nonfinite, warn_nonfinite

VALUES = [np.nan, -np.inf, 1e39, 1e5, 500.0, 1.0]


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("dtype", "count"),
    [
        (None, 3),
        ("float32", 3),
        ("bfloat16", 3),
        ("float16", 4),
        (jnp.float8_e4m3fn, 5),
        ("int8", 0),
    ],
)
def test_the_cast_decides_what_is_finite(as_array, dtype, count):
    with np.errstate(over="ignore"):
        values = as_array(np.asarray(VALUES, np.float32))
    assert count_nonfinite(values, dtype) == count


def test_a_cast_that_overflows_is_silent_as_its_caller_counts(recwarn):
    assert cast_array(np.array([1e5, 2.0]), np.float16).tolist() == [np.inf, 2.0]
    assert not recwarn


def test_the_warning_names_leaves_and_casts():
    message = r"NaN or Inf in a \(2\), b \(1, cast from float32 to float16\); use a dtype with"
    with pytest.warns(UserWarning, match=message):
        warn_nonfinite({"a": 2, "b": 1}, {"b": ("float32", "float16"), "c": ("float32", "int8")})
