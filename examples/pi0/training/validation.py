"""Validation in a run: of the weights and of their average, at a bounded share of the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from examples.pi0.training.evaluation import Evaluation
from examples.pi0.training.loss import Batch
from examples.pi0.training.step import Trainer, TrainState
from taskcond.diagnostics import Diagnosis

_DIAGNOSED = 32  # frames


class Validation:
    """Measures a policy on held-out frames.

    Args:
        trainer: The run's.
        batches: The batches, see `RunData.val_batches`.
        names: The names of the table's rows.
        share: The largest share of the time for the question whether ids are used.
    """

    def __init__(
        self, trainer: Trainer, batches: Sequence[Batch], names: Sequence[str], share: float
    ):
        self._num_tasks = trainer.config.model.num_tasks
        self._evaluation = Evaluation(trainer.blueprint, batches, names, trainer.config.seed)
        self._few = [jax.tree.map(lambda x: x[:_DIAGNOSED], dict(batches[0]))]
        self._share = share
        self._started = time.monotonic()
        self._spent = 0.0

    def measure(self, state: TrainState) -> dict[str, Any]:
        """Returns losses by task, of the raw weights and of their average, and action errors."""
        result = {"val": self._evaluation.losses(state.params, state.frozen)}
        if state.average is not None:
            result["val_ema"] = self._evaluation.losses(state.average, state.frozen)
        result["val_action_error"] = self._evaluation.action_errors(state.best, state.frozen)
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
