"""One training step, as a function of the whole state."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import Array, Int

from examples.pi0.augment import Recipe
from examples.pi0.stack import keep_rows_on
from examples.pi0.training.blueprint import Blueprint, Params
from examples.pi0.training.configs import TrainConfig
from examples.pi0.training.groups import has_frozen_prefix
from examples.pi0.training.loss import Batch, Draw, draw, weighted_loss
from examples.pi0.training.optimizer import (
    make_optimizer,
    make_schedule,
    matrix_norm,
    update_average,
)

Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """All that changes in training, and the frozen parameters.

    Attributes:
        step: The number of finished steps.
        params: The trained parameters, in float32.
        opt_state: The state of the optimizer.
        average: The moving average of `params`, or `None`.
        seen: For each task the number of frames in all batches, also of earlier stages.
        frozen: The other parameters, in the dtype of the computation.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    average: Params | None
    seen: Int[Array, " tasks"]
    frozen: Params

    @property
    def best(self) -> Params:
        """The parameters to act with: the average if there is one."""
        return self.params if self.average is None else self.average


class Trainer:
    """Makes a step from a state and a batch.

    Args:
        config: The run's.
        blueprint: The model's.
        recipe: How images are changed.
        rows: Where the rows of a batch are; `None` on a single device.
    """

    def __init__(
        self,
        config: TrainConfig,
        blueprint: Blueprint,
        recipe: Recipe | None,
        rows: Sharding | None = None,
    ):
        self.config = config
        self.blueprint = blueprint
        self.recipe = recipe
        self.rows = rows
        self.optimizer = make_optimizer(config.optimizer, config.num_train_steps)
        self.schedule = make_schedule(config.optimizer, config.num_train_steps)
        self.frozen_prefix = has_frozen_prefix(blueprint.shapes, blueprint.frozen)

    def start(self, params: Params, frozen: Params) -> TrainState:
        """Returns the state before the first step."""
        copies = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return TrainState(
            jnp.int32(0),
            params,
            self.optimizer.init(params),
            copies if self.config.ema_decay else None,
            jnp.zeros(self.config.model.num_tasks, jnp.int32),
            frozen,
        )

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Returns the next state, and what was measured.

        A step draws from the run's seed and the number of the step alone.
        """
        config = self.config
        rng = jax.random.fold_in(jax.random.key(config.seed), state.step)
        dropout = config.model.task_dropout_rate if config.model.num_tasks else 0.0
        drawn = draw(rng, batch, config.loss, dropout=dropout, recipe=self.recipe)
        loss, gradients = self._gradients(state, drawn)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None and config.ema_decay is not None:
            average = update_average(average, params, config.ema_decay)
        seen = state.seen
        if config.model.num_tasks:
            seen = seen.at[batch["task_id"]].add(1)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradients),
            "param_norm": matrix_norm(params),
            "learning_rate": jnp.asarray(self.schedule(state.step)),
            "padded_share": jnp.mean(jnp.asarray(batch["action_is_pad"])),
        }
        return TrainState(state.step + 1, params, opt_state, average, seen, state.frozen), metrics

    def _gradients(self, state: TrainState, drawn: Draw) -> tuple[Array, Params]:
        def loss(params: Params, part: Draw) -> Array:
            model = self.blueprint.build(params, state.frozen)
            with keep_rows_on(self.rows):
                return weighted_loss(model, part, frozen_prefix=self.frozen_prefix)

        value_and_grad = jax.value_and_grad(loss)
        count = self.config.grad_accum
        if count == 1:
            return value_and_grad(state.params, drawn)
        # Each part has rows of every device.
        parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), drawn)

        def add(total: Any, part: Draw) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(state.params, part)), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        return jax.lax.scan(add, zeros, parts)[0]

    @functools.cached_property
    def shapes(self) -> TrainState:
        """The shapes of a state."""
        params, frozen = self.blueprint.split(self.blueprint.shapes)
        return jax.eval_shape(self.start, params, frozen)
