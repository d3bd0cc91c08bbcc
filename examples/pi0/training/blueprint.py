"""The model as a function of its parameters, of which some are trained and some are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array

from examples.pi0.model import Pi0, Pi0Config
from taskcond import SharedTaskParam, TaskParam, TaskVocabulary
from taskcond.checkpoint import TaskConditioning
from taskcond.trees import flatten, rebuild, replace_values, to_dict

Params = Mapping[str, Any]
"""Nested dicts of arrays; their paths are those of the published weights."""


class Blueprint:
    """The structure of a model, without any parameters in memory.

    Args:
        config: The model's.
        frozen: The paths of the parameters that are not trained.

    Attributes:
        config: See above.
        shapes: `{path: jax.ShapeDtypeStruct}` of all parameters. Those that are not trained have
            the dtype of the computation, and the others float32.
        task_tables: The paths of the parameters with a row for each task.
    """

    def __init__(self, config: Pi0Config, frozen: frozenset[str] = frozenset()):
        self.config = config
        self._model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))
        self._tree = to_dict(nnx.state(self._model))
        self.frozen = frozen
        has_rows = nnx.All(TaskParam, nnx.Not(SharedTaskParam))
        self.task_tables = frozenset(flatten(nnx.state(self._model, has_rows)))
        self.shapes = {
            path: jax.ShapeDtypeStruct(
                leaf.shape, config.compute_dtype if path in frozen else jnp.float32
            )
            for path, leaf in flatten(self._tree).items()
        }

    def freeze(self, frozen: frozenset[str]) -> Blueprint:
        """Returns the blueprint of the same model with other frozen parameters."""
        return Blueprint(self.config, frozen)

    def conditioning(
        self, vocabulary: TaskVocabulary, frames_seen: Sequence[int]
    ) -> TaskConditioning | None:
        """Returns what the rows of the tasks mean; `None` without tasks."""
        return TaskConditioning.of(
            self._model, vocabulary=vocabulary, frames_seen=tuple(frames_seen)
        )

    def build(self, *parts: Params) -> Pi0:
        """Returns the model with these parameters, each of which is in one part."""
        flat: dict[str, Any] = {}
        for part in parts:
            flat.update(flatten(part))
        graph, state = nnx.split(self._model)
        replace_values(state, rebuild(self._tree, flat))
        return nnx.merge(graph, state)

    def split(self, flat: Mapping[str, Any]) -> tuple[Params, Params]:
        """Returns the trained and the frozen ones of parameters by path, as nested dicts."""
        trained = {path: x for path, x in flat.items() if path not in self.frozen}
        frozen = {path: x for path, x in flat.items() if path in self.frozen}
        return nest(trained), nest(frozen)

    def initialize(self, key: Array, paths: frozenset[str]) -> dict[str, Any]:
        """Draws the parameters of these paths; the others are not computed under `jit`."""
        model = Pi0(self.config, rngs=nnx.Rngs(params=key))
        flat = flatten(nnx.state(model, nnx.Param))
        return {path: flat[path].astype(self.shapes[path].dtype) for path in sorted(paths)}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts of leaves by path.

    >>> nest({"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    return traverse_util.unflatten_dict(dict(flat), sep="/")
