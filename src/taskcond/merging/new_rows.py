"""Rows for new tasks, guessed from what is known of the old ones."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def rows_by_regression(
    rows: Float[np.ndarray, "tasks ..."],
    texts: Float[np.ndarray, "tasks text"],
    new_texts: Float[np.ndarray, "new text"],
    *,
    ridge: float = 1.0,
) -> Float[np.ndarray, "new ..."]:
    """Returns rows for new tasks by ridge regression from text vectors to rows.

    The text vectors come from any text encoder; the mean of the token embeddings is one. They are
    centred, and divided by one number such that their mean square length is 1. With
    `ridge=inf` every new row is the mean of the old ones.

    Args:
        rows: The rows of the known tasks.
        texts: The vectors of their texts.
        new_texts: The vectors of the new tasks' texts.
        ridge: The weight of the penalty on the regression's coefficients, above 0.

    Raises:
        ValueError: Shapes do not fit, a number is not finite, or `ridge` is not above 0.

    >>> rows_by_regression(np.eye(2), np.eye(2), np.eye(2), ridge=1e-9).round(3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    _check(rows, texts, new_texts)
    if not ridge > 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    centre, mean = texts.mean(0), flat.mean(0)
    x, new = np.asarray(texts - centre, np.float64), np.asarray(new_texts - centre, np.float64)
    size = np.sqrt(np.mean(np.sum(x**2, axis=1))) or 1.0
    x, new = x / size, new / size
    # The form with a matrix of tasks by tasks, because there are fewer tasks than text features.
    weights = np.linalg.solve(x @ x.T / ridge + np.eye(len(x)), flat - mean) / ridge
    return _like(rows, mean + new @ (x.T @ weights))


def rows_by_neighbours(
    rows: Float[np.ndarray, "tasks ..."],
    texts: Float[np.ndarray, "tasks text"],
    new_texts: Float[np.ndarray, "new text"],
    *,
    count: int = 3,
) -> Float[np.ndarray, "new ..."]:
    """Returns for each new task the mean row of the known tasks whose texts are most similar.

    Similarity is the cosine of text vectors.

    Args:
        rows: The rows of the known tasks.
        texts: The vectors of their texts.
        new_texts: The vectors of the new tasks' texts.
        count: The number of neighbours, at most the number of known tasks.

    Raises:
        ValueError: Shapes do not fit, a number is not finite, or `count` is out of range.

    >>> rows_by_neighbours(np.eye(2), np.eye(2), np.array([[0.1, 2.0]]), count=1).tolist()
    [[0.0, 1.0]]
    """
    _check(rows, texts, new_texts)
    if not 1 <= count <= len(rows):
        raise ValueError(f"count must be from 1 to the {len(rows)} known tasks, got {count}")
    nearest = np.argsort(-_unit(new_texts) @ _unit(texts).T, axis=1, kind="stable")[:, :count]
    return _like(rows, np.asarray(rows, np.float64)[nearest].mean(1))


def _check(rows: np.ndarray, texts: np.ndarray, new_texts: np.ndarray) -> None:
    shapes = f"rows {rows.shape}, texts {texts.shape}, new_texts {new_texts.shape}"
    if texts.ndim != 2 or new_texts.ndim != 2 or rows.ndim < 2:
        raise ValueError(f"texts and new_texts need two axes and rows at least two, got {shapes}")
    if not len(rows) or len(rows) != len(texts) or texts.shape[1] != new_texts.shape[1]:
        raise ValueError(
            f"one text for each row, and texts of one width are needed, got {shapes}; pass the "
            "texts of the known tasks in the order of their rows"
        )
    for name, value in (("rows", rows), ("texts", texts), ("new_texts", new_texts)):
        if not np.isfinite(np.asarray(value, np.float64)).all():
            raise ValueError(f"{name} has numbers that are not finite")


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _like(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), *rows.shape[1:]).astype(rows.dtype)
