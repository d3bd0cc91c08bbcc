"""Parameter trees as flat dictionaries of `/`-joined paths, whatever layout they come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Flattens nested dicts, or an `nnx.State`, to `{"a/b/c": leaf}`; `None` is no leaf, as in JAX.

    Raises:
        TypeError: Not a mapping.
        ValueError: Two leaves with the same path.

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


def to_dict(tree: Any) -> Mapping[Any, Any]:
    """Nested dicts of arrays from an `nnx.State`; other mappings as they are."""
    if isinstance(tree, nnx.State):
        pure = getattr(nnx, "to_pure_dict", None)  # a method in older releases of flax
        return pure(tree) if pure else tree.to_pure_dict()
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"expected nested dicts of arrays, got {type(tree).__name__}; "
            "for a module, pass nnx.state(model, nnx.Param) or use merge_into"
        )
    return tree


def rebuild(tree: Mapping[Any, Any], flat: Mapping[str, Any]) -> dict[Any, Any]:
    """Nested dicts with the structure of `tree` and the leaves of `flat`, by path.

    >>> rebuild({"a": {0: 1, "b": None}}, {"a/0": 5})
    {'a': {0: 5, 'b': None}}
    """

    def build(node: Any, keys: tuple[Any, ...]) -> Any:
        if isinstance(node, Mapping):
            return {key: build(child, (*keys, key)) for key, child in node.items()}
        return None if node is None else flat["/".join(map(str, keys))]

    return build(to_dict(tree), ())


def unwrap(flat: Mapping[str, Any]) -> dict[str, str]:
    """Maps the plain parameter paths to those of the checkpoint's layout.

    Released weights put everything below `params`; training writes each leaf one level deeper,
    under `value`. Both may be there. This is the one place that knows.

    >>> unwrap({"params/dense/kernel/value": 1})
    {'dense/kernel': 'params/dense/kernel/value'}
    """
    paths = list(flat)
    prefix = "params/" if paths and all(path.startswith("params/") for path in paths) else ""
    suffix = "/value" if paths and all(path.endswith("/value") for path in paths) else ""
    return {path.removeprefix(prefix).removesuffix(suffix): path for path in paths}


def _walk(node: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _walk(child, (*keys, key))
    elif node is not None:
        yield keys, node
