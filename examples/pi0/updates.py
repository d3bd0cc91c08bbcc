"""The updates of low rank that each task has of the action expert's weights."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Shaped

from examples.pi0.config import Pi0Config
from examples.pi0.layers import (
    NO_UPDATES,
    Updates,
    attention_projections,
    feed_forward_projections,
)
from examples.pi0.stack import stack
from taskcond import TaskLoRA


class TaskUpdates(nnx.Module):
    """The updates that each task has of all projections of the action expert.

    Without tasks, or without a rank, there are no parameters, and the layers stay as they are.

    Args:
        config: The model's.
        rngs: Draws the parameters.
    """

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        width, actions = config.action_expert.width, config.action_dim
        num_tasks = config.num_tasks if config.task_lora_rank else 0
        time_in = width if config.pi05 else 2 * width

        def make(*shape: int) -> TaskLoRA:
            return TaskLoRA(num_tasks, shape, config.task_lora_rank or 1, rngs=rngs)

        self.action_in = make(actions, width)
        self.action_out = make(width, actions)
        self.time_in = make(time_in, width)
        self.time_out = make(width, width)

        def make_layer(rngs: nnx.Rngs) -> LayerUpdates:
            return LayerUpdates(config, rngs=rngs)

        depth = config.action_expert.depth
        self.layers = stack(make_layer, depth, rngs, axis=1) if num_tasks else None

    def of_layers(self, task_id: Any, x: Shaped[Array, "b ..."]) -> Updates:
        """Looks up the updates within the layers, with the axis of layers first.

        Args:
            task_id: `[b]`; `None` if there are no tasks.
            x: An array with the axis of the batch first.
        """
        return NO_UPDATES if self.layers is None else self.layers.select(task_id, x)


class LayerUpdates(nnx.Module):
    """The updates that each task has in one layer, or in a stack of them along the second axis.

    Args:
        config: The model's.
        rngs: Draws the parameters.
    """

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        expert = config.action_expert
        projections = {**attention_projections(expert), **feed_forward_projections(expert)}
        self.names = tuple(projections)
        for name, (equation, shape) in projections.items():
            lora = TaskLoRA(
                config.num_tasks,
                shape,
                config.task_lora_rank,
                equation=equation,
                dtype=config.compute_dtype,
                rngs=rngs,
            )
            setattr(self, name, lora)

    def select(self, task_id: Any, x: Shaped[Array, "b ..."]) -> Updates:
        """Looks up the updates of a stack; see `TaskUpdates.of_layers`."""
        return {name: getattr(self, name).select(task_id, x).by_layer() for name in self.names}
