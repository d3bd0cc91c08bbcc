"""Validation: the loss and the error of actions by task, and whether the ids are used."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from examples.pi0.blueprint import Params
from examples.pi0.training.configs import LossConfig
from examples.pi0.training.loss import Batch, draw, is_valid, observe
from examples.pi0.training.step import Trainer, TrainState
from taskcond.checkpoint import TaskConditioning
from taskcond.diagnostics import Diagnosis, PolicyFunctions, diagnose, table_report
from taskcond.trees import flatten

_PLAIN = LossConfig(mask_padding=True)
_DIAGNOSED = 32  # frames


class Validation:
    """Measures a policy on held-out frames; noise and times are the same at every call.

    Args:
        trainer: The run's.
        batches: The batches, see `RunData.val_batches`.
        names: The names of the table's rows.
        share: The largest share of the time for the question whether ids are used.
    """

    def __init__(
        self, trainer: Trainer, batches: Sequence[Batch], names: Sequence[str], share: float
    ):
        self._trainer = trainer
        self._batches = batches
        self._names = names
        self._share = share
        self._started = time.monotonic()
        self._spent = 0.0
        self._key = jax.random.key(trainer.config.seed + 1000)
        self._losses = jax.jit(self._frame_losses)
        self._sample = jax.jit(self._act)

    def measure(self, state: TrainState) -> dict[str, Any]:
        """Returns losses by task, of the raw weights and of their average, and action errors."""
        result = {"val": self._by_task(state.params, state.frozen)}
        if state.average is not None:
            result["val_ema"] = self._by_task(state.average, state.frozen)
        result["val_action_error"] = self._action_errors(state.best, state.frozen)
        return result

    def diagnose(self, state: TrainState, *, at_once: bool = False) -> Diagnosis | None:
        """Says whether the ids are used; `None` if that would take more than its share of time.

        Args:
            state: The state.
            at_once: Whether it is worth any time, as at the end.
        """
        config, begin = self._trainer.config, time.monotonic()
        if config.model.num_tasks < 2:
            return None
        if not at_once and self._spent > self._share * (begin - self._started):
            return None
        batch = jax.tree.map(lambda x: x[:_DIAGNOSED], dict(self._batches[0]))
        embedding = flatten(state.best)["task_embeddings/embedding"]
        functions = PolicyFunctions[dict](
            self._names,
            loss=lambda key, batch, ids: self._losses(
                state.best, state.frozen, key, {**batch, "task_id": ids}
            ),
            actions=lambda key, batch, ids: self._sample(
                state.best, state.frozen, key, {**batch, "task_id": ids}
            ),
            observe=(lambda batch: batch["state"]) if _has_episodes(batch) else None,
            table=table_report(
                np.asarray(embedding),
                scale=config.model.task_embedding_scale,
                fusion="add",
                frames_seen=tuple(np.asarray(state.seen).tolist()),
                names=self._names,
            ),
        )
        result = diagnose(functions, [batch], draws=1, seed=config.seed, ids_at_once=1)
        self._spent += time.monotonic() - begin
        return result

    def _by_task(self, params: Params, frozen: Params) -> dict[str, float]:
        losses, ids = [], []
        for number, batch in enumerate(self._batches):
            key = jax.random.fold_in(self._key, number)
            losses.append(np.asarray(self._losses(params, frozen, key, batch)))
            ids.append(np.asarray(batch["task_id"]))
        return self._means(np.concatenate(losses), np.concatenate(ids))

    def _action_errors(self, params: Params, frozen: Params) -> dict[str, float]:
        batch = self._batches[0]
        actions = np.asarray(self._sample(params, frozen, self._key, batch))
        valid = np.asarray(is_valid(batch))
        square = np.square(actions - batch["actions"])
        errors = (square * valid).sum((1, 2)) / valid.sum((1, 2))
        return self._means(errors, np.asarray(batch["task_id"]))

    def _means(self, values: np.ndarray, ids: np.ndarray) -> dict[str, float]:
        names = list(self._names) or [str(i) for i in range(int(ids.max()) + 1)]
        tasks = {names[i]: ids == i for i in np.unique(ids).tolist()}
        means = {name: float(values[rows].mean()) for name, rows in tasks.items()}
        return {"all": float(np.mean(list(means.values()))), **means}

    def _frame_losses(
        self, params: Params, frozen: Params, key: Array, batch: Batch
    ) -> Float[Array, " b"]:
        model = self._trainer.blueprint.build(params, frozen)
        drawn = draw(key, batch, _PLAIN)
        errors = model.squared_errors(drawn.observation, drawn.actions, drawn.noise, drawn.time)
        valid = is_valid(batch)
        return jnp.sum(errors * valid, (1, 2)) / jnp.maximum(jnp.sum(valid, (1, 2)), 1)

    def _act(
        self, params: Params, frozen: Params, key: Array, batch: Batch
    ) -> Float[Array, "b h d"]:
        return self._trainer.blueprint.build(params, frozen).sample_actions(key, observe(batch))


def _has_episodes(batch: Batch) -> bool:
    """Returns whether two tasks have frames of several episodes, which can be compared."""
    pairs = {*zip(batch["task_id"].tolist(), batch["episode_index"].tolist(), strict=True)}
    counts = collections.Counter(task for task, _ in pairs)
    return sum(count > 1 for count in counts.values()) >= 2


def conditioning(trainer: Trainer, state: TrainState, vocabulary: Any) -> TaskConditioning | None:
    """Returns the meaning of the table of a state; `None` without tasks."""
    config = trainer.config.model
    if not config.num_tasks:
        return None
    return TaskConditioning(
        config.num_tasks,
        config.action_expert.width,
        scale=config.task_embedding_scale,
        fusion="add",
        vocabulary=vocabulary,
        frames_seen=tuple(np.asarray(state.seen).tolist()),
    )
