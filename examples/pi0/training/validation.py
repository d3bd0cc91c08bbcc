"""Validation in a run: of the weights and of their average, at a bounded share of the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from examples.pi0.training.data import RunData
from examples.pi0.training.evaluation import Evaluation
from examples.pi0.training.step import Trainer, TrainState
from taskcond.diagnostics import Diagnosis

_DIAGNOSED = 32  # frames


class Validation:
    """Measures a policy on held-out frames.

    Args:
        trainer: The run's.
        data: The run's.
        names: The names of the table's rows.
    """

    def __init__(self, trainer: Trainer, data: RunData, names: Sequence[str]):
        config = trainer.config
        self._num_tasks = config.model.num_tasks
        self._has_stages = bool(config.model.task_stages)
        batches = data.val_batches(config.batch_size, config.val_num_batches)
        self._evaluation = Evaluation(trainer.blueprint, batches, names, config.seed, trainer.rows)
        self._wrong: list[dict[str, Any]] = []
        if data.wrong_prompts is not None:
            self._wrong = data.val_batches(len(batches[0]["state"]), 1, data.wrong_prompts)
        self._few = [jax.tree.map(lambda x: x[:_DIAGNOSED], dict(batches[0]))]
        self._share = config.diagnose_share
        self._started = time.monotonic()
        self._spent = 0.0

    def measure(self, state: TrainState) -> dict[str, Any]:
        """Returns losses by task, of the raw weights and of their average, and action errors.

        Where prompts differ, `prompts` has the losses with the right ones and with those of other
        tasks. With stages, `val_stage_accuracy` says how often they are predicted right.
        """
        result = {"val": self._evaluation.losses(state.params, state.frozen)}
        if state.average is not None:
            result["val_ema"] = self._evaluation.losses(state.average, state.frozen)
        result["val_action_error"] = self._evaluation.action_errors(state.best, state.frozen)
        if self._has_stages:
            result["val_stage_accuracy"] = self._evaluation.stage_accuracy(state.best, state.frozen)
        if self._wrong:
            result["prompts"] = self._evaluation.prompt_losses(
                state.best, state.frozen, self._wrong
            )
        return result

    def diagnose(self, state: TrainState, *, at_once: bool = False) -> Diagnosis | None:
        """Says whether the ids are used; `None` if that would take more than its share of time.

        Args:
            state: The state.
            at_once: Whether it is worth any time, as at the end.
        """
        begin = time.monotonic()
        if self._num_tasks < 2:
            return None
        if not at_once and self._spent > self._share * (begin - self._started):
            return None
        seen = np.asarray(state.seen).tolist()
        result = self._evaluation.diagnose(state.best, state.frozen, seen, self._few)
        self._spent += time.monotonic() - begin
        return result
