"""table_change and table_gradient: root mean squares of the table and of the rest."""

import numpy as np
import pytest

from taskcond.diagnostics import table_change, table_gradient

BEFORE = {"a": np.array([1.0, 2.0]), "b": {"c": np.zeros((2, 2))}}


def after(table):
    return {
        "a": np.array([1.0, 5.0]),
        "b": {"c": np.full((2, 2), 1.0)},
        "task_embeddings": {"embedding": table},
    }


def test_a_change_is_that_of_all_elements():
    learning = table_change(BEFORE, after(np.array([[3.0, 4.0]])))
    assert learning.kind == "change"
    assert learning.table == pytest.approx(np.sqrt(25 / 2))
    assert learning.rest == pytest.approx(np.sqrt((9 + 4) / 6))
    start = after(np.array([[3.0, 3.0]]))
    assert table_change(start, after(np.array([[3.0, 4.0]]))).table == pytest.approx(np.sqrt(0.5))


def test_a_gradient_is_that_of_all_elements():
    learning = table_gradient(after(np.array([[0.0, 2.0]])))
    assert learning.table == pytest.approx(np.sqrt(2))
    assert learning.rest == pytest.approx(np.sqrt((1 + 25 + 4) / 6))
    assert learning.to_dict()["ratio"] == learning.ratio


def test_nothing_that_learns_has_no_ratio():
    same = after(np.zeros((1, 2)))
    learning = table_change(same, same)
    assert (np.isnan(learning.ratio), learning.to_dict()["ratio"]) == (True, None)


def test_bad_trees_are_refused():
    with pytest.raises(ValueError, match="0 parameters have a path that ends in 'task_embed"):
        table_change(BEFORE, BEFORE)
    with pytest.raises(ValueError, match="no parameter but 'task_embeddings/embedding' is in both"):
        table_change({"x": np.zeros(1)}, after(np.zeros((1, 2))))
    with pytest.raises(ValueError, match="only gradient is that of 'task_embeddings/embedding'"):
        table_gradient({"task_embeddings": {"embedding": np.zeros((1, 2))}})
    with pytest.raises(ValueError, match=r"\['task_embeddings/embedding'\] hold NaN or Inf"):
        table_gradient(after(np.array([[np.nan, 0]])))
