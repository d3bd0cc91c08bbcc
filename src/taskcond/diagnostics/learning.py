"""Whether a table learns: its change or its gradient, against that of the other parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from taskcond.diagnostics.numbers import known
from taskcond.messages import Readable
from taskcond.trees import Tree, flatten

TABLE = "task_embeddings/embedding"
"""The path of the table, or its end, unless it is given."""


@dataclasses.dataclass(frozen=True, repr=False)
class TableLearning(Readable):
    """A comparison of a table with the other parameters, as root mean squares of an element.

    Attributes:
        kind: What is compared.
        table: That of the table.
        rest: That of the other parameters.
    """

    kind: Literal["change", "gradient"]
    table: float
    rest: float

    @property
    def ratio(self) -> float:
        """The table over the rest: NaN if nothing learns, infinite if the table alone does."""
        if not self.rest:
            return float("inf") if self.table else float("nan")
        return self.table / self.rest

    def to_dict(self) -> dict[str, object]:
        """Returns the numbers for JSON."""
        return {**dataclasses.asdict(self), "ratio": known(self.ratio)}

    def __str__(self) -> str:
        return (
            f"{self.kind} of the table {self.table:.3g}, of the rest {self.rest:.3g} "
            f"(root mean square of an element); ratio {self.ratio:.3g}"
        )


def table_change(before: Tree, after: Tree, table: str = TABLE) -> TableLearning:
    """Compares how far training has moved a table, and the other parameters.

    Args:
        before: The parameters before training, such as those of the base. If they have no table,
            it started from zeros.
        after: The parameters after it.
        table: The path of the table, or its end.

    Raises:
        ValueError: There is no table, or no other parameter is the same in both.

    >>> base = {"w": np.zeros(2)}
    >>> tuned = {"w": np.full(2, 0.5), "task_embeddings": {"embedding": np.full((3, 2), 0.25)}}
    >>> table_change(base, tuned).ratio
    0.5
    """
    old, new = flatten(before), flatten(after)
    path = _find(new, table)
    start = old.get(path)
    changes = {
        name: _array(new[name]) - _array(old[name])
        for name in new.keys() & old.keys() - {path}
        if np.shape(new[name]) == np.shape(old[name])
    }
    if not changes:
        raise ValueError(
            f"no parameter but {path!r} is in both trees with one shape: {list(old)[:8]} and "
            f"{list(new)[:8]}; pass two checkpoints of one architecture"
        )
    moved = _array(new[path]) - (0 if start is None else _array(start))
    return TableLearning("change", _rms({path: moved}), _rms(changes))


def table_gradient(gradients: Tree, table: str = TABLE) -> TableLearning:
    """Compares the gradient of a table with that of the other parameters.

    Args:
        gradients: The gradients of the loss, as a tree of parameters.
        table: The path of the table, or its end.

    Raises:
        ValueError: There is no table, or nothing else.

    >>> grads = {"w": np.full(2, 2.0), "task_embeddings": {"embedding": np.full((3, 2), 1.0)}}
    >>> table_gradient(grads).ratio
    0.5
    """
    flat = {name: _array(leaf) for name, leaf in flatten(gradients).items()}
    path = _find(flat, table)
    of_table = flat.pop(path)
    if not flat:
        raise ValueError(f"the only gradient is that of {path!r}; pass those of all parameters")
    return TableLearning("gradient", _rms({path: of_table}), _rms(flat))


def _find(leaves: Mapping[str, object], table: str) -> str:
    found = [path for path in leaves if f"/{path}".endswith(f"/{table}")]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} parameters have a path that ends in {table!r}: {found}, among "
            f"{list(leaves)[:8]}; pass the path of one with table=..."
        )
    return found[0]


def _array(leaf: object) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def _rms(leaves: Mapping[str, np.ndarray]) -> float:
    """Returns the root mean square of all elements; raises if one is NaN or Inf."""
    if bad := [path for path, leaf in leaves.items() if not np.isfinite(leaf).all()]:
        raise ValueError(f"{bad} hold NaN or Inf; training diverged before this checkpoint")
    total = sum(float(np.square(leaf).sum()) for leaf in leaves.values())
    return (total / max(sum(leaf.size for leaf in leaves.values()), 1)) ** 0.5
