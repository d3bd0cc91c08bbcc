"""Measures a policy: loss and error of actions by task, and whether the ids are used."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int

from examples.pi0.stack import keep_rows_on
from examples.pi0.training.blueprint import Blueprint, Params
from examples.pi0.training.configs import LossConfig
from examples.pi0.training.loss import Batch, draw, is_valid, observe
from taskcond.diagnostics import Diagnosis, PolicyFunctions, diagnose, table_report
from taskcond.trees import flatten

_PLAIN = LossConfig(mask_padding=True)


class Evaluation:
    """Measures a policy; frames, noise and times are the same at every call.

    Args:
        blueprint: The model.
        batches: The batches, as `Examples` gives them.
        names: The names of the tasks, by id.
        seed: The seed of noise and times.
        rows: Where the rows of a batch are; `None` on a single device. A batch whose rows do not
            divide by the devices is computed whole on each.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        batches: Sequence[Batch],
        names: Sequence[str],
        seed: int,
        rows: Sharding | None = None,
    ):
        self._blueprint = blueprint
        self._batches = batches
        self._rows = rows
        self._names = names
        self._seed = seed
        self._key = jax.random.key(seed + 1000)
        self._losses = jax.jit(self._frame_losses)
        self._sample = jax.jit(self._act)
        self._stages = jax.jit(self._predict_stages)

    def losses(self, params: Params, frozen: Params) -> dict[str, float]:
        """Returns the mean loss of each task, and their mean as `all`."""
        return self._mean_losses(params, frozen, self._batches)

    def prompt_losses(
        self, params: Params, frozen: Params, wrong: Sequence[Batch]
    ) -> dict[str, float]:
        """Returns the mean loss with the `right` prompts and with `wrong` ones.

        Args:
            params: The trained parameters.
            frozen: The other parameters.
            wrong: The first batches, with prompts of other tasks; as many right ones are measured.
        """
        first = self._batches[: len(wrong)]
        return {
            "right": self._mean_losses(params, frozen, first)["all"],
            "wrong": self._mean_losses(params, frozen, wrong)["all"],
        }

    def action_errors(self, params: Params, frozen: Params, count: int = 1) -> dict[str, float]:
        """Returns the mean squared error of sampled actions, normalized, as `losses` does.

        Args:
            params: The trained parameters.
            frozen: The other parameters.
            count: The number of batches.
        """
        errors, ids = [], []
        for number, batch in enumerate(self._batches[:count]):
            key = jax.random.fold_in(self._key, number)
            actions = np.asarray(self._sample(params, frozen, key, self._place(batch)))
            valid = np.asarray(is_valid(batch))
            square = np.square(actions - batch["actions"]) * valid
            errors.append(square.sum((1, 2)) / np.maximum(valid.sum((1, 2)), 1))
            ids.append(np.asarray(batch["task_id"]))
        return self._means(np.concatenate(errors), np.concatenate(ids))

    def stage_accuracy(self, params: Params, frozen: Params, count: int = 1) -> dict[str, float]:
        """Returns how often the stage is predicted right, as `losses` does.

        Args:
            params: The trained parameters.
            frozen: The other parameters.
            count: The number of batches.
        """
        right, ids = [], []
        for batch in self._batches[:count]:
            found = np.asarray(self._stages(params, frozen, self._place(batch)))
            right.append(found == batch["stage"])
            ids.append(np.asarray(batch["task_id"]))
        return self._means(np.concatenate(right), np.concatenate(ids))

    def diagnose(
        self,
        params: Params,
        frozen: Params,
        frames_seen: Sequence[int | None] | None,
        batches: Sequence[Batch],
    ) -> Diagnosis:
        """Says whether the ids are used.

        Args:
            params: The trained parameters.
            frozen: The other parameters.
            frames_seen: For each task the number of frames in training, if it is known.
            batches: The frames to look at.
        """
        config = self._blueprint.config
        table = flatten(params) | flatten(frozen)

        def losses(key: Array, batch: Batch, ids: Int[Array, " b"]) -> Float[Array, " b"]:
            return self._losses(params, frozen, key, _told(batch, ids))

        def actions(key: Array, batch: Batch, ids: Int[Array, " b"]) -> Float[Array, "b h d"]:
            return self._sample(params, frozen, key, _told(batch, ids))

        can_compare = all(map(_has_episodes, batches))
        functions = PolicyFunctions[Any](
            self._names,
            loss=losses,
            actions=actions,
            observe=(lambda batch: batch["state"]) if can_compare else None,
            table=table_report(
                np.asarray(table["task_embeddings/embedding"]),
                scale=config.task_embedding_scale,
                fusion=config.task_fusion,
                frames_seen=frames_seen,
                names=self._names,
            )
            if config.has_table
            else None,
        )
        return diagnose(functions, batches, draws=1, seed=self._seed, ids_at_once=1)

    def _mean_losses(
        self, params: Params, frozen: Params, batches: Sequence[Batch]
    ) -> dict[str, float]:
        losses, ids = [], []
        for number, batch in enumerate(batches):
            key = jax.random.fold_in(self._key, number)
            losses.append(np.asarray(self._losses(params, frozen, key, self._place(batch))))
            ids.append(np.asarray(batch["task_id"]))
        return self._means(np.concatenate(losses), np.concatenate(ids))

    def _means(self, values: np.ndarray, ids: np.ndarray) -> dict[str, float]:
        names = list(self._names) or [str(i) for i in range(int(ids.max()) + 1)]
        tasks = {names[i]: ids == i for i in np.unique(ids).tolist()}
        means = {name: float(values[rows].mean()) for name, rows in tasks.items()}
        return {"all": float(np.mean(list(means.values()))), **means}

    def _divides(self, batch: Batch) -> bool:
        return self._rows is not None and len(batch["state"]) % self._rows.num_devices == 0

    def _place(self, batch: Batch) -> Batch:
        return jax.device_put(batch, self._rows) if self._divides(batch) else batch

    def _frame_losses(
        self, params: Params, frozen: Params, key: Array, batch: Batch
    ) -> Float[Array, " b"]:
        model = self._blueprint.build(params, frozen)
        drawn = draw(key, batch, _PLAIN)
        with keep_rows_on(self._rows if self._divides(batch) else None):
            errors, _ = model.errors_and_stage_loss(
                drawn.observation, drawn.actions, drawn.noise, drawn.time
            )
        valid = is_valid(batch)
        return jnp.sum(errors * valid, (1, 2)) / jnp.maximum(jnp.sum(valid, (1, 2)), 1)

    def _act(
        self, params: Params, frozen: Params, key: Array, batch: Batch
    ) -> Float[Array, "b h d"]:
        model = self._blueprint.build(params, frozen)
        with keep_rows_on(self._rows if self._divides(batch) else None):
            return model.sample_actions(key, observe(batch))

    def _predict_stages(self, params: Params, frozen: Params, batch: Batch) -> Int[Array, " b"]:
        model = self._blueprint.build(params, frozen)
        with keep_rows_on(self._rows if self._divides(batch) else None):
            return model.stage_logits(observe(batch)).argmax(-1)


def _told(batch: Batch, ids: Int[Array, " b"]) -> Batch:
    """Returns a batch with other ids, and without stages, which another task may not have."""
    told = {**batch, "task_id": ids}
    told.pop("stage", None)
    return told


def _has_episodes(batch: Batch) -> bool:
    """Returns whether two tasks have frames of several episodes, which can be compared."""
    pairs = {*zip(batch["task_id"].tolist(), batch["episode_index"].tolist(), strict=True)}
    counts = collections.Counter(task for task, _ in pairs)
    return sum(count > 1 for count in counts.values()) >= 2
