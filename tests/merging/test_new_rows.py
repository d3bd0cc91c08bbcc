"""Rows for new tasks from the texts of the old ones."""

import numpy as np
import pytest

from taskcond import rows_by_neighbours, rows_by_regression
from tests.support import as_untyped_code

rng = np.random.default_rng(0)
TEXTS, NEW = rng.normal(size=(12, 30)), rng.normal(size=(4, 30))


def test_regression_solves_the_ridge_equations():
    rows, ridge = rng.normal(size=(12, 5)).astype(np.float32), 0.3
    found = rows_by_regression(rows, TEXTS, NEW, ridge=ridge)
    x, new = TEXTS - TEXTS.mean(0), NEW - TEXTS.mean(0)
    size = np.sqrt((x**2).sum(1).mean())
    x, new = x / size, new / size
    y = rows.astype(np.float64)
    coefficients = np.linalg.solve(x.T @ x + ridge * np.eye(30), x.T @ (y - y.mean(0)))
    np.testing.assert_allclose(found, y.mean(0) + new @ coefficients, rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32


def test_regression_finds_a_linear_rule_and_without_trust_the_mean():
    rule = rng.normal(size=(30, 6))
    texts = rng.normal(size=(200, 30))
    rows = texts @ rule
    np.testing.assert_allclose(
        rows_by_regression(rows, texts, NEW, ridge=1e-9), NEW @ rule, atol=1e-5
    )
    mean = rows_by_regression(rows, texts, NEW, ridge=np.inf)
    np.testing.assert_allclose(mean, np.broadcast_to(rows.mean(0), mean.shape), atol=1e-9)


def test_neighbours_are_the_most_similar_texts():
    rows = rng.normal(size=(12, 2, 3))
    assert np.array_equal(rows_by_neighbours(rows, TEXTS, 5 * TEXTS[[7]], count=1), rows[[7]])
    found = rows_by_neighbours(rows, TEXTS, NEW, count=12)
    np.testing.assert_allclose(found, np.broadcast_to(rows.mean(0), found.shape))


def test_what_does_not_fit_is_refused():
    rows = np.zeros((12, 3))
    for function in (rows_by_regression, rows_by_neighbours):
        with as_untyped_code(), pytest.raises(ValueError, match="one text for each row"):
            function(rows[:5], TEXTS, NEW)
        with as_untyped_code(), pytest.raises(ValueError, match="one text for each row"):
            function(rows, TEXTS, NEW[:, :3])
        with pytest.raises(ValueError, match="texts has numbers that are not finite"):
            function(rows, TEXTS * np.nan, NEW)
    with pytest.raises(ValueError, match="from 1 to the 12 known tasks"):
        rows_by_neighbours(rows, TEXTS, NEW, count=13)
    with pytest.raises(ValueError, match="ridge must be above 0"):
        rows_by_regression(rows, TEXTS, NEW, ridge=0.0)
