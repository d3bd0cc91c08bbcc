"""Parameter trees as flat dictionaries of `/`-joined paths, in every layout of checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

Tree = Mapping[Any, Any]
"""Nested dicts of arrays, or an `nnx.State`."""


def flatten(tree: Tree) -> dict[str, Any]:
    """Flattens a tree to `{"a/b/c": leaf}`. As in JAX, `None` is not a leaf.

    Raises:
        TypeError: The argument is not a mapping.
        ValueError: Two leaves have the same path.

    >>> flatten({"a": {"b": 1, 0: 2}, "c/d": 3})
    {'a/b': 1, 'a/0': 2, 'c/d': 3}
    """
    flat: dict[str, Any] = {}
    for keys, leaf in _walk(to_dict(tree)):
        path = "/".join(map(str, keys))
        if path in flat:
            raise ValueError(f"two leaves have the path {path!r}")
        flat[path] = leaf
    return flat


def to_dict(tree: Any) -> Tree:
    """Returns an `nnx.State` as nested dicts of arrays, and other mappings unchanged."""
    if isinstance(tree, nnx.State):
        pure = getattr(nnx, "to_pure_dict", None)  # a method of State in older releases of flax
        return pure(tree) if pure else tree.to_pure_dict()
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"expected nested dicts of arrays, got {type(tree).__name__}; "
            "for a module, pass nnx.state(model, nnx.Param) or use merge_into"
        )
    return tree


def replace_values(state: nnx.State, values: dict[Any, Any]) -> None:
    """Puts the arrays of nested dicts into an `nnx.State` of the same structure."""
    replace = getattr(nnx, "replace_by_pure_dict", None)  # a method in older releases of flax
    if replace:
        replace(state, values)
    else:
        state.replace_by_pure_dict(values)


def rebuild(tree: Tree, flat: Mapping[str, Any]) -> dict[Any, Any]:
    """Returns nested dicts with the structure of `tree` and the leaves of `flat`, by path.

    >>> rebuild({"a": {0: 1, "b": None}}, {"a/0": 5})
    {'a': {0: 5, 'b': None}}
    """

    def build(node: Any, keys: tuple[Any, ...]) -> Any:
        if isinstance(node, Mapping):
            return {key: build(child, (*keys, key)) for key, child in node.items()}
        return None if node is None else flat["/".join(map(str, keys))]

    return build(to_dict(tree), ())


def plain_paths(paths: Iterable[str]) -> dict[str, str]:
    """Maps plain parameter paths to the paths in a checkpoint's layout.

    There are three layouts. Released weights have all leaves below `params`. Training writes each
    leaf one level deeper, under `value`. A checkpoint may also have both, or neither.

    >>> plain_paths(["params/dense/kernel/value"])
    {'dense/kernel': 'params/dense/kernel/value'}
    """
    paths = list(paths)
    prefix = "params/" if paths and all(path.startswith("params/") for path in paths) else ""
    inner = {path.removeprefix(prefix): path for path in paths}
    suffix = "/value" if inner and all(path.endswith("/value") for path in inner) else ""
    return {path.removesuffix(suffix): full for path, full in inner.items()}


def layout_name(plain: Mapping[str, str]) -> str:
    """Returns `"trained"`, `"released"` or `"plain"` for a result of `plain_paths`.

    >>> layout_name(plain_paths(["params/dense/kernel"]))
    'released'
    """
    path, full = next(iter(plain.items()))
    if full.endswith("/value") and not path.endswith("/value"):
        return "trained"
    return "released" if full != path else "plain"


def sharding_of(leaf: Any) -> jax.sharding.Sharding | None:
    """Returns where a target leaf wants its value to be, or `None` if it does not say.

    A `jax.ShapeDtypeStruct` may say so, and an array that was placed deliberately does.
    """
    says = isinstance(leaf, jax.ShapeDtypeStruct) or getattr(leaf, "committed", False)
    return getattr(leaf, "sharding", None) if says else None


def _walk(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _walk(child, (*keys, key))
    elif node is not None:
        yield keys, node
