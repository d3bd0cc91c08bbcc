"""Training states: where the parameters of one are, and which leaves mirror its task table.

A training state has the parameters beside a counter and the optimizer's state. It comes from
openpi and from flax (`step`, `params`, `opt_state` and more), or is an `nnx.Optimizer`'s state
(`step`, `opt_state`) beside that of a model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import Leaf

_OPTIMIZER, _STEP = "opt_state", "step"
_PARAMETERS = ("params", "model")


def find_params(paths: Iterable[str]) -> str | None:
    """Returns what the paths of a training state's parameters begin with.

    Args:
        paths: The paths of all leaves.

    Returns:
        The beginning; `None` if there is no training state, or one without parameters.

    >>> find_params(["step", "params/kernel", "opt_state/0/mu/kernel"])
    'params/'
    >>> find_params(["policy/kernel", "optimizer/step", "optimizer/opt_state/0/mu/kernel"])
    'policy/'
    """
    keys = [tuple(path.split("/")) for path in paths]
    node = _find_node(keys)
    if node is None:
        return None
    for home in (node, node[:-1]):
        names = {
            key[len(home)] for key in keys if key[: len(home)] == home and key[len(home) + 1 :]
        }
        others = names - set(node[len(home) :])
        found = [name for name in _PARAMETERS if name in others]
        if not found and home != node and len(others) == 1:
            found = sorted(others)
        if found:
            return "/".join((*home, found[0], ""))
    return None


def is_without_params(paths: Collection[str]) -> bool:
    """Returns whether there is an optimizer's state, but no parameters.

    >>> is_without_params(["step", "opt_state/0/mu/kernel"])
    True
    """
    has_state = _find_node([tuple(path.split("/")) for path in paths]) is not None
    return has_state and find_params(paths) is None


def find_mirrors(table: str, leaves: Mapping[str, Leaf]) -> dict[str, bool]:
    """Returns the leaves of a training state that have a row for each row of the task table.

    Args:
        table: The path of the table among all leaves of the training state.
        leaves: All leaves.

    Returns:
        `{path: whether it belongs to the optimizer}`, without the table itself.

    Raises:
        CheckpointError: A leaf belongs to the table, but has another shape, such as a factored
            moment. The message names all of them.
    """
    ending = "/" + _name(table, leaves)
    mirrors = [path for path in leaves if path.endswith(ending) and path != table]
    wanted = leaves[table].shape
    # A moment that an optimizer does not use has a single entry.
    odd = {
        path: list(leaves[path].shape)
        for path in mirrors
        if leaves[path].shape != wanted and leaves[path].size > 1
    }
    if odd:
        raise CheckpointError(
            f"these leaves belong to the task table {table} {list(wanted)}, but have another "
            f"shape, so that their rows are not known: {odd}; change the tasks of the parameters "
            "alone, and start the optimizer afresh"
        )
    return {path: _OPTIMIZER in path.split("/") for path in mirrors if leaves[path].shape == wanted}


def _find_node(keys: Collection[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Returns the keys of the node that has a step and an optimizer's state, the topmost one."""
    known = {key[:n] for key in keys for n in range(len(key) + 1)}
    nodes = {key[: key.index(_OPTIMIZER)] for key in keys if _OPTIMIZER in key[:-1]}
    return min((node for node in nodes if (*node, _STEP) in known), key=len, default=None)


def _name(table: str, leaves: Iterable[str]) -> str:
    """Returns the path of the table without the beginning that all parameters share."""
    return table.removeprefix(find_params(leaves) or "")
